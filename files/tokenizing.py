"""A tokenizer.json at work: the part that runs in the child process (model/tokenizer_bounds.py)."""

from files.bounded import SECONDS, Budget, call
from files.errors import UserError

MEMORY = 2**30  # bytes of address space
LONGEST = 100  # tokens or characters for each one given, beside a thousand
tokenizers: dict = {}  # in the child: key -> (tokenizer, Budget)


def ask(state: str, request: list, what: str) -> list:
    """What a tokenizer answers to [method, value, flag]; state: the text of its tokenizer.json.

    The child gets the text with the first request and keeps the tokenizer. Raises UserError.
    """
    key = hash(state)
    answer = call("files.tokenizing:run", [key, what, *request], what, SECONDS, MEMORY)
    if answer is None:
        call("files.tokenizing:keep", [key, state], what, 10 * SECONDS, MEMORY)
        answer = call("files.tokenizing:run", [key, what, *request], what, SECONDS, MEMORY)
    return answer


def keep(request: list) -> None:
    """In the child: the tokenizer of this key, in place of the one before."""
    from tokenizers import Tokenizer

    key, state = request
    tokenizers.clear()
    tokenizers[key] = Tokenizer.from_str(state), Budget(8.0, 0.005)


def run(request: list) -> list | None:
    """In the child: the answer, or None where it does not have the tokenizer yet."""
    key, what, name, value, flag = request
    if key not in tokenizers:
        return None
    tokenizer, budget = tokenizers[key]
    try:
        with budget.piece(what):
            if name == "decode":
                answer = [tokenizer.decode(value, skip_special_tokens=flag)]
            else:
                made = tokenizer.encode(value, add_special_tokens=flag)
                answer = [made.ids, made.offsets, made.special_tokens_mask]
    except UserError:
        raise
    except BaseException as error:  # a panic of Rust is no Exception
        raise UserError(f"{what} cannot be used: {error!s:.200}") from None
    if len(answer[0]) > LONGEST * (1000 + len(value)):
        raise UserError(f"{what} makes {len(answer[0]):,} of {len(value):,}")
    return answer

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
    for text, seconds in ((None, SECONDS), (state, 10 * SECONDS)):
        answer = call(
            "files.tokenizing:run", [hash(state), text, what, *request], what, seconds, MEMORY
        )
        if answer is not None:
            break
    return answer


def run(request: list) -> list | None:
    """In the child: the answer, or None where it does not have the tokenizer yet."""
    from tokenizers import Tokenizer

    key, state, what, name, value, flag = request
    if state is not None:
        tokenizers.clear()
        tokenizers[key] = Tokenizer.from_str(state), Budget(8.0, 0.005)
    if key not in tokenizers:
        return None
    tokenizer, budget = tokenizers[key]
    try:
        with budget.piece(what, SECONDS):
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

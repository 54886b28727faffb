"""Tokenizers of other people at work: the part that runs in the child process.

A tokenizer.json is run here where it is not bounded (model/tokenizer_bounds.py), a tokenizer.model
always (model/tokenizer_sentencepiece.py).
"""

from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager

from files.bounded import SECONDS, Budget, call
from files.errors import UserError

MEMORY = 2**30  # bytes of address space
LOADING = 8.0  # seconds
LONGEST = 100  # tokens or characters for each one given, beside a thousand
PIECES = 1_000_000  # of a tokenizer.model; published ones have 256,000
kept: dict = {}  # in the child: key -> (tokenizer, Budget)


def ask(kind: str, source: str, request: list, what: str) -> list:
    """What a tokenizer answers to [method, value, flag].

    kind: "Json", where source is the text of its tokenizer.json, or "Pieces", where source is its
    tokenizer.model in base64. The child gets it with the first request and keeps the tokenizer.
    Raises UserError.
    """
    key = f"{kind} {hash(source)}"
    answer = call("files.tokenizing:run", [key, what, *request], what, SECONDS, MEMORY)
    if answer is None:
        call("files.tokenizing:keep", [key, what, kind, source], what, LOADING, MEMORY)
        answer = call("files.tokenizing:run", [key, what, *request], what, SECONDS, MEMORY)
    return answer


# ---------------------------------------------------------------- in the child
class Json:
    """A tokenizer of the `tokenizers` library. Its methods return (answer, its size, the size of
    what was given)."""

    def __init__(self, text: str):
        from tokenizers import Tokenizer

        self.inner = Tokenizer.from_str(text)

    def encode(self, text: str, special: bool) -> tuple[list, int, int]:
        made = self.inner.encode(text, add_special_tokens=special)
        return [made.ids, made.offsets, made.special_tokens_mask], len(made.ids), len(text)

    def decode(self, ids: list[int], skip: bool) -> tuple[list, int, int]:
        text = self.inner.decode(ids, skip_special_tokens=skip)
        return [text], len(text), len(ids)


class Pieces:
    """A tokenizer of sentencepiece, which encodes and decodes several parts of a text at once."""

    def __init__(self, text: str):
        from sentencepiece import SentencePieceProcessor

        self.inner = SentencePieceProcessor()
        self.inner.LoadFromSerializedProto(b64decode(text))

    def table(self, *_) -> tuple[list, int, int]:
        """[every piece, the number of BOS, the numbers of control, unknown and byte pieces]."""
        count = self.inner.vocab_size()
        if count > PIECES:
            raise UserError(f"it has {count:,} pieces")
        kinds = [self.inner.is_control, self.inner.is_unknown, self.inner.is_byte]
        numbers = [[n for n in range(count) if kind(n)] for kind in kinds]
        pieces = [self.inner.id_to_piece(n) for n in range(count)]
        return [pieces, self.inner.bos_id(), *numbers], 0, 0

    def scores(self, *_) -> tuple[list, int, int]:
        """[the score of every piece, the numbers of unused pieces]."""
        numbers = range(self.inner.vocab_size())
        scores = [self.inner.get_score(n) for n in numbers]
        return [scores, [n for n in numbers if self.inner.is_unused(n)]], 0, 0

    def encode(self, texts: list[str], _) -> tuple[list, int, int]:
        made = [self.inner.encode(text) for text in texts]
        return made, sum(map(len, made)), sum(map(len, texts))

    def decode(self, parts: list[list[int]], _) -> tuple[list, int, int]:
        made = [self.inner.decode(ids) for ids in parts]
        return made, sum(map(len, made)), sum(map(len, parts))


def keep(request: list) -> None:
    """The tokenizer of this key, in place of the one before."""
    key, what, kind, source = request
    kept.clear()
    with said_of(f"{what} cannot be read"):
        kept[key] = {"Json": Json, "Pieces": Pieces}[kind](source), Budget(8.0, 0.005)


def run(request: list) -> list | None:
    """The answer, or None where this process does not have the tokenizer yet."""
    key, what, name, value, flag = request
    if key not in kept:
        return None
    tokenizer, budget = kept[key]
    with said_of(f"{what} cannot be used"), budget.piece(what):
        answer, size, given = getattr(tokenizer, name)(value, flag)
    if size > LONGEST * (1000 + given):
        raise UserError(f"{what} makes {size:,} of {given:,}")
    return answer


@contextmanager
def said_of(what: str) -> Iterator[None]:
    """Within this block, what a library raises is a UserError; a panic of Rust is no Exception."""
    try:
        yield
    except MemoryError:
        raise
    except BaseException as error:
        raise UserError(f"{what}: {error!s:.200}") from None

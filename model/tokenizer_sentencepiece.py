"""sentencepiece's `tokenizer.model`, as LLaMA 1 and 2 have it."""

import codecs
import re
from base64 import b64encode
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

from files.errors import UserError
from files.reading import resolve_inside
from files.tokenizing import ask
from model.added_tokens import AddedToken, read_added_tokens
from model.tokenizer_json import SPACE

SPECIAL = 20_000  # control and added tokens, which are an expression together


class SentencePieceTokenizer:
    """A `tokenizer.model`, run by sentencepiece in the child process; bos=True puts <s> in front.

    Control tokens and added tokens are never split; each part between them begins with the
    space that sentencepiece puts in front of a text, as in LLaMA-1's own tokenizer.json.
    """

    def __init__(self, folder: Path, names: dict):
        """names: what tokenizer_config.json holds."""
        self.path = resolve_inside(folder, "tokenizer.model")
        self.source = b64encode(self.path.read_bytes()).decode()
        if names.get("add_prefix_space") is False:
            where = folder / "tokenizer_config.json"
            raise UserError(
                f"{where}: add_prefix_space = false is not supported beside tokenizer.model"
            )
        added = {token.id: token for token in read_added_tokens(folder, names)}
        self.pieces, bos, control, unknown, in_bytes = self.ask("table", None)
        self.base_size = len(self.pieces)
        self.numbers = {piece: n for n, piece in reversed(list(enumerate(self.pieces)))}
        self.bytes = set(in_bytes)
        hidden = {n: AddedToken(self.pieces[n], n, special=True) for n in (*control, *unknown)}
        tokens = hidden | added
        if len(tokens) > SPECIAL:
            raise UserError(f"{self.path}: {len(tokens):,} control and added tokens are too many")
        self.size = max([self.base_size, *(1 + number for number in tokens)])
        self.texts = {number: token.text for number, token in tokens.items()}
        self.added = {text: number for number, text in self.texts.items()}
        self.special = {number for number, token in tokens.items() if token.special is not False}
        longest_first = sorted(tokens.values(), key=lambda token: -len(token.text))
        self.pattern = re.compile("|".join(map(pattern_of, longest_first)) or r"(?!)")
        self.bos = bos if names.get("add_bos_token") is not False else -1

    def ask(self, name: str, value) -> list:
        """What the child process answers (files/tokenizing.py). Raises UserError."""
        return ask("Pieces", self.source, [name, value, None], f"the tokenizer {self.path}")

    def parts_of(self, text: str) -> tuple[list[tuple[str, list[int]]], list[re.Match]]:
        """(the parts of a text between its special tokens with their ids, these tokens)."""
        found = list(self.pattern.finditer(text))
        starts, ends = [0, *(match.end() for match in found)], [match.start() for match in found]
        parts = [text[a:b] for a, b in zip(starts, [*ends, len(text)], strict=True)]
        return list(zip(parts, self.ask("encode", parts), strict=True)), found

    def encode(self, text: str, bos: bool = True) -> list[int]:
        parts, found = self.parts_of(text)
        ids = [self.bos] if bos and self.bos >= 0 else []
        for (_, pieces), match in zip_longest(parts, found):
            ids += [*pieces, number_of(match)] if match else pieces
        return ids

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of a text, and the characters [start, end) that each stands for.

        Raises UserError for a model that changes the text, so that its pieces do not add up to it.
        """
        ids: list[int] = []
        places: list[tuple[int, int]] = []
        at = 0
        for (part, pieces), match in zip_longest(*self.parts_of(text)):
            ids += pieces
            places += [(at + start, at + end) for start, end in self.places(part, pieces)]
            if match:
                ids.append(number_of(match))
                places.append(match.span())
                at = match.end()
        return ids, places

    def places(self, text: str, ids: list[int]) -> list[tuple[int, int]]:
        """The characters [start, end) of a text that each of its pieces stands for.

        A character of several byte pieces belongs to each of them.
        """
        decoder = codecs.getincrementaldecoder("utf-8")()
        spelled: list[str] = []
        starts: list[int] = []
        length = 0
        for number in ids:
            piece = self.pieces[number]
            is_byte = number in self.bytes  # "<0x0A>"
            new = bytes([int(piece[3:5], 16)]) if is_byte else piece.replace(SPACE, " ").encode()
            starts.append(length)
            spelled.append(decoder.decode(new))
            length += len(spelled[-1])
        prefix = length - len(text)  # the space that sentencepiece puts in front
        if prefix not in (0, 1) or "".join(spelled)[prefix:] != text:
            raise UserError(
                "tokenizer.model changes the text that it encodes, so that the assistant's part of "
                "a chat cannot be found in its tokens: use a model with a tokenizer.json"
            )
        ends = [max(a + 1, b) for a, b in zip(starts, [*starts[1:], length], strict=False)]
        return [
            (max(start - prefix, 0), max(end - prefix, 0))
            for start, end in zip(starts, ends, strict=True)
        ]

    def decode(self, ids: list[int], special: bool = False) -> str:
        """Ids -> text; special=True: special tokens too."""
        shown = ids if special else [number for number in ids if number not in self.special]
        runs = list(self.runs(shown))
        texts = iter(self.ask("decode", [run for run in runs if isinstance(run, list)]))
        return "".join(
            run if isinstance(run, str) else self.space_before(run) * bool(at) + next(texts)
            for at, run in enumerate(runs)
        )

    def space_before(self, ids: list[int]) -> str:
        """The space that sentencepiece leaves out at the start of a text."""
        return " " if self.pieces[ids[0]].startswith(SPACE) else ""

    def runs(self, ids: list[int]) -> Iterator[str | list[int]]:
        """The text of each added token, and each run of others."""
        run: list[int] = []
        for number in ids:
            if number not in self.texts:
                run.append(number)
                continue
            if run:
                yield run
            yield self.texts[number]
            run = []
        if run:
            yield run

    def token_id(self, token: str) -> int | None:
        return self.added.get(token, self.numbers.get(token))


def number_of(match: re.Match) -> int:
    """The id of a token that the pattern found."""
    return int(match.lastgroup.removeprefix("t"))


def pattern_of(token: AddedToken) -> str:
    """The regular expression that finds the token, as a group of its number."""
    left, right = (r"\s*" if strip else "" for strip in (token.lstrip, token.rstrip))
    return f"{left}(?P<t{token.id}>{re.escape(token.text)}){right}"

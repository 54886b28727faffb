"""sentencepiece's `tokenizer.model`, as LLaMA 1 and 2 have it."""

import codecs
import re
from collections.abc import Iterator
from pathlib import Path

from files.errors import UserError
from files.reading import resolve_inside
from model.added_tokens import AddedToken, read_added_tokens
from model.tokenizer_json import SPACE, translate_errors


class SentencePieceTokenizer:
    """A `tokenizer.model`, run by sentencepiece itself; bos=True puts <s> in front.

    Control tokens and added tokens are never split; each part between them begins with the
    space that sentencepiece puts in front of a text, as in LLaMA-1's own tokenizer.json.
    """

    def __init__(self, folder: Path, names: dict):
        """names: what tokenizer_config.json holds."""
        from sentencepiece import SentencePieceProcessor

        path = resolve_inside(folder, "tokenizer.model")
        if names.get("add_prefix_space") is False:
            where = folder / "tokenizer_config.json"
            raise UserError(
                f"{where}: add_prefix_space = false is not supported beside tokenizer.model"
            )
        added = {token.id: token for token in read_added_tokens(folder, names)}
        self.inner = translate_errors(path, lambda: SentencePieceProcessor(model_file=str(path)))
        self.base_size = self.inner.vocab_size()
        tokens = translate_errors(path, self.control_tokens) | added
        self.size = max([self.base_size, *(1 + number for number in tokens)])
        self.texts = {number: token.text for number, token in tokens.items()}
        self.added = {text: number for number, text in self.texts.items()}
        self.special = {number for number, token in tokens.items() if token.special is not False}
        longest_first = sorted(tokens.values(), key=lambda token: -len(token.text))
        self.pattern = re.compile("|".join(map(pattern_of, longest_first)) or r"(?!)")
        self.bos = self.inner.bos_id() if names.get("add_bos_token") is not False else -1

    def control_tokens(self) -> dict[int, AddedToken]:
        """The control tokens of the model and its unknown token."""
        numbers = (
            number
            for number in range(self.base_size)
            if self.inner.is_control(number) or self.inner.is_unknown(number)
        )
        return {n: AddedToken(self.inner.id_to_piece(n), n, special=True) for n in numbers}

    def encode(self, text: str, bos: bool = True) -> list[int]:
        ids, at = [self.bos] if bos and self.bos >= 0 else [], 0
        for match in self.pattern.finditer(text):
            ids += self.inner.encode(text[at : match.start()])
            ids.append(int(match.lastgroup.removeprefix("t")))
            at = match.end()
        return ids + self.inner.encode(text[at:])

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of a text, and the characters [start, end) that each stands for.

        Raises UserError for a model that changes the text, so that its pieces do not add up to it.
        """
        ids: list[int] = []
        places: list[tuple[int, int]] = []
        at = 0
        for match in [*self.pattern.finditer(text), None]:
            part = text[at : match.start() if match else len(text)]
            pieces = self.inner.encode(part)
            ids += pieces
            places += [(at + start, at + end) for start, end in self.places(part, pieces)]
            if match:
                ids.append(int(match.lastgroup.removeprefix("t")))
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
            piece = self.inner.id_to_piece(number)
            is_byte = self.inner.is_byte(number)  # "<0x0A>"
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
        return "".join(self.parts(shown))

    def parts(self, ids: list[int]) -> Iterator[str]:
        """The text of each added token, and of each run of others."""
        start = 0
        for end in range(len(ids) + 1):
            if end < len(ids) and ids[end] not in self.texts:
                continue
            run = ids[start:end]
            if run:
                begins_with_space = self.inner.id_to_piece(run[0]).startswith(SPACE)
                yield (" " if start and begins_with_space else "") + self.inner.decode(run)
            if end < len(ids):
                yield self.texts[ids[end]]
            start = end + 1

    def token_id(self, token: str) -> int | None:
        if token in self.added:
            return self.added[token]
        number = self.inner.piece_to_id(token)
        return number if self.inner.id_to_piece(number) == token else None


def pattern_of(token: AddedToken) -> str:
    """The regular expression that finds the token, as a group of its number."""
    left, right = (r"\s*" if strip else "" for strip in (token.lstrip, token.rstrip))
    return f"{left}(?P<t{token.id}>{re.escape(token.text)}){right}"

"""`tokenizer.json`, run by the `tokenizers` library, and where we deviate from what it says."""

import json
from collections.abc import Callable
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar

from files.errors import UserError
from files.reading import check_expansion, resolve_inside
from files.terminal import silenced_libraries
from model.tokenizer_bounds import PREFIX, InChild, check_sizes, is_bounded

LLAMA_CLASSES = ("LlamaTokenizer", "CodeLlamaTokenizer")
SPACE = "▁"  # sentencepiece's sign for a space
PREPEND = {"type": "Prepend", "prepend": SPACE}
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
Result = TypeVar("Result")


class FileTokenizer:
    """A `tokenizer.json`.

    bos=True puts in front of a text what the file's template has there. What the template has at
    the end, mostly EOS, is left out: a prompt must not end in it, and training adds it itself.
    """

    def __init__(self, folder: Path, special: set[str], names: dict):
        """special: the names of special tokens in tokenizer_config.json, which is `names`."""
        from tokenizers import Tokenizer

        path = resolve_inside(folder, "tokenizer.json")
        text = translate_errors(path, lambda: path.read_text(encoding="utf-8"))
        check_expansion(path, text)
        raw = translate_errors(path, lambda: json.loads(text))
        if not isinstance(raw, dict):
            raise UserError(f"{path} holds a {type(raw).__name__}, not a JSON object")
        translate_errors(path, lambda: check_sizes(raw, path))
        with silenced_libraries():
            self.inner = translate_errors(path, lambda: Tokenizer.from_file(str(path)))
        if has_normalized_tokens_of_llama(self.inner, names):
            legacy = names.get("legacy") is True and "CodeLlama" not in names["tokenizer_class"]
            text = translate_errors(path, lambda: with_tokens_in_raw_text(raw, legacy))
            self.inner = translate_errors(path, lambda: Tokenizer.from_str(text))
        self.inner.no_padding()
        self.inner.no_truncation()
        self.note_added_tokens(special)
        if not translate_errors(path, lambda: is_bounded(raw)):
            self.inner = InChild(self.inner, path)
        self.size = 1 + max(self.inner.get_vocab().values(), default=-1)
        plain = self.inner.get_vocab(with_added_tokens=False)
        self.base_size = 1 + max(plain.values(), default=-1)
        self.prefix = translate_errors(path, self.template_prefix)

    def note_added_tokens(self, special: set[str]) -> None:
        """Set `added`, text -> id of the tokens that are never split, and `special`, ids to hide.

        Those that tokenizer_config.json names are among both, as in transformers.
        """
        from tokenizers import AddedToken

        there = {token.content for token in self.inner.get_added_tokens_decoder().values()}
        new = [text for text in sorted(special - there) if self.token_id(text) is not None]
        self.inner.add_special_tokens([AddedToken(text, normalized=False) for text in new])
        tokens = self.inner.get_added_tokens_decoder()
        self.added = {token.content: number for number, token in tokens.items()}
        self.special = {
            number for number, token in tokens.items() if token.special or token.content in special
        }

    def template_prefix(self) -> list[int]:
        """The ids that the file's template (its post-processor) puts in front of a text."""
        for text in chain(("a",), islice(self.inner.get_vocab(), 1000)):
            if self.inner.encode(text, add_special_tokens=False).ids:
                encoding = self.inner.encode(text)
                prefix = encoding.ids[: encoding.special_tokens_mask.index(0)]
                if len(prefix) > PREFIX:
                    raise UserError(
                        f"a tokenizer's template puts {len(prefix):,} tokens before every text"
                    )
                return prefix
        return []

    def encode(self, text: str, bos: bool = True) -> list[int]:
        ids = self.inner.encode(text, add_special_tokens=False).ids
        return [*self.prefix, *ids] if bos else ids

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of a text, and the characters [start, end) that each stands for."""
        encoding = self.inner.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def decode(self, ids: list[int], special: bool = False) -> str:
        """Ids -> text; special=True: special tokens too."""
        shown = ids if special else [number for number in ids if number not in self.special]
        return self.inner.decode(shown, skip_special_tokens=False)

    def token_id(self, token: str) -> int | None:
        return self.inner.token_to_id(token)


def has_normalized_tokens_of_llama(inner, names: dict) -> bool:
    """Whether LLaMA's special tokens are looked up in the normalized text (`normalized: true`).

    Llama-2's files of 2023 say so. The normalizer makes "▁</s>" of "</s>", so that the token would
    be recognised only after a space, and be cut into letters elsewhere.
    """
    kind = names.get("tokenizer_class")
    if not isinstance(kind, str) or kind.removesuffix("Fast") not in LLAMA_CLASSES:
        return False
    if inner.normalizer is None or inner.pre_tokenizer is not None:
        return False
    state = json.loads(inner.normalizer.__getstate__())
    steps = state.get("normalizers", [state])
    tokens = inner.get_added_tokens_decoder().values()
    return steps in ([PREPEND, REPLACE], [PREPEND]) and any(token.normalized for token in tokens)


def with_tokens_in_raw_text(raw: dict, legacy: bool) -> str:
    """LLaMA's tokenizer.json with tokens looked up in the raw text, as in transformers 5.

    legacy: each part between such tokens begins with a space of its own, else the first part only.
    """
    scheme = "always" if legacy else "first"
    raw["normalizer"] = None
    raw["pre_tokenizer"] = {
        "type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": False
    }  # fmt: skip
    raw["added_tokens"] = [token | {"normalized": False} for token in raw["added_tokens"]]
    return json.dumps(raw)


def translate_errors(path: Path, read: Callable[[], Result]) -> Result:
    """read(), where all errors of a library for a malformed file become a UserError.

    The panics of Rust's libraries are BaseExceptions.
    """
    try:
        return read()
    except (KeyboardInterrupt, SystemExit, UserError):
        raise
    except BaseException as error:
        message = str(error).strip().partition("\n")[0]
        raise UserError(f"{path} cannot be read: {message:.200}") from None

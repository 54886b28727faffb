"""Text <-> token ids, from the tokenizer files of a checkpoint, whichever kind they are."""

from collections.abc import Sequence
from pathlib import Path

from files.errors import UserError
from files.reading import read_json, resolve_inside
from model.added_tokens import is_token_id, special_names, token_text
from model.registry import resolve
from model.tokenizer_json import FileTokenizer, translate_errors
from model.tokenizer_merges import MergesTokenizer
from model.tokenizer_sentencepiece import SentencePieceTokenizer

LARGEST = 40_000_000  # bytes of a tokenizer's file; published ones have at most 35 million


class Tokenizer:
    """`.encode(text, bos=True) -> list[int]`, `.decode(ids) -> str`, and the ids of special tokens.

    `.bos_id`, `.eos_id` and `.pad_id` are None where there is no such token. Special tokens are
    those of the folder's tokenizer_config.json, else special_tokens_map.json, else the ids of
    config.json. In front of a text stands what the file's template has there; with
    `add_bos_token`, and for OPT's `vocab.json`, it is always BOS. `add_eos_token` and a template's
    EOS do not count: training puts EOS after a response itself, and a prompt has none.
    """

    def __init__(self, folder: Path):
        names = read_optional(folder, "special_tokens_map.json")
        settings = read_optional(folder, "tokenizer_config.json")
        names |= {key: value for key, value in settings.items() if value is not None}
        config = read_optional(folder, "config.json")
        self.inner = reader_of(folder, names, config)
        self.folder, self.size, self.base_size = folder, self.inner.size, self.inner.base_size
        self.limit = self.size  # ids from here on do not exist for the model beside it
        self.chat_template = chat_template(folder, names)
        special = {
            kind: token_text(names.get(f"{kind}_token")) for kind in ("bos", "eos", "pad", "unk")
        }
        self.special_tokens = {f"{kind}_token": name for kind, name in special.items() if name}
        self.bos_id, self.eos_id, self.pad_id = (
            self.special_id(kind, special[kind], config) for kind in ("bos", "eos", "pad")
        )
        if settings.get("bos_token", "") is None and not special["bos"]:  # null, as Qwen's
            self.bos_id = None  # not the one of config.json
        is_opt = config.get("model_type") == "opt" and isinstance(self.inner, MergesTokenizer)
        add_bos = names.get("add_bos_token", is_opt)
        self.always_bos = self.bos_id is not None and add_bos is True

    def special_id(self, kind: str, name: str | None, config: dict) -> int | None:
        """The id of the token of this name, else what config.json says (of a list, the first)."""
        token = translate_errors(self.folder, lambda: self.inner.token_id(name)) if name else None
        if token is None:
            token = config.get(f"{kind}_token_id")
        if isinstance(token, list):
            token = token[0] if token else None
        return token if is_token_id(token) else None

    def encode(self, text: str, bos: bool = True) -> list[int]:
        """Text -> ids; bos=True adds what the model expects in front of a text."""
        try:
            text.encode()
        except UnicodeEncodeError:  # half of a surrogate pair
            raise UserError(
                f"the text {text!r:.50} is not valid Unicode and cannot be encoded"
            ) from None
        ids = translate_errors(self.folder, lambda: self.inner.encode(text, bos))
        if max(ids, default=0) >= self.limit:
            raise UserError(
                f"the tokenizer in {self.folder} makes {max(ids)} of a part of {text!r:.50}; "
                f"the model's embedding has {self.limit} rows"
            )
        if bos and self.always_bos and ids[:1] != [self.bos_id]:
            return [self.bos_id, *ids]
        return ids

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """As `encode` with bos=False, and the characters [start, end) of each token.

        Raises UserError for a tokenizer.model that changes the text.
        """
        return self.inner.encode_with_offsets(text)

    def is_special(self, token: int) -> bool:
        """Whether a token is special: the end of a text or of a turn, a role, padding."""
        return token in self.inner.special

    def fit(self, rows: int) -> None:
        """Bind it to an embedding of so many rows; added tokens may lie beyond, unused.

        Raises UserError when its vocabulary is larger.
        """
        if self.base_size > rows:
            raise UserError(
                f"{self.folder}: the tokenizer has {self.base_size} entries, "
                f"the embedding only {rows}"
            )
        for kind, number in (("bos", self.bos_id), ("eos", self.eos_id)):
            if (number or 0) >= rows:
                raise UserError(
                    f"{self.folder}: {kind}_token_id {number} is not below the vocabulary's {rows}"
                )
        if (self.pad_id or 0) >= rows:
            self.pad_id = None  # what pads hold is masked; any row will do
        self.limit, self.size = rows, min(self.size, rows)

    def decode(self, ids: Sequence[int], after: Sequence[int] = (), special: bool = False) -> str:
        """Ids -> text, without special tokens unless `special`.

        after: ids in front of them, so that a space between the two is kept.
        """
        before = list(after)[-16:]

        def text_of(part: list[int]) -> str:
            return translate_errors(self.folder, lambda: self.inner.decode(part, special))

        head, whole = text_of(before), text_of([*before, *ids])
        return whole[len(head) :] if before and whole.startswith(head) else text_of(list(ids))


def reader_of(folder: Path, names: dict, config: dict):
    """The tokenizer of a folder's files; names: what tokenizer_config.json holds."""
    for name in ("tokenizer.json", "tokenizer.model", "merges.txt", "chat_template.jinja"):
        size = resolve_inside(folder, name).stat().st_size if (folder / name).is_file() else 0
        if size > LARGEST:
            raise UserError(f"{folder / name} has {size:,} bytes, too many for a tokenizer")
    if resolve_inside(folder, "tokenizer.json").is_file():
        return FileTokenizer(folder, special_names(names), names)
    if resolve_inside(folder, "tokenizer.model").is_file():
        return SentencePieceTokenizer(folder, names)
    if resolve_inside(folder, "vocab.json").is_file():
        return MergesTokenizer(folder, special_names(names), names, config)
    raise UserError(
        f"{folder} holds no tokenizer: neither tokenizer.json, tokenizer.model, "
        "nor vocab.json with merges.txt"
    )


def read_optional(folder: Path, name: str) -> dict:
    path = resolve_inside(folder, name)
    return read_json(path) if path.is_file() else {}


def chat_template(folder: Path, names: dict) -> str | None:
    """The Jinja text that makes messages into one text, or None.

    It is a file of its own, else in tokenizer_config.json; of several there, the one named default.
    """
    path = resolve_inside(folder, "chat_template.jinja")
    if path.is_file():
        return translate_errors(path, lambda: path.read_text(encoding="utf-8"))
    template = names.get("chat_template")
    if isinstance(template, list):
        named = (entry for entry in template if isinstance(entry, dict))
        templates = (entry.get("template") for entry in named if entry.get("name") == "default")
        template = next(templates, None)
    return template if isinstance(template, str) else None


def load_tokenizer(name: str, revision: str | None = None) -> Tokenizer:
    """The tokenizer of a registry name, hub repository or folder.

    Raises UserError when its files are missing or malformed.
    """
    return Tokenizer(resolve(name, revision, need="tokenizer"))

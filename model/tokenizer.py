"""Text <-> token ids, from the tokenizer files of a checkpoint: `tokenizer.json`, sentencepiece's `tokenizer.model`, or GPT-2's
`vocab.json` with `merges.txt`."""

import codecs
import re
from pathlib import Path

from model.errors import UserError
from model.files import inside, read_json
from model.registry import resolve

LARGEST = 100_000_000  # bytes of a tokenizer's file


class FileTokenizer:
    """`tokenizer.json`, run by the `tokenizers` library. bos=True applies the file's own template of special tokens."""

    def __init__(self, folder: Path):
        from tokenizers import Tokenizer

        path = inside(folder, "tokenizer.json")
        self.inner = reading(path, lambda: Tokenizer.from_file(str(path)))
        self.inner.no_padding()
        self.inner.no_truncation()
        self.size = 1 + max(self.inner.get_vocab().values(), default=-1)
        self.base_size = 1 + max(self.inner.get_vocab(with_added_tokens=False).values(), default=-1)

    def encode(self, text: str, bos: bool = True) -> list[int]:
        return self.inner.encode(text, add_special_tokens=bos).ids

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        encoding = self.inner.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def is_special(self, token: int) -> bool:
        added = self.inner.get_added_tokens_decoder().get(token)
        return added is not None and added.special

    def decode(self, ids: list[int]) -> str:
        return self.inner.decode(ids, skip_special_tokens=True)

    def token_id(self, token: str) -> int | None:
        return self.inner.token_to_id(token)


class MergesTokenizer(FileTokenizer):
    """GPT-2's byte-level BPE as OPT and GPT-J have it: `vocab.json` and `merges.txt`; special and added tokens are never split."""

    def __init__(self, folder: Path, special: list[str], added: dict[str, int], names: dict):
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

        vocab, merges = inside(folder, "vocab.json"), inside(folder, "merges.txt")
        if not merges.is_file():
            raise UserError(f"{merges} is missing, {vocab.name} cannot be used without it")
        known = read_json(vocab)
        if not all(type(number) is int and 0 <= number < 2**31 for number in known.values()):
            raise UserError(f"{vocab} does not hold token numbers")
        self.inner = Tokenizer(reading(merges, lambda: models.BPE.from_file(str(vocab), str(merges))))
        self.inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=names.get("add_prefix_space") is True)
        self.inner.decoder = decoders.ByteLevel()
        self.inner.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special if token in known])
        self.base_size = 1 + max(known.values(), default=-1)
        for token, number in sorted(added.items(), key=lambda pair: pair[1]):
            self.inner.add_tokens([AddedToken(token, normalized=False)])
            if self.inner.token_to_id(token) != number:
                raise UserError(f"{folder / 'added_tokens.json'}: {token!r:.100} cannot have the number {number}, which does not follow the others")
        self.size = max(self.base_size, 1 + max(added.values(), default=-1))


class SentencePieceTokenizer:
    """`tokenizer.model` of LLaMA 1 and 2; bos=True puts <s> in front. Its control tokens are known in a text, as everywhere else."""

    def __init__(self, folder: Path, added: dict[str, int], names: dict):
        from sentencepiece import SentencePieceProcessor

        path = inside(folder, "tokenizer.model")
        if names.get("add_prefix_space") is False:
            raise UserError(f"{folder / 'tokenizer_config.json'}: add_prefix_space = false is not supported beside tokenizer.model")
        self.inner = reading(path, lambda: SentencePieceProcessor(model_file=str(path)))
        self.base_size = self.inner.vocab_size()
        self.size = max(self.base_size, 1 + max(added.values(), default=-1))
        special = [i for i in range(self.base_size) if self.inner.is_control(i) or self.inner.is_unknown(i)]
        self.special = {reading(path, lambda i=i: self.inner.id_to_piece(i)): i for i in special} | added
        self.bos = self.inner.bos_id() if names.get("add_bos_token") is not False else -1

    def encode(self, text: str, bos: bool = True) -> list[int]:
        ids = [self.bos] if bos and self.bos >= 0 else []
        for part in re.split("(" + "|".join(map(re.escape, self.special)) + ")", text) if self.special else [text]:
            ids += [self.special[part]] if part in self.special else self.inner.encode(part)
        return ids

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        ids: list[int] = []
        places: list[tuple[int, int]] = []
        at = 0
        for part in re.split("(" + "|".join(map(re.escape, self.special)) + ")", text) if self.special else [text]:
            if part in self.special:
                ids.append(self.special[part])
                places.append((at, at + len(part)))
            else:
                pieces = self.inner.encode(part)
                ids += pieces
                places += [(at + start, at + end) for start, end in self.places(part, pieces)]
            at += len(part)
        return ids, places

    def places(self, text: str, ids: list[int]) -> list[tuple[int, int]]:
        """The characters [start, end) of a text that each of its tokens stands for.

        A character that is several byte tokens belongs to each of them. Raises UserError for a
        model that changes the text, so that its tokens do not add up to it.
        """
        decoder = codecs.getincrementaldecoder("utf-8")()
        spelt: list[str] = []
        starts: list[int] = []
        length = 0
        for token in ids:
            piece = self.inner.id_to_piece(token)
            is_byte = self.inner.is_byte(token)  # "<0x0A>"
            new = bytes([int(piece[3:5], 16)]) if is_byte else piece.replace("\u2581", " ").encode()
            starts.append(length)
            spelt.append(decoder.decode(new))
            length += len(spelt[-1])
        prefix = length - len(text)  # the blank that sentencepiece puts in front
        if prefix not in (0, 1) or "".join(spelt)[prefix:] != text:
            raise UserError(
                "tokenizer.model changes the text that it encodes, so that the assistant's part of "
                "a chat cannot be found in its tokens: use a model with a tokenizer.json"
            )
        ends = [max(start + 1, end) for start, end in zip(starts, [*starts[1:], length], strict=True)]
        return [
            (max(start - prefix, 0), max(end - prefix, 0))
            for start, end in zip(starts, ends, strict=True)
        ]

    def is_special(self, token: int) -> bool:
        return token in self.special.values()

    def decode(self, ids: list[int]) -> str:
        return self.inner.decode([i for i in ids if i < self.base_size])

    def token_id(self, token: str) -> int | None:
        if token in self.special:
            return self.special[token]
        found = self.inner.piece_to_id(token)
        return found if self.inner.id_to_piece(found) == token else None


def reading(path: Path, read):
    """read(), with whatever a library makes of a malformed file turned into one UserError; its panics are BaseExceptions."""
    try:
        return read()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise UserError(f"{path} cannot be read: {str(error).strip().partition(chr(10))[0]:.200}") from None


class Tokenizer:
    """`.encode(text, bos=True) -> list[int]`, `.decode(ids) -> str`, `.bos_id`, `.eos_id`, `.pad_id` (None where there is none).

    The special tokens are those of the folder's tokenizer_config.json, else special_tokens_map.json, else the ids of config.json.
    What stands in front of a text is what the file's template says; with `add_bos_token`, and for OPT's `vocab.json`, it is always the BOS.
    """

    def __init__(self, folder: Path):
        names, config = read_optional(folder, "special_tokens_map.json"), read_optional(folder, "config.json")
        names |= {key: value for key, value in read_optional(folder, "tokenizer_config.json").items() if value is not None}
        special = {kind: name_of(names.get(f"{kind}_token")) for kind in ("bos", "eos", "pad", "unk")}
        added = read_optional(folder, "added_tokens.json")
        if not all(token and type(number) is int and 0 <= number < 2**31 for token, number in added.items()):
            raise UserError(f"{folder / 'added_tokens.json'} does not hold token numbers")
        for name in ("tokenizer.json", "tokenizer.model", "merges.txt"):
            if (folder / name).is_file() and inside(folder, name).stat().st_size > LARGEST:
                raise UserError(f"{folder / name} has {(folder / name).stat().st_size:,} bytes, too many for a tokenizer")
        if inside(folder, "tokenizer.json").is_file():
            self.inner = FileTokenizer(folder)
        elif names.get("add_eos_token") is True:
            raise UserError(f"{folder / 'tokenizer_config.json'}: add_eos_token = true is not supported; training puts the end behind a response by itself")
        elif inside(folder, "tokenizer.model").is_file():
            self.inner = SentencePieceTokenizer(folder, added, names)
        elif inside(folder, "vocab.json").is_file():
            self.inner = MergesTokenizer(folder, list(dict.fromkeys(filter(None, special.values()))), added, names)
        else:
            raise UserError(f"{folder} holds no tokenizer: neither tokenizer.json, tokenizer.model, nor vocab.json with merges.txt")
        self.folder, self.size, self.base_size = folder, self.inner.size, self.inner.base_size
        self.limit = self.size  # ids from here on do not exist for the model beside it
        self.chat_template = chat_template(folder, names)
        self.special_tokens = {f"{kind}_token": name for kind, name in special.items() if name}
        self.bos_id, self.eos_id, self.pad_id = (self.special_id(kind, special[kind], config) for kind in ("bos", "eos", "pad"))
        is_opt = config.get("model_type") == "opt" and isinstance(self.inner, MergesTokenizer)
        self.always_bos = self.bos_id is not None and names.get("add_bos_token", is_opt) is True

    def special_id(self, kind: str, name: str | None, config: dict) -> int | None:
        found = reading(self.folder, lambda: self.inner.token_id(name)) if name else None
        if found is None:
            found = config.get(f"{kind}_token_id")
        if isinstance(found, list):
            found = found[0] if found else None
        return found if type(found) is int and found >= 0 else None

    def encode(self, text: str, bos: bool = True) -> list[int]:
        """Text -> ids; bos=True adds what the model expects in front of a text, bos=False never adds anything."""
        try:
            text.encode()
        except UnicodeEncodeError:  # half of a surrogate pair
            raise UserError(f"the text {text!r:.50} is no valid Unicode and cannot be made into tokens") from None
        ids = reading(self.folder, lambda: self.inner.encode(text, bos))
        if max(ids, default=0) >= self.limit:
            raise UserError(f"the tokenizer in {self.folder} makes {max(ids)} of a part of {text!r:.50}; the model's embedding has {self.limit} rows")
        return [self.bos_id, *ids] if bos and self.always_bos and ids[:1] != [self.bos_id] else ids

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """As `encode` with bos=False, and the characters [start, end) that each token stands for."""
        return self.inner.encode_with_offsets(text)

    def is_special(self, token: int) -> bool:
        """Whether a token is special: the end of a text or of a turn, a role, padding."""
        return self.inner.is_special(token)

    def fit(self, rows: int) -> None:
        """Bind it to an embedding of so many rows. Raises UserError when its vocabulary is larger; added tokens may lie beyond, unused."""
        if self.base_size > rows:
            raise UserError(f"{self.folder}: the tokenizer has {self.base_size} entries, the embedding only {rows}")
        for kind in ("bos", "eos"):
            if (getattr(self, f"{kind}_id") or 0) >= rows:
                raise UserError(f"{self.folder}: {kind}_token_id {getattr(self, f'{kind}_id')} is not below the vocabulary's {rows}")
        if (self.pad_id or 0) >= rows:
            self.pad_id = None  # what pads hold is masked; any row will do
        self.limit, self.size = rows, min(self.size, rows)

    def decode(self, ids: list[int], after: list[int] = ()) -> str:
        """Ids -> text, special tokens left out. `after`: ids in front of them, so that a space between the two is kept."""
        before = list(after)[-16:]
        head, whole, alone = (reading(self.folder, lambda part=part: self.inner.decode(part)) for part in (before, [*before, *ids], list(ids)))
        return whole[len(head) :] if before and whole.startswith(head) else alone


def read_optional(folder: Path, name: str) -> dict:
    path = inside(folder, name)
    return read_json(path) if path.is_file() else {}


def chat_template(folder: Path, names: dict) -> str | None:
    """The Jinja text that makes messages into one text: a file of its own, else what tokenizer_config.json has, of several the default one."""
    path = inside(folder, "chat_template.jinja")
    if path.is_file():
        return reading(path, lambda: path.read_text(encoding="utf-8"))
    found = names.get("chat_template")
    if isinstance(found, list):
        found = next((one.get("template") for one in found if isinstance(one, dict) and one.get("name") == "default"), None)
    return found if isinstance(found, str) else None


def name_of(token) -> str | None:
    """The text of a special token: a string, or how transformers 4 wrote an AddedToken."""
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def load_tokenizer(name: str, revision: str | None = None) -> Tokenizer:
    """The tokenizer of a registry name, hub repository or folder. Raises UserError when its files are missing or malformed."""
    return Tokenizer(resolve(name, revision, need="tokenizer"))

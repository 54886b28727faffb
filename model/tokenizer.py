"""Text <-> token ids, from the tokenizer files of a checkpoint: `tokenizer.json`, sentencepiece's `tokenizer.model`, or GPT-2's
`vocab.json` with `merges.txt`."""

import re
from pathlib import Path

from model.errors import UserError
from model.files import inside, read_json
from model.registry import resolve


class FileTokenizer:
    """`tokenizer.json`, run by the `tokenizers` library. bos=True applies the file's own template of special tokens."""

    def __init__(self, folder: Path):
        from tokenizers import Tokenizer

        path = inside(folder, "tokenizer.json")
        self.inner = reading(path, lambda: Tokenizer.from_file(str(path)))
        self.inner.no_padding()
        self.inner.no_truncation()
        self.size = 1 + max(self.inner.get_vocab().values(), default=-1)

    def encode(self, text: str, bos: bool = True) -> list[int]:
        return self.inner.encode(text, add_special_tokens=bos).ids

    def decode(self, ids: list[int]) -> str:
        return self.inner.decode(ids, skip_special_tokens=True)

    def token_id(self, token: str) -> int | None:
        return self.inner.token_to_id(token)


class MergesTokenizer(FileTokenizer):
    """GPT-2's byte-level BPE as OPT and GPT-J have it: `vocab.json` and `merges.txt`; `special` are tokens that are never split."""

    def __init__(self, folder: Path, special: list[str]):
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

        vocab, merges = inside(folder, "vocab.json"), inside(folder, "merges.txt")
        if not merges.is_file():
            raise UserError(f"{merges} is missing, {vocab.name} cannot be used without it")
        known = read_json(vocab)
        if not all(type(number) is int and 0 <= number < 2**31 for number in known.values()):
            raise UserError(f"{vocab} does not hold token numbers")
        self.inner = Tokenizer(reading(merges, lambda: models.BPE.from_file(str(vocab), str(merges))))
        self.inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self.inner.decoder = decoders.ByteLevel()
        self.inner.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special if token in known])
        self.size = 1 + max(known.values(), default=-1)


class SentencePieceTokenizer:
    """`tokenizer.model` of LLaMA 1 and 2; bos=True puts <s> in front. Its control tokens are known in a text, as everywhere else."""

    def __init__(self, folder: Path):
        from sentencepiece import SentencePieceProcessor

        path = inside(folder, "tokenizer.model")
        self.inner = reading(path, lambda: SentencePieceProcessor(model_file=str(path)))
        self.size = self.inner.vocab_size()
        special = [i for i in range(self.size) if self.inner.is_control(i) or self.inner.is_unknown(i)]
        self.special = {self.inner.id_to_piece(i): i for i in special}

    def encode(self, text: str, bos: bool = True) -> list[int]:
        ids = [self.inner.bos_id()] if bos and self.inner.bos_id() >= 0 else []
        for part in re.split("(" + "|".join(map(re.escape, self.special)) + ")", text) if self.special else [text]:
            ids += [self.special[part]] if part in self.special else self.inner.encode(part)
        return ids

    def decode(self, ids: list[int]) -> str:
        return self.inner.decode(ids)

    def token_id(self, token: str) -> int | None:
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
    What stands in front of a text is what the file's template says; with `add_bos_token`, and for OPT, it is always the BOS.
    """

    def __init__(self, folder: Path):
        names, config = read_optional(folder, "special_tokens_map.json"), read_optional(folder, "config.json")
        names |= {key: value for key, value in read_optional(folder, "tokenizer_config.json").items() if value is not None}
        special = {kind: name_of(names.get(f"{kind}_token")) for kind in ("bos", "eos", "pad", "unk")}
        if inside(folder, "tokenizer.json").is_file():
            self.inner = FileTokenizer(folder)
        elif inside(folder, "tokenizer.model").is_file():
            self.inner = SentencePieceTokenizer(folder)
        elif inside(folder, "vocab.json").is_file():
            self.inner = MergesTokenizer(folder, list(dict.fromkeys(filter(None, special.values()))))
        else:
            raise UserError(f"{folder} holds no tokenizer: neither tokenizer.json, tokenizer.model, nor vocab.json with merges.txt")
        self.size = self.inner.size
        self.bos_id, self.eos_id, self.pad_id = (self.special_id(kind, special[kind], config) for kind in ("bos", "eos", "pad"))
        self.always_bos = self.bos_id is not None and names.get("add_bos_token", config.get("model_type") == "opt") is True

    def special_id(self, kind: str, name: str | None, config: dict) -> int | None:
        found = self.inner.token_id(name) if name else None
        if found is None:
            found = config.get(f"{kind}_token_id")
        if isinstance(found, list):
            found = found[0] if found else None
        return found if type(found) is int and found >= 0 else None

    def encode(self, text: str, bos: bool = True) -> list[int]:
        """Text -> ids; bos=True adds what the model expects in front of a text, bos=False never adds anything."""
        ids = self.inner.encode(text, bos)
        return [self.bos_id, *ids] if bos and self.always_bos and ids[:1] != [self.bos_id] else ids

    def decode(self, ids: list[int], after: list[int] = ()) -> str:
        """Ids -> text, special tokens left out. `after`: ids in front of them, so that a space between the two is kept."""
        before = list(after)[-16:]
        head, whole = self.inner.decode(before), self.inner.decode([*before, *ids])
        return whole[len(head) :] if before and whole.startswith(head) else self.inner.decode(list(ids))


def read_optional(folder: Path, name: str) -> dict:
    path = inside(folder, name)
    return read_json(path) if path.is_file() else {}


def name_of(token) -> str | None:
    """The text of a special token: a string, or how transformers 4 wrote an AddedToken."""
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def load_tokenizer(name: str, revision: str | None = None) -> Tokenizer:
    """The tokenizer of a registry name, hub repository or folder. Raises UserError when its files are missing or malformed."""
    return Tokenizer(resolve(name, revision, need="tokenizer"))

"""Text <-> token ids, from the tokenizer files of a checkpoint: `tokenizer.json` or sentencepiece's `tokenizer.model`."""

from pathlib import Path

from model.errors import UserError
from model.files import read_json
from model.registry import resolve


class FileTokenizer:
    """`tokenizer.json`, run by the `tokenizers` library. bos=True applies the file's own template of special tokens."""

    def __init__(self, folder: Path):
        from tokenizers import Tokenizer

        path = folder / "tokenizer.json"
        try:
            self.inner = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception for a malformed file
            raise UserError(f"{path} cannot be read: {error}") from None
        self.inner.no_padding()
        self.inner.no_truncation()
        self.size = self.inner.get_vocab_size()

    def encode(self, text: str, bos: bool = True) -> list[int]:
        return self.inner.encode(text, add_special_tokens=bos).ids

    def decode(self, ids: list[int]) -> str:
        return self.inner.decode(ids, skip_special_tokens=True)

    def token_id(self, token: str) -> int | None:
        return self.inner.token_to_id(token)


class SentencePieceTokenizer:
    """`tokenizer.model` of LLaMA 1 and 2; bos=True puts <s> in front."""

    def __init__(self, folder: Path):
        from sentencepiece import SentencePieceProcessor

        path = folder / "tokenizer.model"
        try:
            self.inner = SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError) as error:
            raise UserError(f"{path} cannot be read: {error}") from None
        self.size = self.inner.vocab_size()

    def encode(self, text: str, bos: bool = True) -> list[int]:
        return self.inner.encode(text, add_bos=bos)

    def decode(self, ids: list[int]) -> str:
        return self.inner.decode(ids)

    def token_id(self, token: str) -> int | None:
        found = self.inner.piece_to_id(token)
        return found if self.inner.id_to_piece(found) == token else None


class Tokenizer:
    """`.encode(text, bos=True) -> list[int]`, `.decode(ids) -> str`, `.bos_id`, `.eos_id`, `.pad_id` (None where there is none).

    The special ids are those of the folder's tokenizer_config.json, else of its config.json.
    """

    def __init__(self, folder: Path):
        if (folder / "tokenizer.json").is_file():
            self.inner = FileTokenizer(folder)
        elif (folder / "tokenizer.model").is_file():
            self.inner = SentencePieceTokenizer(folder)
        else:
            raise UserError(f"{folder} holds no tokenizer: neither tokenizer.json nor tokenizer.model")
        self.size = self.inner.size
        names = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
        config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
        self.bos_id = self.special("bos", names, config)
        self.eos_id = self.special("eos", names, config)
        self.pad_id = self.special("pad", names, config)

    def special(self, kind: str, names: dict, config: dict) -> int | None:
        token = names.get(f"{kind}_token")
        if isinstance(token, dict):  # how transformers 4 wrote an AddedToken
            token = token.get("content")
        if isinstance(token, str):
            found = self.inner.token_id(token)
            if found is not None:
                return found
        found = config.get(f"{kind}_token_id")
        if isinstance(found, list):
            found = found[0] if found else None
        return found if isinstance(found, int) and found >= 0 else None

    def encode(self, text: str, bos: bool = True) -> list[int]:
        """Text -> ids; bos=True adds what the model expects in front of a text, bos=False never adds anything."""
        return self.inner.encode(text, bos)

    def decode(self, ids: list[int]) -> str:
        """Ids -> text, special tokens left out."""
        return self.inner.decode(list(ids))


def load_tokenizer(name: str, revision: str | None = None) -> Tokenizer:
    """The tokenizer of a registry name, hub repository or folder. Raises UserError when its files are missing or malformed."""
    return Tokenizer(resolve(name, revision, weights=False))

"""Tokens that are never split: special tokens and those that were added to a vocabulary."""

from dataclasses import dataclass
from pathlib import Path

from files.errors import UserError
from files.reading import read_json, resolve_inside
from model.tokenizer_bounds import ADDED


@dataclass(frozen=True)
class AddedToken:
    """A token that is never split.

    special: decoding leaves it out (None: the files do not say). lstrip, rstrip: it takes the white
    space on its left or right with it.
    """

    text: str
    id: int
    special: bool | None = None
    lstrip: bool = False
    rstrip: bool = False


def read_added_tokens(folder: Path, names: dict) -> list[AddedToken]:
    """The tokens of added_tokens.json and of added_tokens_decoder in tokenizer_config.json, by id.

    names: what tokenizer_config.json holds. Raises UserError for malformed ones.
    """
    path = resolve_inside(folder, "added_tokens.json")
    ids = read_json(path) if path.is_file() else {}
    if not all(token and is_token_id(number) for token, number in ids.items()):
        raise UserError(f"{path} does not hold token numbers")
    tokens = {number: AddedToken(token, number) for token, number in ids.items()}
    where = f"{folder / 'tokenizer_config.json'}: added_tokens_decoder"
    table = names.get("added_tokens_decoder") or {}
    if not isinstance(table, dict):
        raise UserError(f"{where} should be a table of tokens by number, not {table!r:.100}")
    for key, entry in table.items():
        number = int(key) if key.isascii() and key.isdigit() and len(key) < 11 else -1
        text = entry.get("content") if isinstance(entry, dict) else None
        if not is_token_id(number) or not text or not isinstance(text, str):
            raise UserError(f"{where} has {key!r:.50}: {entry!r:.100}, not a number and its token")
        flags = {flag: entry.get(flag) is True for flag in ("special", "lstrip", "rstrip")}
        tokens[number] = AddedToken(text, number, **flags)
    if (length := sum(len(token.text) for token in tokens.values())) > ADDED:
        raise UserError(f"{folder}: its added tokens have {length:,} characters: too many")
    return [tokens[number] for number in sorted(tokens)]


def is_token_id(number) -> bool:
    """Whether it is an integer from 0 to 2^31 - 1."""
    return type(number) is int and 0 <= number < 2**31


def special_names(names: dict) -> set[str]:
    """The special tokens that tokenizer_config.json names, as bos_token, unk_token or any other."""
    tokens = [value for key, value in names.items() if key.endswith("_token")]
    for key in ("additional_special_tokens", "extra_special_tokens"):
        more = names.get(key)
        if isinstance(more, dict | list):
            tokens += more.values() if isinstance(more, dict) else more
    return {text for token in tokens if (text := token_text(token))}


def token_text(token) -> str | None:
    """The text of a special token: a string, or an AddedToken as transformers writes it."""
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None

"""Settings as TOML text, and back."""

import json
import re
import tomllib
from pathlib import Path

from files.errors import UserError


def read_toml(path: Path) -> dict:
    """A TOML file as a dictionary. Raises UserError naming the file."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except IsADirectoryError:
        raise UserError(
            f"{path} is a folder: give a TOML file, such as {path / 'run.toml'}"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as TOML: {error}") from None


def parse_set(text: str) -> dict:
    """`train.clip=0.5` -> {"train": {"clip": 0.5}}; the value is TOML or plain text.

    Raises UserError.
    """
    path, sign, value = text.partition("=")
    if not sign or not path.strip():
        raise UserError(f"--set {text!r} should be KEY=VALUE, for example adapter.size=64")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    except (ValueError, RecursionError) as error:  # thousands of digits or brackets
        raise UserError(f"--set {text:.50}... cannot be read: {error!s:.100}") from None
    for key in reversed(path.strip().split(".")):
        parsed = {key: parsed}
    return parsed


def table_text(table: dict) -> str:
    """A dictionary as TOML."""
    table = dict(table)
    tables = {key: table.pop(key) for key in list(table) if isinstance(table[key], dict)}
    lines = [f"{key} = {toml_value(value)}" for key, value in table.items()]
    for name, inner in tables.items():
        lines += [
            "",
            f"[{name}]",
            *(f"{toml_key(key)} = {toml_value(value)}" for key, value in inner.items()),
        ]
    return "\n".join(lines) + "\n"


def toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key, ensure_ascii=False)


def toml_value(value) -> str:
    """A value as TOML. JSON writes strings, booleans, numbers and lists the same way; a table is
    written in one line."""
    if isinstance(value, dict):
        pairs = (f"{toml_key(key)} = {toml_value(inner)}" for key, inner in value.items())
        return f"{{ {', '.join(pairs)} }}"
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)

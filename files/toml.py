"""Settings as TOML text, and back."""

import json
import re
import tomllib
from pathlib import Path

from files.errors import UserError

LONGEST = 2_000_000  # bytes of a file; the run.toml of a run has 2,000


def read_toml(path: Path) -> dict:
    """A TOML file as a dictionary. Raises UserError naming the file."""
    try:
        with open(path, "rb") as file:  # also a pipe or a device, which have no size to look at
            content = file.read(LONGEST + 1)
        if len(content) > LONGEST:
            raise ValueError(f"it has more than {LONGEST:,} bytes")
        return in_64_bits(tomllib.loads(content.decode("utf-8")))
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
        parsed = in_64_bits(tomllib.loads(f"value = {value}")["value"])
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    except (ValueError, RecursionError) as error:  # thousands of digits or brackets
        raise UserError(f"--set {text:.50}... cannot be read as TOML: {error!s:.100}") from None
    for key in reversed(path.strip().split(".")):
        parsed = {key: parsed}
    return parsed


def flat(table: dict, path: str = "") -> dict:
    """{"adapter": {"r": 4}} -> {"adapter.r": 4}."""
    values = {}
    for key, value in table.items():
        values |= flat(value, f"{path}{key}.") if isinstance(value, dict) else {path + key: value}
    return values


def in_64_bits(value):
    """The value of a TOML text. Raises ValueError for an integer of more than 64 bits, which TOML
    does not have: Python reads it, but cannot print it if it is long."""
    if type(value) is int and not -(2**63) <= value < 2**63:
        raise ValueError("an integer has more than 64 bits")
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for one in inner:
        in_64_bits(one)
    return value


def table_text(table: dict) -> str:
    """A dictionary as TOML."""
    table = dict(table)
    tables = {key: table.pop(key) for key in list(table) if isinstance(table[key], dict)}
    lines = [f"{key} = {toml_value(value)}" for key, value in table.items()]
    for name, inner in tables.items():
        lines += ["", f"[{name}]"]
        lines += [f"{toml_key(key)} = {toml_value(value)}" for key, value in inner.items()]
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

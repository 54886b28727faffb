"""Reading JSON, and finding the files of a checkpoint."""

import json
from contextlib import suppress
from pathlib import Path

from files.errors import UserError

LONGEST_JSON = 20_000_000  # bytes; the largest published indexes and headers have a tenth of it
MOST_SHARDS = 10_000
MOST = 150_000_000  # bytes that the values of a text may take in Python, beside 16 for a character
JSON_SIGNS = {"{": 200, "[": 72, ",": 60, "\n": 60, '"': 25}  # bytes that values take, a sign


def read_json(path: Path) -> dict:
    """A JSON object from a file, or UserError naming the file."""
    try:
        if (size := path.stat().st_size) > LONGEST_JSON:
            raise UserError(f"{path} has {size:,} bytes, too many for what it should hold")
        text = read_file(path).decode("utf-8")
        check_expansion(path, text)
        value = json.loads(text, object_pairs_hook=reject_duplicate_keys)
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except UserError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}, not a JSON object")
    return value


def json_lines(path: Path) -> list[dict]:
    """The objects of a file of JSON lines, none of a file that is missing.

    A line that a kill or a failing disk cut short is passed over.
    """
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    found = []
    for line in text.split("\n"):
        with suppress(ValueError, RecursionError):
            found.append(json.loads(line))
    return [entry for entry in found if isinstance(entry, dict)]


def read_file(path: Path) -> bytes:
    """All of a file. Raises UserError for a pipe or a device, which may have no end; OSError."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UserError(f"{path} is not a file")
    return path.read_bytes()


def check_expansion(path: Path, text: str, signs: dict[str, int] = JSON_SIGNS) -> None:
    """Raise UserError for a text whose values would take far more memory than it has characters.

    signs: what begins or ends a value, and the bytes that this value takes at most.
    """
    bytes_needed = sum(text.count(sign) * size for sign, size in signs.items())
    if bytes_needed > MOST + 16 * len(text):
        raise UserError(
            f"{path} has {len(text):,} characters and expands to too many values: "
            f"about {bytes_needed / 1e6:,.0f} MB"
        )


def resolve_inside(folder: Path, name: str) -> Path:
    """folder/name. Raises UserError for a link out of the folder, except the hub cache's own."""
    path = folder / name
    try:
        real, home = path.resolve(), folder.resolve()
    except (OSError, RuntimeError) as error:  # a circle of links
        raise UserError(f"{path} cannot be read: {error}") from None
    caches = [up.parent / "blobs" for up in home.parents if up.name == "snapshots"]
    in_cache = any(real.is_relative_to(blobs) for blobs in caches)
    if not (real.is_relative_to(home) or in_cache):
        raise UserError(
            f"{path} is a link to {real}, outside the model's folder: copy the file itself there"
        )
    if real.exists() and not real.is_file():
        raise UserError(f"{path} is not a file")
    return path


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a checkpoint, inside the folder: one file, or the shards of its index.

    safetensors are preferred to torch's .bin. Raises UserError.
    """
    for single in ("model.safetensors", "pytorch_model.bin"):
        if (folder / single).exists() or (folder / single).is_symlink():
            return [resolve_inside(folder, single)]
        index = resolve_inside(folder, f"{single}.index.json")
        if index.is_file():
            shards = [resolve_inside(folder, name) for name in shard_names(index)]
            for path in shards:
                if not path.is_file():
                    raise UserError(
                        f"{path} is missing: the index names it, the download may be incomplete"
                    )
            return shards
    raise UserError(
        f"{folder} holds neither model.safetensors nor pytorch_model.bin, nor an index of shards"
    )


def shard_names(index: Path) -> list[str]:
    """The files that an index names. Raises UserError for a name with a folder in it."""
    table = read_json(index).get("weight_map")
    listed = list(table.values()) if isinstance(table, dict) else []
    if not listed or not all(isinstance(name, str) for name in listed):
        raise UserError(f"{index}: weight_map is missing or malformed")
    ending, names = index.name.removesuffix(".index.json").rpartition(".")[2], sorted(set(listed))
    if len(names) > MOST_SHARDS:
        raise UserError(f"{index} names {len(names):,} files, too many for a checkpoint")
    for name in names:
        if Path(name).name != name or not name.endswith(f".{ending}") or "\0" in name:
            raise UserError(
                f"{index} names {name!r:.200}, which is not a .{ending} file of this folder"
            )
    return names


def reject_duplicate_keys(pairs: list[tuple]) -> dict:
    """A JSON object. Raises ValueError for a key that occurs twice."""
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key is there twice")
    return table

"""Files: JSON, tensors read one at a time from safetensors, and writing that leaves a whole file or none."""

import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from model.errors import UserError

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}
LONGEST_HEADER = 100_000_000  # bytes, as the format itself sets it


def read_json(path: Path) -> dict:
    """A JSON object from a file, or UserError naming the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=distinct)
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}, not a JSON object")
    return value


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint: one file, or the shards its index names (inside the folder only)."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if not index.is_file():
        raise UserError(f"{folder} holds neither model.safetensors nor model.safetensors.index.json")
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise UserError(f"{index}: weight_map is missing or malformed")
    shards = sorted(set(names.values()))
    for name in shards:
        if not name or Path(name).name != name:
            raise UserError(f"{index} names {name!r}, which is not a file of this folder")
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing: the index names it, the download may be incomplete")
    return [folder / name for name in shards]


def tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of every file of the checkpoint; each tensor is read when it is asked for, into memory of its own."""
    for path in weight_files(folder):
        try:
            with open(path, "rb") as file:
                for name, dtype, shape, start, end in read_header(file, path):
                    raw = torch.empty(end - start, dtype=torch.uint8)
                    file.seek(start)
                    if end > start and file.readinto(memoryview(raw.numpy())) != end - start:
                        raise UserError(f"{path} ends before tensor {name!r} does")
                    yield name, raw.view(dtype).view(shape)
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error}") from None


def read_header(file, path: Path) -> list[tuple[str, torch.dtype, list[int], int, int]]:
    """(name, dtype, shape, first byte, end byte) of each tensor of a safetensors file, in the order of the bytes.

    The format: 8 bytes with the header's length, a JSON header, the data. The library's own reader holds the whole file in memory,
    a second copy of the model; this one lets a tensor be read alone. Raises UserError unless the tensors fill the data exactly.
    """
    size = path.stat().st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, LONGEST_HEADER):
        raise UserError(f"{path} cannot be read: it is cut short, or no safetensors file")
    try:
        header = json.loads(file.read(length), object_pairs_hook=distinct)
        header.pop("__metadata__", None)
        entries = [(name, DTYPES[one["dtype"]], one["shape"], *one["data_offsets"]) for name, one in header.items()]
        entries.sort(key=lambda entry: entry[3:])
        at = 0
        for name, dtype, shape, start, end in entries:
            count = math.prod(shape)
            if not all(type(n) is int and n >= 0 for n in (*shape, start, end)) or start != at or end - start != count * dtype.itemsize:
                raise UserError(f"{path}: tensor {name!r} has a shape and an extent that do not fit")
            at = end
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError, AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} cannot be read: its header is malformed ({type(error).__name__}: {error})") from None
    if 8 + length + at != size:
        raise UserError(f"{path} cannot be read: it holds {size - 8 - length} bytes of data, its header describes {at}")
    return [(name, dtype, shape, 8 + length + start, 8 + length + end) for name, dtype, shape, start, end in entries]


def distinct(pairs: list[tuple]) -> dict:
    """A JSON object whose keys occur once."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call write(temporary path), then fsync and rename it to `path`; a kill at any moment leaves the old file or the new one.

    Raises UserError naming the path when the disk is full or the folder cannot be written; the old file stays.
    """
    for stray in path.parent.glob(f".{path.name}.*.tmp"):  # of a process that was killed
        stray.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.rename(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch reports a full disk as RuntimeError
        raise UserError(f"cannot write {path}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """A whole text file, atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def make_folder(path: Path) -> None:
    """The folder and those above it. Raises UserError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {path}: {error}") from None

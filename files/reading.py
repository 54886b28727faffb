"""Files: JSON, tensors read one at a time from safetensors."""

import ctypes
import json
import math
import mmap
import pickle
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from files.errors import UserError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
LONGEST_JSON = 20_000_000  # bytes; the largest published indexes and headers have a tenth of it
MOST_SHARDS = 10_000


def read_json(path: Path) -> dict:
    """A JSON object from a file, or UserError naming the file."""
    try:
        if path.stat().st_size > LONGEST_JSON:
            raise UserError(
                f"{path} has {path.stat().st_size:,} bytes, too many for what it should hold"
            )
        value = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=distinct)
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except UserError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}, not a JSON object")
    return value


def inside(folder: Path, name: str) -> Path:
    """folder/name. Raises UserError where a link leads out of the folder (but for the hub cache's own links to its blobs)."""
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
    """The weights of a checkpoint, inside the folder only: one file or the shards its index names; safetensors before torch's .bin."""
    for single in ("model.safetensors", "pytorch_model.bin"):
        if (folder / single).exists() or (folder / single).is_symlink():
            return [inside(folder, single)]
        index = inside(folder, f"{single}.index.json")
        if index.is_file():
            shards = [inside(folder, name) for name in shard_names(index)]
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
    """The files that an index names. Raises UserError for a name that is no plain file beside it."""
    names = read_json(index).get("weight_map")
    if (
        not isinstance(names, dict)
        or not names
        or not all(isinstance(name, str) for name in names.values())
    ):
        raise UserError(f"{index}: weight_map is missing or malformed")
    ending = index.name.removesuffix(".index.json").rpartition(".")[2]
    if len(set(names.values())) > MOST_SHARDS:
        raise UserError(
            f"{index} names {len(set(names.values())):,} files, too many for a checkpoint"
        )
    for name in set(names.values()):
        if Path(name).name != name or not name.endswith(f".{ending}") or "\0" in name:
            raise UserError(
                f"{index} names {name!r:.200}, which is not a .{ending} file of this folder"
            )
    return sorted(set(names.values()))


def tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of every file of the checkpoint; each tensor is read when it is asked for, into memory of its own."""
    for path in weight_files(folder):
        yield from safetensors(path) if path.suffix == ".safetensors" else torch_tensors(path)


def torch_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a file that torch.save wrote, through torch's unpickler that builds tensors and nothing else.

    The file is mapped, not read, where its format allows. Raises UserError for a file that holds anything but plain tensors by name.
    """
    try:
        mapped = zipfile.is_zipfile(path)
        if mapped and any(
            entry.compress_type != zipfile.ZIP_STORED for entry in zipfile.ZipFile(path).infolist()
        ):
            raise UserError(f"{path} is compressed, torch's own files are not")
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is refused, it holds more than tensors: {str(error).strip().splitlines()[-1]:.200}"
        ) from None
    except Exception as error:  # whatever a broken pickle makes torch raise
        raise UserError(
            f"{path} cannot be read: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]:.200}"
        ) from None
    if not isinstance(found, dict):
        raise UserError(f"{path} holds a {type(found).__name__}, not tensors by name")
    for name in list(found):
        tensor = found.pop(name)
        if (
            not isinstance(name, str)
            or not isinstance(tensor, Tensor)
            or tensor.layout != torch.strided
            or tensor.is_quantized
            or tensor.is_meta
        ):
            raise UserError(f"{path}: entry {name!r:.100} is not a plain tensor")
        if tensor.numel() > max(1, tensor.untyped_storage().nbytes() // tensor.itemsize):
            raise UserError(
                f"{path}: tensor {name!r:.100} repeats its elements {list(tensor.shape)}"
            )
        copy = tensor.detach().clone(memory_format=torch.contiguous_format)
        if mapped:
            forget(tensor)
        yield name, copy


def forget(tensor: Tensor) -> None:
    """Let go of the mapped pages behind a tensor that was copied, where the system can: they would count as a second model."""
    if sys.platform == "linux":
        page = mmap.PAGESIZE
        start = -(-tensor.untyped_storage().data_ptr() // page) * page
        length = tensor.untyped_storage().data_ptr() + tensor.untyped_storage().nbytes() - start
        if length > 0:
            ctypes.CDLL(None).madvise(
                ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_DONTNEED
            )


def safetensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of one safetensors file, in the order of its bytes."""
    try:
        with open(path, "rb") as file:
            for name, dtype, shape, start, end in read_header(file, path):
                raw = torch.empty(end - start, dtype=torch.uint8)
                file.seek(start)
                if end > start and file.readinto(memoryview(raw.numpy())) != end - start:
                    raise UserError(f"{path} ends before tensor {name!r} does")
                yield name, raw.view(dtype).view(shape)
                del raw  # before there is room made for the next
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def read_header(file, path: Path) -> list[tuple[str, torch.dtype, list[int], int, int]]:
    """(name, dtype, shape, first byte, end byte) of each tensor of a safetensors file, in the order of the bytes.

    The format: 8 bytes with the header's length, a JSON header, the data. The library's own reader holds the whole file in memory,
    a second copy of the model; this one lets a tensor be read alone. Raises UserError unless the tensors fill the data exactly.
    """
    size = path.stat().st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, LONGEST_JSON):
        raise UserError(f"{path} cannot be read: it is cut short, or no safetensors file")
    try:
        header = json.loads(file.read(length), object_pairs_hook=distinct)
        header.pop("__metadata__", None)
        entries = [
            (name, DTYPES[one["dtype"]], one["shape"], *one["data_offsets"])
            for name, one in header.items()
        ]
        entries.sort(key=lambda entry: entry[3:])  # what cannot be compared raises TypeError
        at = 0
        for name, dtype, shape, start, end in entries:
            numbers_fit = len(shape) <= 8 and all(
                type(n) is int and 0 <= n < 2**62 for n in (*shape, start, end)
            )
            if not numbers_fit or start != at or end - start != math.prod(shape) * dtype.itemsize:
                raise UserError(
                    f"{path}: tensor {name!r:.200} has a shape and an extent that do not fit"
                )
            at = end
    except (
        UnicodeDecodeError,
        json.JSONDecodeError,
        RecursionError,
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
    ) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{path} cannot be read: its header is malformed ({type(error).__name__}: {error})"
        ) from None
    if 8 + length + at != size:
        raise UserError(
            f"{path} cannot be read: it holds {size - 8 - length} bytes of data, its header describes {at}"
        )
    return [
        (name, dtype, shape, 8 + length + start, 8 + length + end)
        for name, dtype, shape, start, end in entries
    ]


def distinct(pairs: list[tuple]) -> dict:
    """A JSON object whose keys occur once."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found

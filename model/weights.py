"""Tensors from the files of a checkpoint, one at a time: the model is never in memory twice."""

import ctypes
import math
import mmap
import pickle
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from files.errors import UserError
from files.pickles import check_pickle, is_zip
from files.reading import LONGEST_JSON, weight_files

DTYPES = {  # that are read and written
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
}


def tensors(folder: Path, most: float = math.inf) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of every weight file of a checkpoint, each read when it is asked for.

    most: elements that a tensor may have; one of more is an error before there is memory for it.
    """
    for path in weight_files(folder):
        read = safetensors if path.suffix == ".safetensors" else torch_tensors
        yield from read(path, most)


def check_elements(path: Path, name: str, shape: Sequence[int], most: float) -> None:
    """Raise UserError for a tensor of more than `most` elements."""
    if math.prod(shape) > most:
        raise UserError(
            f"{path}: tensor {name!r:.200} is {list(shape)}, which is larger than all that the "
            f"model has a place for ({most:,} elements)"
        )


def safetensors(path: Path, most: float = math.inf) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of one safetensors file, in the order of its bytes; most: see `tensors`.

    The library maps the file. Each tensor is copied part by part and the mapped pages are dropped,
    or they would count as a second model. Raises UserError for a malformed file.
    """
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
        if length > LONGEST_JSON:
            raise UserError(f"{path} cannot be read: its header has {length:,} bytes")
        with safe_open(path, "pt") as file:
            for name in file.offset_keys():
                try:
                    check_elements(path, name, file.get_slice(name).get_shape(), most)
                    tensor = file.get_tensor(name)
                except (RuntimeError, TypeError, OverflowError) as error:  # no memory is taken here
                    raise UserError(f"{path}: tensor {name!r:.200}: {error}") from None
                if tensor.dtype not in DTYPES:
                    raise UserError(f"{path}: tensor {name!r:.200} is stored as {tensor.dtype}")
                copy = torch.empty_like(tensor)
                for new, old in zip(parts_of(copy), parts_of(tensor), strict=True):
                    new.copy_(old)
                    drop_mapped_pages(tensor)
                del new, old, tensor
                yield name, copy
                del copy  # before there is memory for the next
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read: {error!s:.200}") from None


def torch_tensors(path: Path, most: float = math.inf) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of a file written by torch.save, read by torch's weights_only unpickler.

    The file is mapped where its format allows. most: see `tensors`. Raises UserError unless it
    holds plain tensors by name and nothing else.
    """
    check_pickle(path)
    mapped = is_zip(path)
    try:
        table = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        line = str(error).strip().partition("\n")[0]
        raise UserError(f"{path} is refused, it holds more than tensors: {line:.200}") from None
    except Exception as error:  # whatever a broken pickle makes torch raise
        message = str(error).strip().partition("\n")[0]
        line = f"{type(error).__name__}: {message:.200}"
        raise UserError(f"{path} cannot be read: {line}") from None
    if not isinstance(table, dict):
        raise UserError(f"{path} holds a {type(table).__name__}, not tensors by name")
    for name in list(table):
        tensor = table.pop(name)
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
        check_elements(path, name, tensor.shape, most)
        copy = tensor.detach().clone(memory_format=torch.contiguous_format)
        if mapped:
            drop_mapped_pages(tensor)
        yield name, copy


def parts_of(tensor: Tensor) -> tuple[Tensor, ...]:
    """A contiguous tensor in parts of at most a million elements."""
    return tensor.flatten().split(2**20)


@cache
def libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def drop_mapped_pages(tensor: Tensor) -> None:
    """Free the mapped pages of a tensor's storage, which was copied (Linux only; elsewhere nothing
    happens). They are read again from the file when they are needed again."""
    if sys.platform == "linux":
        page = mmap.PAGESIZE
        begin = tensor.untyped_storage().data_ptr()
        start = -(-begin // page) * page
        length = begin + tensor.untyped_storage().nbytes() - start
        if length > 0:
            libc().madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_DONTNEED)

"""Writing a GGUF file with the gguf package, which is not needed for anything else."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from files.errors import UserError
from files.writing import make_folder, write_atomically
from model.load import is_finite
from model.shards import check_room

DTYPES = {torch.float32: ("F32", 0), torch.float16: ("F16", 1), torch.bfloat16: ("BF16", 32)}
Fields = dict[str, str | bool | int | float | list]
Entry = tuple[Tensor, Callable[[Tensor], Tensor]]  # values, and how their rows are reordered


def load_gguf():
    """The package that writes the files. Raises UserError if it is missing."""
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise UserError(
            f"GGUF files need the package {error.name}: pip install 'llm-adapters[gguf]', or "
            "pip install gguf"
        ) from None
    return gguf


def write_file(path: Path, architecture: str, fields: Fields, tensors: dict[str, Entry]) -> None:
    """Write a GGUF file, one tensor after another: vectors in float32, matrices in their dtype.

    Raises UserError for values that are not finite and for a disk without the room.
    """
    gguf = load_gguf()
    wrong = next((name for name, (tensor, _) in tensors.items() if not is_finite(tensor)), None)
    if wrong:
        raise UserError(f"{wrong} holds NaN or infinite values: {path} was not written")
    check_room(path.parent, {name: tensor for name, (tensor, _) in tensors.items()})

    def dtype_of(tensor: Tensor) -> torch.dtype:
        return torch.float32 if tensor.dim() == 1 else tensor.dtype

    def save(temporary: Path) -> None:
        writer = gguf.GGUFWriter(temporary, architecture)
        for key, value in fields.items():
            add = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32,
                   float: writer.add_float32, list: writer.add_array}[type(value)]  # fmt: skip
            add(key, value)
        for name, (tensor, _) in tensors.items():
            dtype = dtype_of(tensor)
            kind = gguf.GGMLQuantizationType[DTYPES[dtype][0]]
            size = tensor.numel() * dtype.itemsize
            writer.add_tensor_info(name, tensor.shape, np.dtype(np.float32), size, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor, reorder in tensors.values():
            value = reorder(tensor.detach()).to("cpu", dtype_of(tensor)).contiguous()
            writer.write_tensor_data(value.view(torch.uint8).numpy())  # numpy has no bfloat16
        writer.close()

    make_folder(path.parent)
    write_atomically(path, save)

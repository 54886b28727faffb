"""Model folders: weights in safetensors shards, and a copy of the tokenizer's files.

model.safetensors, or the index of the shards, is written last: a folder without it is incomplete.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from files.errors import UserError
from files.reading import resolve_inside, weight_files
from files.writing import write_atomically, write_text
from model.hub import FILES
from model.weights import safetensors


def check_empty(folder: Path) -> None:
    """Raises UserError unless the folder is new or empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        wrong = "not empty" if folder.is_dir() else "not a folder"
        raise UserError(f"{folder} exists and is {wrong}: give another one for the model")


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy the tokenizer's files that exist."""
    for name in FILES[1:]:
        path = resolve_inside(source, name)
        if path.is_file():
            write_atomically(folder / name, lambda to, path=path: shutil.copyfile(path, to))


def check_room(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Raises UserError if these tensors do not fit on the disk."""
    existing = next(
        path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir()
    )
    needed, free = sum(map(size, tensors.values())), shutil.disk_usage(existing).free
    if needed > free:
        raise UserError(
            f"{folder} needs {needed / 1e6:,.1f} MB, the disk has {free / 1e6:,.1f} MB left: "
            "nothing was written"
        )


def size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.itemsize


def write_shards(
    folder: Path,
    tensors: dict[str, Tensor],
    shard_bytes: int,
    values: Callable[[Tensor], Tensor] = lambda tensor: tensor,
) -> None:
    """Write model.safetensors, or model-00001-of-0000N.safetensors and so on and then their index.

    values: tensor -> the values to write; the tensors may be on the meta device.
    """
    shards: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        if shards[-1] and filled + size(tensor) > shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += size(tensor)
    if len(shards) == 1:
        write_atomically(
            folder / "model.safetensors", lambda path: write_safetensors(path, tensors, values)
        )
        return
    index: dict = {"metadata": {"total_size": sum(map(size, tensors.values()))}, "weight_map": {}}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_atomically(
            folder / file, lambda path, shard=shard: write_safetensors(path, shard, values)
        )
        index["weight_map"] |= dict.fromkeys(shard, file)
    write_text(folder / "model.safetensors.index.json", json.dumps(index, indent=2) + "\n")


def write_safetensors(
    path: Path, tensors: dict[str, Tensor], values: Callable[[Tensor], Tensor]
) -> None:
    """Write one file. Copies made by `values` or from a GPU are in memory all at once."""
    ready = {name: values(tensor).detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(ready, path, metadata={"format": "pt"})


def compare(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Read the folder's tensors again. Raises UserError unless they equal these to the bit."""
    left = dict(tensors)
    for name, tensor in read_back(folder):
        expected = left.pop(name, None)
        if (
            expected is None
            or tensor.dtype != expected.dtype
            or not torch.equal(tensor, expected.detach().cpu())
        ):
            raise UserError(
                f"{folder} does not hold what was written at {name}; the disk may be failing"
            )
    if left:
        raise UserError(
            f"{folder} does not hold {next(iter(left))}, which was written; the disk may be failing"
        )


def read_back(folder: Path) -> Iterator[tuple[str, Tensor]]:
    for path in weight_files(folder):
        yield from safetensors(path)

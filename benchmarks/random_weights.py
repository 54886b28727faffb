"""Models of a true shape with random weights: speed and memory depend on nothing else."""

import json
import shutil
import zlib
from pathlib import Path

import torch
from torch import Tensor

from files.errors import UserError
from files.writing import make_folder, write_text
from model.config import describe, skeleton, with_layers
from model.language import LanguageModel
from model.load import load_weights
from model.quantize import quantize_skeleton, quantized
from model.shards import size, write_shards
from model.show import size_text

SHARD = 500_000_000  # bytes of a file


def named_noise(name: str, like: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """Normal values of the shape and dtype of `like`, decided by the parameter's name: two
    processes make one model.

    The scales of norms, which are vectors, lie around 1.
    """
    generator = torch.Generator(device).manual_seed(zlib.crc32(name.encode()))
    values = torch.empty(like.shape, dtype=like.dtype, device=device)
    values.normal_(std=0.02, generator=generator)
    return values + 1 if like.dim() == 1 and name.endswith("weight") else values


def shaped(name: str, dtype: torch.dtype, quantize: str = "", layers: int = 0) -> LanguageModel:
    """The model of a known name or a folder on the meta device.

    quantize: how its Linears are stored; layers: how many of its blocks (0: all). Raises UserError.
    """
    family, config, _ = describe(name)
    if layers:
        config = with_layers(family, config, layers)
    model = skeleton(family, config).to(dtype)
    model.dtype = dtype
    if quantize:
        quantize_skeleton(model, quantize)
    return model.requires_grad_(False)


def random_model(
    name: str,
    dtype: torch.dtype,
    quantize: str = "",
    device: torch.device | str = "cpu",
    layers: int = 0,
) -> LanguageModel:
    """The same with weights, which are made and quantised on the device one at a time."""
    shapes = dict(shaped(name, dtype, layers=layers).named_parameters())
    model = shaped(name, dtype, quantize, layers)
    weights = ((key, named_noise(key, shape, device)) for key, shape in shapes.items())
    load_weights(model, lambda key: key, weights, dtype, device, where=name)
    for linear in quantized(model).values():
        linear.dtype = dtype
    return model.requires_grad_(False)


def random_checkpoint(name: str, folder: Path) -> int:
    """Write bfloat16 weights to a new folder, one tensor in memory at a time; returns their bytes.

    Raises UserError where the disk is too small.
    """
    family, config, _ = describe(name)
    tensors = dict(shaped(name, torch.bfloat16).named_parameters())
    total, free = sum(map(size, tensors.values())), shutil.disk_usage(folder.parent).free
    if total * 1.3 > free:
        raise UserError(
            f"{folder.parent} needs {size_text(total * 1.3)}, the disk has {size_text(free)} left; "
            "TMPDIR names another place"
        )
    make_folder(folder)
    write_config(family, config, folder)
    names = {id(tensor): name for name, tensor in tensors.items()}
    write_shards(folder, tensors, SHARD, lambda tensor: named_noise(names[id(tensor)], tensor))
    return total


def write_config(family, config, folder: Path) -> None:
    """config.json of a family's Config."""
    row = family.ROWS[config.model_type]
    raw = {key: value for key, value in vars(config).items() if value is not None or key in row}
    write_text(folder / "config.json", json.dumps(raw))

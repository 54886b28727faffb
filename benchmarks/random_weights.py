"""Models of a true shape with random weights, for measurements: speed and memory need no other."""

import json
import shutil
from pathlib import Path

import torch
from torch import Tensor, nn

from files.errors import UserError
from files.writing import make_folder, write_text
from model.config import describe, skeleton, with_layers
from model.load import load_weights
from model.quantize import quantize_skeleton, quantized
from model.shards import size, write_shards
from model.show import size_text

SHARD = 500_000_000  # bytes


def noise(like: Tensor, device: torch.device | str = "cpu") -> Tensor:
    return torch.empty(like.shape, dtype=like.dtype, device=device).normal_(std=0.02)


def shaped(name: str, dtype: torch.dtype, quantize: str = "", layers: int = 0) -> nn.Module:
    """The model of a known name, or of a folder with config.json, without memory; its Linears quantised where `quantize` says how, of `layers` blocks
    where that is not 0. Raises UserError."""
    family, config, _ = describe(name)
    if layers:
        config = with_layers(family, config, layers)
    model = skeleton(family, config).to(dtype)
    model.dtype = dtype
    if quantize:
        quantize_skeleton(model, quantize)
    return model.requires_grad_(False)


def random_model(
    name: str, dtype: torch.dtype, quantize: str = "", device: torch.device | str = "cpu"
) -> nn.Module:
    """The same with weights, made and quantised on the device one at a time."""
    shapes, model = dict(shaped(name, dtype).named_parameters()), shaped(name, dtype, quantize)
    load_weights(
        model,
        lambda key: key,
        ((key, noise(one, device)) for key, one in shapes.items()),
        dtype,
        device,
        where=name,
    )
    for linear in quantized(model).values():
        linear.dtype = dtype
    return model.requires_grad_(False)


def random_checkpoint(name: str, folder: Path) -> int:
    """Its bfloat16 files in a new folder, one tensor in memory at a time; returns their bytes. Raises UserError where the disk has not the room."""
    family, config, _ = describe(name)
    tensors = dict(shaped(name, torch.bfloat16).named_parameters())
    total, free = sum(map(size, tensors.values())), shutil.disk_usage(folder.parent).free
    if total * 1.3 > free:
        raise UserError(
            f"{folder.parent} needs {size_text(total * 1.3)}, the disk has {size_text(free)} left; TMPDIR names another place"
        )
    make_folder(folder)
    row = family.ROWS[config.model_type]
    raw = {key: value for key, value in vars(config).items() if value is not None or key in row}
    write_text(folder / "config.json", json.dumps(raw))
    write_shards(folder, tensors, SHARD, values=noise)
    return total

"""The frozen base model of a run and its tokenizer, on the devices of the settings."""

from dataclasses import replace
from pathlib import Path

import torch

from files.errors import UserError
from files.reading import weight_files
from model import load_model, load_tokenizer
from model.compiled import check_compiler
from model.config import read_config
from model.devices import parse_devices
from model.language import LanguageModel
from model.registry import find, pocket_names
from model.tokenizer import Tokenizer
from train.deterministic import fix_workspaces
from train.parallel import SINGLE, Processes
from train.settings import Settings

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_devices(s: Settings, processes: Processes = SINGLE) -> list[torch.device]:
    """The devices of this process: one, or several that the layers are split over.

    Each of several processes takes the GPU of its local rank. Raises UserError when a device does
    not exist, or other settings exclude it.
    """
    name = s.device if s.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    if processes.world > 1 and name.startswith("cuda"):
        if name != "cuda":
            raise UserError(
                f"device {name!r} is not for {processes.world} processes: give --device cuda, "
                "and each takes its own"
            )
        name = f"cuda:{processes.local_rank}"
    devices = parse_devices(name)
    check_together(s, devices, processes.world)
    for part in ("train", "eval"):
        if getattr(s, part).compile:
            for kind in {device.type: device for device in devices}.values():
                check_compiler(kind, f"{part}.compile")
    return devices


def check_together(s: Settings, devices: list[torch.device], world: int = 1) -> None:
    """Raise UserError for settings that exclude each other, or these devices of each process."""
    cards = [device.index or 0 for device in devices if device.type == "cuda"]
    if len(set(cards)) < len(cards):
        raise UserError(f"device {s.device!r} names a GPU twice")
    if len(devices) > 1 and world > 1:
        raise UserError(
            f"layers are split over the devices of one process, and there are {world}: "
            "give one device"
        )
    if s.layers_per_device and len(devices) == 1:
        raise UserError(
            f"layers_per_device = {s.layers_per_device} is for several devices: "
            "name them, --devices cuda:0,cuda:1"
        )
    if s.train.offload and not cards:
        raise UserError(
            "train.offload moves activations from a GPU to the CPU's memory, "
            "and this run is on the CPU: leave it out"
        )
    if s.train.tf32 and not cards:
        raise UserError("train.tf32 is for a GPU, and this run is on the CPU: leave it out")
    if s.shard and world == 1:
        raise UserError(
            "shard lays the blocks over several processes and there is one: "
            "start with torchrun (docs/memory-and-machines.md), or set shard=false"
        )
    if s.shard and s.train.offload:
        raise UserError(
            "train.offload and shard do not go together: "
            "FSDP's gathered weights would go to the CPU with the activations"
        )
    if s.shard and (s.train.compile or s.eval.compile):
        part = "train" if s.train.compile else "eval"
        raise UserError(
            f"{part}.compile and shard do not go together: FSDP gathers a block's weights outside "
            f"of what is compiled; set {part}.compile=false"
        )
    if s.shard and s.quantize:
        raise UserError(
            f"quantize = {s.quantize!r} and shard do not go together: "
            "shard lays whole weights over processes"
        )


def for_processes(s: Settings, processes: Processes) -> Settings:
    """The settings of a run of one process, for several: each takes one device of that kind."""
    if processes.world == 1:
        return s
    return replace(s, device=s.device.partition(",")[0].partition(":")[0], layers_per_device=[])


def check_model(name: str) -> None:
    """Raise UserError for an unknown model or a folder without one, before anything is loaded."""
    if isinstance(folder := find(name), Path):
        read_config(folder)


def check_base(s: Settings) -> Tokenizer:
    """The tokenizer of the settings, before any data is downloaded or a weight is read.

    Of a hub repository only the configuration and the tokenizer are downloaded. Raises UserError
    for a model that is unknown, unreachable, of an unknown architecture, without a tokenizer or
    with one that does not fit its embedding, or a folder without weights.
    """
    check_model(s.model)
    if isinstance(folder := find(s.model), Path):
        weight_files(folder)
    tokenizer = load_tokenizer(s.model, s.revision or None)
    _, config = read_config(tokenizer.folder)
    tokenizer.fit(config.vocab_size)
    return tokenizer


def toy_lines(name: str) -> list[str]:
    """A line that says of a pocket model what it is; for other models none."""
    if not name.startswith("pocket-") or name not in pocket_names():
        return []
    return [
        f"{name} is a toy for trying this program: all it knows is word problems like those of "
        "--data wordproblems"
    ]


def dtype_named(name: str) -> torch.dtype | None:
    """The dtype of the settings; None: auto. Raises UserError."""
    if name not in ("auto", *DTYPES):
        raise UserError(f"dtype {name!r} is not one of auto, {', '.join(DTYPES)}")
    return DTYPES.get(name)


def dtype_name(dtype: torch.dtype) -> str:
    """The dtype as settings name it: "float16"."""
    return str(dtype).removeprefix("torch.")


def load_base(s: Settings, processes: Processes = SINGLE) -> LanguageModel:
    """The model of the settings on its device; with `shard`, this process's part of it.

    Raises UserError.
    """
    dtype = dtype_named(s.dtype)
    if s.threads:
        torch.set_num_threads(s.threads)
    if s.train.deterministic:
        fix_workspaces()
    devices = choose_devices(s, processes)
    model = load_model(
        s.model,
        dtype,
        devices=devices,
        layers_per_device=s.layers_per_device or None,
        quantize=s.quantize or None,
        revision=s.revision or None,
        mesh=processes.mesh(devices[0]) if s.shard else None,
    )
    on_cpu = any(device.type == "cpu" for device in devices)
    if dtype is None and model.dtype == torch.float16 and on_cpu:
        # float16 is slow on a CPU, and needs loss scaling
        model = model.to(torch.float32)
        model.dtype = torch.float32
    model.decode_memory, model.graphs = s.eval.decode_memory, s.eval.graphs
    return model


def load_tokenizer_of(s: Settings, model: LanguageModel) -> Tokenizer:
    """The tokenizer of the settings. Raises UserError when its ids exceed the model's embedding."""
    tokenizer = load_tokenizer(s.model, s.revision or None)
    tokenizer.fit(model.config.vocab_size)
    return tokenizer

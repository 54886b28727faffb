"""Adapter folders: adapter_model.safetensors + adapter_config.json, written in the key scheme of PEFT and of the paper, read strictly."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from adapters.attach import adapter_names, all_sites, attach
from adapters.config import AdapterConfig, resolve
from model.errors import UserError, unknown
from model.files import make_folder, read_json, write_atomically, write_text

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."  # in front of every module path in PEFT's files
OURS = "llm_adapters"  # our own section of adapter_config.json


def save_adapter(model: nn.Module, folder: str | Path, name: str = "default", format: str = "native", run: dict | None = None) -> None:
    """Write the adapter `name` into `folder` (in place of one that is there) and read it back to check it.

    LoRA files are those of PEFT 0.21, bottlenecks have the paper's tensor names; both carry our section with the base's fingerprint,
    the full configuration and `run` (prompt template, ...). format "peft" is refused for what PEFT cannot read. Raises UserError.
    """
    adapters = {path: site.adapters[name] for path, site in all_sites(model) if name in site.adapters}
    if not adapters:
        raise unknown("adapter name", name, adapter_names(model))
    config: AdapterConfig = next(iter(adapters.values())).config
    if format not in ("native", "peft", "paper"):
        raise unknown("adapter file format", format, ["native", "peft", "paper"])
    if format == "paper" or (format == "peft" and config.kind != "lora"):
        raise UserError(f'{config.kind} adapters cannot be written as format="{format}" in this version; "native" can')
    tensors = {
        f"{PREFIX}{path}.{leaf}.weight": parameter.detach().float().cpu().contiguous()
        for path, adapter in adapters.items()
        for leaf, parameter in adapter.named_parameters()
    }
    for key, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise UserError(f"adapter {name!r} holds NaN or infinite values at {key}; nothing was written")
    peft = {"peft_type": "BOTTLENECK", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(model.folder), "inference_mode": True}
    if config.kind == "lora":
        options = config.options
        peft |= {"peft_type": "LORA", "r": options.r, "lora_alpha": options.alpha, "lora_dropout": options.dropout, "bias": "none"}
        peft["target_modules"] = sorted({path.rpartition(".")[2] for path in adapters})
        if config.layers != "all":
            peft["layers_to_transform"] = sorted({int(part) for path in adapters for part in path.split(".") if part.isdigit()})
    peft[OURS] = {"family": model.family, "base_fingerprint": model.fingerprint, "adapter": config.table(), "run": run or {}}
    folder = Path(folder)
    make_folder(folder)
    write_atomically(folder / WEIGHTS, lambda path: save_file(tensors, str(path), metadata={"format": "pt"}))
    write_text(folder / CONFIG, json.dumps(peft, indent=2) + "\n")
    back = read_tensors(folder)
    if back.keys() != tensors.keys() or any(not torch.equal(back[key], tensors[key]) for key in tensors):
        raise UserError(f"{folder / WEIGHTS} does not hold what was written; the disk may be full or failing")


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of an adapter folder, on the CPU."""
    path = folder / WEIGHTS
    if not path.is_file():
        raise UserError(f"{path} is missing: {folder} is no adapter folder")
    try:
        return load_file(str(path))
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def load_adapter(model: nn.Module, folder: str | Path, name: str = "default") -> dict:
    """Attach the adapter in `folder` as `name`, switched on; returns the `run` section it was saved with.

    Strict: the base must be the one the adapter was trained on (by fingerprint), and every tensor of the file is used exactly once
    and fits. Raises UserError otherwise, leaving the model as it was.
    """
    folder = Path(folder)
    path = folder / CONFIG
    tensors = read_tensors(folder)
    ours = read_json(path).get(OURS)
    if not isinstance(ours, dict):
        raise UserError(f"{path} has no {OURS!r} section: adapters of other programs cannot be read in this version")
    if ours.get("family") != model.family:
        raise UserError(f"{folder} was made for a {ours.get('family')} model, this one is {model.family}")
    if ours.get("base_fingerprint") != model.fingerprint:
        raise UserError(f"{folder} was trained on another base model (fingerprint {ours.get('base_fingerprint')}, this one has {model.fingerprint})")
    if not isinstance(ours.get("adapter"), dict):
        raise UserError(f"{path}: section {OURS!r} has no table 'adapter'")
    attach(model, resolve(**ours["adapter"]), name)
    try:
        fill(model, tensors, name, str(folder / WEIGHTS))
    except UserError:
        for _, site in all_sites(model):
            site.active = tuple(adapter for adapter in site.active if adapter is not site.adapters._modules.get(name))
            site.adapters._modules.pop(name, None)
        raise
    run = ours.get("run")
    return run if isinstance(run, dict) else {}


@torch.no_grad()
def fill(model: nn.Module, tensors: dict[str, torch.Tensor], name: str, where: str) -> None:
    """Copy every tensor into the adapter parameter of its key; a key too many, too few or of another shape is an error."""
    waiting = {
        f"{PREFIX}{path}.{leaf}.weight": parameter
        for path, site in all_sites(model)
        if name in site.adapters
        for leaf, parameter in site.adapters[name].named_parameters()
    }
    for key, tensor in tensors.items():
        if key not in waiting:
            raise UserError(f"{where}: {unknown('tensor', key, waiting)}")
        parameter = waiting.pop(key)
        if parameter.shape != tensor.shape:
            raise UserError(f"{where}: tensor {key!r} is {list(tensor.shape)}, the configuration asks for {list(parameter.shape)}")
        if not tensor.isfinite().all():
            raise UserError(f"{where}: tensor {key!r} holds NaN or infinite values")
        parameter.copy_(tensor)
    if waiting:
        raise UserError(f"{where}: {len(waiting)} tensors are missing, the first is {next(iter(waiting))!r}")

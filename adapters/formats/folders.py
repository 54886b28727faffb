"""Adapter folders: adapter_model.safetensors + adapter_config.json, ours, PEFT's or the paper repository's, told apart by their content.

Ours have the key scheme of PEFT and of the paper, and a section of their own in adapter_config.json with the complete configuration and the
fingerprint of the base. What PEFT 0.21 can compute, it reads from our files as well. The keys of a mixture begin with the name of the part.
"""

import json
import re
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from adapters.attach import adapters_named, attach, parts_of, remove, setup, switch
from adapters.base import Adapter, Tensors
from adapters.config import METHODS, AdapterConfig, resolve
from adapters.formats import paper
from adapters.formats import peft_write as peft
from adapters.formats.peft_fields import known_by_word
from adapters.formats.peft_keys import as_saved_by_peft
from files.errors import UserError, unknown
from files.reading import inside, read_json, safetensors, torch_tensors
from files.writing import make_folder, write_atomically, write_text

WEIGHTS, OLD_WEIGHTS, CONFIG = (
    "adapter_model.safetensors",
    "adapter_model.bin",
    "adapter_config.json",
)
OURS = "llm_adapters"  # our own section of adapter_config.json
CHECKPOINT = re.compile(r"checkpoint-(\d{1,12})(?!\d)")  # a folder of transformers' Trainer
FORMATS = ("native", "peft", "paper")


def save_adapter(
    model: nn.Module,
    folder: str | Path,
    name: str = "default",
    format: str = "native",
    run: dict | None = None,
    plain: bool = False,
    overwrite: bool = False,
) -> None:
    """Write the adapter `name` into `folder` and read it back to check it; in place of one that is there only with overwrite=True.

    format: "native", with `run` (prompt template, ...) and the base's fingerprint; "peft", what PEFT 0.21 reads and nothing else; "paper", what the
    paper's repository reads. plain=True turns LoRA's relatives into a LoRA with alpha = r everywhere, for programs that know no more. Raises UserError
    for an adapter that a format has no place for, and for one that is not finite; nothing is written then.
    """
    if format not in FORMATS:
        raise unknown("adapter file format", format, FORMATS)
    adapters = adapters_named(model, name)
    config: AdapterConfig = next(iter(adapters.values())).config
    if (Path(folder) / CONFIG).exists() and not overwrite:
        raise UserError(
            f"{folder} holds an adapter already: give another folder, or overwrite=True"
        )
    if plain and format != "peft":
        raise UserError(f'plain=True is for format="peft", not {format!r}')
    if format == "native":
        fields, tensors = peft.header(model, config, adapters), native_tensors(config, adapters)
        fields[OURS] = {
            "family": model.family,
            "base_fingerprint": model.fingerprint,
            "adapter": config.table(),
            "run": run or {},
        }
    else:
        fields, tensors = (
            peft.write(model, config, adapters, plain)
            if format == "peft"
            else paper.write(model, config, adapters)
        )
    write_adapter(Path(folder), fields, tensors, as_bin=format == "paper")


def native_tensors(config: AdapterConfig, adapters: dict[str, Adapter]) -> dict[str, Tensor]:
    """What our own file holds, by key."""
    return {
        f"{part}:{key}" if part else key: tensor
        for part in config.parts
        for key, tensor in METHODS[config.parts[part].kind].to_file(of_part(adapters, part)).items()
    }


def of_part(adapters: dict[str, Adapter], part: str) -> dict[str, Adapter]:
    """The adapters of one part of a mixture, by path."""
    found = {}
    for path, adapter in adapters.items():
        for _, one in parts_of("", adapter):
            if one.part == part:
                found[path] = one
    return found


def write_adapter(
    folder: Path, fields: dict, tensors: dict[str, Tensor], as_bin: bool = False
) -> None:
    """Write both files and read the tensors back. Raises UserError; nothing is written of an adapter that is not finite."""
    tensors = {
        key: tensor.detach().float().cpu().contiguous().clone() for key, tensor in tensors.items()
    }
    for key, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise UserError(
                f"the adapter holds NaN or infinite values at {key}; nothing was written"
            )
    make_folder(folder)
    if as_bin:
        write_atomically(folder / OLD_WEIGHTS, lambda path: torch.save(tensors, path))
    else:
        write_atomically(
            folder / WEIGHTS, lambda path: save_file(tensors, str(path), metadata={"format": "pt"})
        )
    write_text(folder / CONFIG, json.dumps(fields, indent=2) + "\n")
    (folder / (WEIGHTS if as_bin else OLD_WEIGHTS)).unlink(
        missing_ok=True
    )  # of the adapter that was here before
    back = read_tensors(folder)
    if back.keys() != tensors.keys() or any(
        not torch.equal(back[key], tensors[key]) for key in tensors
    ):
        raise UserError(f"{folder} does not hold what was written; the disk may be full or failing")


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of an adapter folder, on the CPU. Raises UserError."""
    for name, read in ((WEIGHTS, safetensors), (OLD_WEIGHTS, torch_tensors)):
        path = inside(folder, name)
        if path.is_file():
            found = list(read(path))
            if len(dict(found)) != len(found):
                raise UserError(f"{path} holds a tensor twice")
            return dict(found)
    raise UserError(f"{folder / WEIGHTS} is missing: {folder} is no adapter folder")


def load_adapter(model: nn.Module, folder: str | Path, name: str = "default") -> dict:
    """Attach the adapter in `folder` as `name`, switched on; returns the `run` section it was saved with.

    Strict: every tensor of the file is used exactly once and fits, every module it names exists, and the base is the one the adapter was trained on
    (by its fingerprint; of other programs' files, where only its name can be compared, a warning says so). Raises UserError otherwise, leaving the
    model as it was.
    """
    config, tensors, run = read_adapter(model, Path(folder))
    before = setup(model)
    attach(model, config, name)
    try:
        fill(model, tensors, name)
    except BaseException:
        remove(model, name)
        switch(model, *before)
        raise
    return run


def read_adapter(model: nn.Module, folder: Path) -> tuple[AdapterConfig, Tensors, dict]:
    """What a folder holds for this model, which is not changed: configuration, tensors, `run` section. A model without weights (experiments/layout.py) has no
    fingerprint to compare. Raises UserError."""
    folder = locate(folder)
    path = folder / CONFIG
    tensors = read_tensors(folder)
    where = str(folder / (WEIGHTS if (folder / WEIGHTS).is_file() else OLD_WEIGHTS))
    raw = read_json(inside(folder, CONFIG))
    run: dict = {}
    if OURS in raw:
        config, run = read_ours(model, raw[OURS], folder)
    elif not isinstance(raw.get("peft_type"), str):
        raise UserError(
            f"{path} has neither our section {OURS!r} nor a peft_type: it is no adapter's configuration"
        )
    else:
        raw, tensors = known_by_word(raw), as_saved_by_peft(tensors, where)
        reader = paper if paper.is_ours(raw, tensors) else peft
        config, tensors = reader.read(model, raw, tensors, where)
        if weighed(model):
            peft.check_base(model, raw, folder)
    return config, Tensors(tensors, where), run


def locate(folder: Path) -> Path:
    """The folder itself, or the only adapter directly in it, as PEFT saves one that has a name.

    Raises UserError, naming what there is, for the folder of a run or of a trainer's checkpoints,
    and for several adapters.
    """
    if (folder / CONFIG).exists() or (folder / CONFIG).is_symlink():
        return folder
    if (folder / "adapter" / CONFIG).is_file():
        raise UserError(f"{folder} is the folder of a run; its adapter is {folder / 'adapter'}")
    configs = [path for stars in ("*", "*/*") for path in sorted(folder.glob(f"{stars}/{CONFIG}"))]
    found = [path.parent for path in configs if path.is_file()]
    found = [path for path in found if path.resolve().is_relative_to(folder.resolve())]
    names = {path: CHECKPOINT.match(str(path.relative_to(folder))) for path in found}
    steps = {path: int(step[1]) for path, step in names.items() if step}
    if not found:
        return folder
    if len(found) == 1 and found[0].parent == folder and not steps:
        return found[0]
    if len(steps) == len(found):
        last = max(steps, key=steps.get)
        raise UserError(
            f"{folder} holds a trainer's checkpoints, no adapter itself: give one of "
            f"them, such as {last}, the last of {len(found)}"
        )
    several = "is one" if len(found) == 1 else "are several"
    more = f" and {len(found) - 8} more" * (len(found) > 8)
    raise UserError(
        f"{folder} holds no adapter itself, but there {several} below: give "
        f"{', '.join(map(str, found[:8])):.1000}{more}"
    )


def read_ours(model: nn.Module, ours, folder: Path) -> tuple[AdapterConfig, dict]:
    """(configuration, run section) of our own section. Raises UserError for another family or base."""
    if not isinstance(ours, dict) or not isinstance(ours.get("adapter"), dict):
        raise UserError(f"{folder / CONFIG}: section {OURS!r} has no table 'adapter'")
    if ours.get("family") != model.family:
        raise UserError(
            f"{folder} was made for a {ours.get('family')} model, this one is {model.family}"
        )
    if weighed(model) and ours.get("base_fingerprint") != model.fingerprint:
        raise UserError(
            f"{folder} was trained on another base model (fingerprint {ours.get('base_fingerprint')}, this one has {model.fingerprint})"
        )
    run = ours.get("run")
    return resolve(ours["adapter"]), run if isinstance(run, dict) else {}


def weighed(model: nn.Module) -> bool:
    """Whether the model has weights, or is but its shape."""
    return not model.input_embedding.weight.is_meta


@torch.no_grad()
def fill(model: nn.Module, tensors: Tensors, name: str) -> None:
    """Copy every tensor into the adapter it belongs to; one too many, too few or of another shape is an error."""
    adapters = adapters_named(model, name)
    config: AdapterConfig = next(iter(adapters.values())).config
    for part, one in config.parts.items():
        METHODS[one.kind].from_file(
            of_part(adapters, part), tensors.behind(f"{part}:" if part else "")
        )
    tensors.finish()

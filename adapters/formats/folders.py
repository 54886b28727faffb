"""Adapter folders: adapter_model.safetensors + adapter_config.json.

Ours, PEFT's or the paper repository's, told apart by their content. Ours have the keys of PEFT and
of the paper, and a section of their own in adapter_config.json with the complete configuration and
the fingerprint of the base. What PEFT 0.21 can compute, it reads from our files as well. The keys
of a mixture begin with the name of the part.
"""

import json
import re
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from adapters.attach import adapters_named, attach, unchanged_on_error
from adapters.base import Adapter
from adapters.config import METHODS, AdapterConfig, resolve
from adapters.formats import paper, paper_write, peft_read, peft_write
from adapters.formats.base_model import check_base
from adapters.formats.peft_fields import known_by_word
from adapters.formats.peft_keys import as_saved_by_peft
from adapters.formats.stored import (
    OLD_WEIGHTS,
    WEIGHTS,
    check_names,
    check_size,
    elements,
    read_tensors,
)
from adapters.in_use import by_part
from adapters.tensors import Tensors
from files.errors import UserError, unknown
from files.reading import read_json, resolve_inside
from files.writing import make_folder, write_atomically, write_text
from model.language import LanguageModel

CONFIG = "adapter_config.json"
OURS = "llm_adapters"  # our own section of adapter_config.json
CHECKPOINT = re.compile(r"checkpoint-(\d{1,12})(?!\d)")  # a folder of transformers' Trainer
FORMATS = ("native", "peft", "paper")


def save_adapter(
    model: LanguageModel,
    folder: str | Path,
    name: str = "default",
    format: str = "native",
    run: dict | None = None,
    plain: bool = False,
    overwrite: bool = False,
) -> None:
    """Write the adapter `name` into `folder` and read it back to check it.

    format: "native", with `run` (prompt template, ...) and the base's fingerprint; "peft", what
    PEFT 0.21 reads and nothing else; "paper", what the paper's repository reads. plain=True turns
    LoRA's relatives into a LoRA with alpha = r everywhere, for programs that know no more. Raises
    UserError, with nothing written, for a folder that holds an adapter (unless overwrite=True), for
    an adapter that a format has no place for, and for one that is not finite.
    """
    if format not in FORMATS:
        raise unknown("adapter file format", format, FORMATS)
    folder, adapters = Path(folder), adapters_named(model, name)
    config: AdapterConfig = next(iter(adapters.values())).config
    if (folder / CONFIG).exists() and not overwrite:
        raise UserError(
            f"{folder} holds an adapter already: give another folder, or overwrite=True"
        )
    if plain and format != "peft":
        raise UserError(f'plain=True is for format="peft", not {format!r}')
    if format == "peft":
        fields, tensors = peft_write.write(model, config, adapters, plain)
    elif format == "paper":
        fields, tensors = paper_write.write(model, config, adapters)
    else:
        fields = peft_write.header(model, config, adapters)
        tensors = native_tensors(config, adapters)
        fields[OURS] = {
            "family": model.family,
            "base_fingerprint": model.fingerprint,
            "adapter": config.table(),
            "run": run or {},
        }
    write_adapter(folder, fields, tensors, as_bin=format == "paper")


def native_tensors(config: AdapterConfig, adapters: dict[str, Adapter]) -> dict[str, Tensor]:
    """What our own file holds, by key."""
    return {
        f"{name}:{key}" if name else key: tensor
        for name, parts in by_part(adapters).items()
        for key, tensor in METHODS[config.parts[name].kind].to_file(parts).items()
    }


def write_adapter(folder: Path, fields: dict, tensors: dict[str, Tensor], as_bin: bool) -> None:
    """Write both files and read the tensors back.

    Raises UserError; nothing is written of an adapter that is not finite.
    """
    tensors = {k: t.detach().float().cpu().contiguous().clone() for k, t in tensors.items()}
    wrong = next((key for key, tensor in tensors.items() if not tensor.isfinite().all()), None)
    if wrong:
        raise UserError(f"the adapter holds NaN or infinite values at {wrong}; nothing was written")
    make_folder(folder)
    if as_bin:
        write_atomically(folder / OLD_WEIGHTS, lambda path: torch.save(tensors, path))
    else:
        form = {"format": "pt"}
        write_atomically(folder / WEIGHTS, lambda path: save_file(tensors, str(path), form))
    write_text(folder / CONFIG, json.dumps(fields, indent=2) + "\n")
    # Of the adapter that was here before.
    (folder / (WEIGHTS if as_bin else OLD_WEIGHTS)).unlink(missing_ok=True)
    back = read_tensors(folder)
    if back.keys() != tensors.keys() or not all(torch.equal(back[k], tensors[k]) for k in tensors):
        raise UserError(f"{folder} does not hold what was written; the disk may be full or failing")


def load_adapter(model: LanguageModel, folder: str | Path, name: str = "default") -> dict:
    """Attach the adapter in `folder` as `name`, switched on; returns the `run` section it has.

    Strict: every tensor of the file is used exactly once and fits, every module it names exists,
    and the base is the one the adapter was trained on (by its fingerprint; of other programs'
    files, where only its name can be compared, a warning says so). Raises UserError otherwise, with
    the model unchanged.
    """
    config, tensors, run = read_adapter(model, Path(folder))
    check_size(model, config, tensors)
    with unchanged_on_error(model):
        attach(model, config, name)
        fill(model, tensors, name)
    return run


def read_adapter(model: LanguageModel, folder: Path) -> tuple[AdapterConfig, Tensors, dict]:
    """(configuration, tensors, `run` section) of a folder for this model, which is not changed.

    A model without weights (experiments/layout.py) has no fingerprint to compare. Raises UserError.
    """
    folder = locate(folder)
    tensors = read_tensors(folder, elements(model))
    where = str(folder / (WEIGHTS if (folder / WEIGHTS).is_file() else OLD_WEIGHTS))
    raw = read_json(resolve_inside(folder, CONFIG))
    check_names(raw, str(folder / CONFIG))
    if OURS in raw:
        config, run = read_ours(model, raw[OURS], folder)
        return config, Tensors(tensors, where), run
    if not isinstance(raw.get("peft_type"), str):
        raise UserError(
            f"{folder / CONFIG} has neither our section {OURS!r} nor a peft_type: it is no "
            "adapter's configuration"
        )
    raw, tensors = known_by_word(raw), as_saved_by_peft(tensors, where)
    reader = paper if paper.is_paper(raw, tensors) else peft_read
    config, tensors = reader.read(model, raw, tensors, where)
    if has_weights(model):
        check_base(model, raw, folder)
    return config, Tensors(tensors, where), {}


def locate(folder: Path) -> Path:
    """The folder itself, or the only adapter directly in it, as PEFT saves one that has a name.

    Raises UserError, naming the folders to choose from, for the folder of a run or of a trainer's
    checkpoints, and for several adapters.
    """
    if (folder / CONFIG).exists() or (folder / CONFIG).is_symlink():
        return folder
    if (folder / "adapter" / CONFIG).is_file():
        raise UserError(f"{folder} is the folder of a run; its adapter is {folder / 'adapter'}")
    configs = [path for stars in ("*", "*/*") for path in sorted(folder.glob(f"{stars}/{CONFIG}"))]
    below = [path.parent for path in configs if path.is_file()]
    below = [path for path in below if path.resolve().is_relative_to(folder.resolve())]
    names = {path: CHECKPOINT.match(str(path.relative_to(folder))) for path in below}
    steps = {path: int(step[1]) for path, step in names.items() if step}
    if not below:
        return folder
    if len(below) == 1 and below[0].parent == folder and not steps:
        return below[0]
    if len(steps) == len(below):
        last = max(steps, key=steps.get)
        raise UserError(
            f"{folder} holds a trainer's checkpoints, no adapter itself: give one of "
            f"them, such as {last}, the last of {len(below)}"
        )
    several = "is one" if len(below) == 1 else "are several"
    more = f" and {len(below) - 8} more" * (len(below) > 8)
    raise UserError(
        f"{folder} holds no adapter itself, but there {several} below: give "
        f"{', '.join(map(str, below[:8])):.1000}{more}"
    )


def read_ours(model: LanguageModel, ours, folder: Path) -> tuple[AdapterConfig, dict]:
    """(configuration, run section) of our own section. Raises UserError for another base."""
    if not isinstance(ours, dict) or not isinstance(ours.get("adapter"), dict):
        raise UserError(f"{folder / CONFIG}: section {OURS!r} has no table 'adapter'")
    family, fingerprint, run = (ours.get(key) for key in ("family", "base_fingerprint", "run"))
    base = run.get("model") if isinstance(run, dict) else None  # is not opened: the user names it
    named = f"; its file names {base!r:.200}: give --model" if isinstance(base, str) else ""
    if family != model.family:
        raise UserError(
            f"{folder} was made for a {family!s:.20} model, this one is {model.family}{named}"
        )
    if has_weights(model) and fingerprint != model.fingerprint:
        raise UserError(
            f"{folder} was trained on another base model (fingerprint {fingerprint}, this one has "
            f"{model.fingerprint}){named}"
        )
    return resolve(ours["adapter"]), run if isinstance(run, dict) else {}


def has_weights(model: LanguageModel) -> bool:
    """False on the meta device."""
    return not model.input_embedding.weight.is_meta


@torch.no_grad()
def fill(model: LanguageModel, tensors: Tensors, name: str) -> None:
    """Copy every tensor into the adapter it belongs to. Raises UserError if one does not fit."""
    adapters = adapters_named(model, name)
    config: AdapterConfig = next(iter(adapters.values())).config
    for part, here in by_part(adapters).items():
        view = tensors.with_prefix(f"{part}:" if part else "")
        METHODS[config.parts[part].kind].from_file(here, view)
    tensors.finish()

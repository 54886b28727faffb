"""Fold saved adapters into the weights of their model, and measure the difference."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from adapters.attach import adapters_named
from adapters.formats.base_model import base_name
from adapters.formats.merged_model import export_model
from adapters.in_use import in_use
from adapters.merge import merge_and_compare
from data.batches import encode_prompt
from data.prompts import Template
from experiments.base import check_model, choose_devices
from experiments.card import write_card
from experiments.facts import count_base
from experiments.folders import fresh_folder
from experiments.loading import load_with_adapter
from files.errors import UserError
from model import load_tokenizer
from model.language import LanguageModel
from model.registry import resolve
from model.weights import tensors
from train.settings import Settings

PROBE = "Emma baked 12 pies and ate 4. Each box holds 2. How many boxes are there?"


@dataclass(frozen=True)
class Merged:
    """The result of `merge_model`."""

    adapters: str  # in words
    parameters: int
    files: list[Path]
    stored: torch.dtype
    computed: torch.dtype  # in which the logits were compared
    difference: float  # the largest of the logits, before and after
    deviation: float  # standard deviation of the logits
    compared_on: str
    template: Template


def merge_model(
    settings: Settings,
    adapters: Sequence[Path],
    folder: Path,
    average: bool = False,
    shard_size: float = 5.0,
) -> Merged:
    """Write the base of `settings` with these saved adapters folded in, as transformers reads it.

    The weights keep the checkpoint's dtype unless the settings state one; they are merged in
    float32 and rounded once. shard_size: largest file, in GB. Raises UserError.
    """
    if not 0 < shard_size < 1e6:
        raise UserError(f"--shard-size {shard_size} should be a number of GB")
    model, template, runs = load_stored(settings, adapters, average)
    described = describe_adapters(model)
    ids, compared_on = probe_ids(model, template)
    difference, deviation = merge_and_compare(model, ids)
    export_model(model, folder, int(shard_size * 1e9))
    write_card(
        folder, base_name(model), "transformers", f"{described}, merged",
        list(zip(adapters, runs, strict=True)), template,
        f'AutoModelForCausalLM.from_pretrained("{folder.name}")',
    )  # fmt: skip
    files = sorted(folder.iterdir())
    return Merged(
        described, count_base(model), files, model.input_embedding.weight.dtype, model.dtype,
        difference, deviation, compared_on, template,
    )  # fmt: skip


def check_to_write(settings: Settings, adapters: Sequence[Path], folder: Path) -> None:
    """Raise UserError before anything is loaded: no adapter, no such model, a folder in use."""
    if not adapters:
        raise UserError("no adapter is given: give the folder of a run, or --adapter FOLDER")
    check_model(settings.model)
    fresh_folder(folder, numbered=False)


def load_stored(
    settings: Settings, adapters: Sequence[Path], average: bool
) -> tuple[LanguageModel, Template, list[dict]]:
    """(model with the adapters, prompt template, `run` sections of the adapters' files).

    The weights have the dtype they are stored in.

    float16 on a CPU is computed in float32, which is faster there.
    """
    if settings.dtype == "auto":
        names = tensors(resolve(settings.model, settings.revision or None))
        # "weight": a quantised checkpoint also has scales, of another dtype
        first = next(tensor for name, tensor in names if name.endswith("weight"))
        if first.dtype == torch.float16 and choose_devices(settings)[0].type == "cpu":
            settings = replace(settings, dtype="float16")
    model, _, template, runs = load_with_adapter(settings, adapters, average, with_tokenizer=False)
    if model.dtype == torch.float16 and model.device.type == "cpu":
        model.dtype = torch.float32
    return model, template, runs


def describe_adapters(model: LanguageModel) -> str:
    """The adapters in use: "lora at q, v and prefix at kv"."""
    names = dict.fromkeys(name for _, name, _ in in_use(model))
    configs = [next(iter(adapters_named(model, name).values())).config for name in names]
    return " and ".join(f"{config.kind} at {config.place()}" for config in configs)


def probe_ids(model: LanguageModel, template: Template) -> tuple[Tensor, str]:
    """(token ids int64 [1, T] to compare logits on, what they are): a prompt in the template, or
    random ids where the model has no tokenizer."""
    try:
        tokenizer = load_tokenizer(str(model.folder))
        tokenizer.fit(model.config.vocab_size)
        _, ids = encode_prompt(tokenizer, {"instruction": PROBE}, template)
        compared_on = f"a prompt of {len(ids)} tokens"
    except UserError as error:
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(model.config.vocab_size, (32,), generator=generator).tolist()
        compared_on = f"32 random token ids ({error})"
    return torch.tensor([ids], device=model.device), compared_on

"""merge: fold adapters into the weights of their model, for transformers and vLLM."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cli.options import (
    REQUIRED,
    SHARD_SIZE,
    adapters_to_write,
    add,
    add_trained_model,
    describe_adapters,
    print_files,
)
from files.errors import UserError

if TYPE_CHECKING:  # importing them imports torch
    from torch import Tensor

    from data.prompts import Template
    from model.language import LanguageModel
    from train.settings import Settings

PROBE = "Emma baked 12 pies and ate 4. Each box holds 2. How many boxes are there?"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "The weights keep the checkpoint's dtype unless --dtype is given; they are merged in\n"
        "float32 and rounded once."
    )
    add_trained_model(parser, average=True)
    out = {"--out FOLDER": (str, "new folder of the merged model", REQUIRED)}
    add(parser, "output", out | SHARD_SIZE)


def run(options: argparse.Namespace) -> int:
    from adapters.formats.merged_model import export_model
    from adapters.merge import merge_and_compare
    from experiments.announce import count_base

    settings, adapters, folder = adapters_to_write(options)
    if not 0 < options.shard_size < 1e6:
        raise UserError(f"--shard-size {options.shard_size} should be a number of GB")
    model, template = load_stored(settings, adapters, options)
    merged = describe_adapters(model)
    ids, said = probe_ids(model, template)
    difference, deviation = merge_and_compare(model, ids)
    files = export_model(model, folder, int(options.shard_size * 1e9))
    stored, computed = (
        str(dtype).removeprefix("torch.")
        for dtype in (model.input_embedding.weight.dtype, model.dtype)
    )
    print(f"merged    {merged} into {settings.model}: {count_base(model):,} parameters, {stored}")
    print(
        f"checked   largest logit difference {difference:.2g} on {said}, computed in {computed}; "
        f"standard deviation of the logits {deviation:.2g}"
    )
    print_files(folder, files)
    print(
        f"use it    as --model {folder} of any command (prompt template: {template.name}), or with "
        "transformers and vLLM"
    )
    return 0


def load_stored(
    settings: "Settings", adapters: list[Path], options: argparse.Namespace
) -> "tuple[LanguageModel, Template]":
    """(model with the adapters, prompt template); the weights in the dtype they are stored in,
    unless --dtype is given. float16 on a CPU is computed in float32, which is faster there."""
    import torch

    from experiments.base import choose_devices
    from experiments.loading import load_with_adapter
    from model.registry import resolve
    from model.weights import tensors

    if options.dtype is None:
        folder = resolve(settings.model, settings.revision or None)
        # "weight": a quantised checkpoint also has scales, of another dtype
        first = next(tensor for name, tensor in tensors(folder) if name.endswith("weight"))
        half = first.dtype == torch.float16 and choose_devices(settings)[0].type == "cpu"
        settings = replace(settings, dtype="float16" if half else "auto")
    model, _, template, _ = load_with_adapter(
        settings, adapters, options.average, with_tokenizer=False
    )
    if model.dtype == torch.float16 and model.device.type == "cpu":
        model.dtype = torch.float32
    return model, template


def probe_ids(model: "LanguageModel", template: "Template") -> "tuple[Tensor, str]":
    """(token ids int64 [1, T] to compare logits on, what they are): a prompt in the template, or
    random ids where the model has no tokenizer."""
    import torch

    from data.batches import encode_prompt
    from model import load_tokenizer

    try:
        tokenizer = load_tokenizer(str(model.folder))
        tokenizer.fit(model.config.vocab_size)
        _, ids = encode_prompt(tokenizer, {"instruction": PROBE}, template)
        said = f"a prompt of {len(ids)} tokens"
    except UserError as error:
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(model.config.vocab_size, (32,), generator=generator).tolist()
        said = f"32 random token ids ({error})"
    return torch.tensor([ids], device=model.device), said

"""merge: fold adapters into the weights of their model, for transformers and vLLM."""

import argparse
from dataclasses import replace
from pathlib import Path

from cli.options import (
    REQUIRED,
    SHARD_SIZE,
    add,
    add_trained_model,
    measuring_settings,
    print_files,
)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "The weights keep the checkpoint's dtype unless --dtype is given; they are merged in\n"
        "float32 and rounded once."
    )
    add_trained_model(parser, average=True)
    out = {"--out FOLDER": (str, "new folder of the merged model", REQUIRED)}
    add(parser, "output", out | SHARD_SIZE)


def run(options: argparse.Namespace) -> int:
    from experiments.merging import check_to_write, merge_model

    settings, adapters = measuring_settings(options)
    settings, out = replace(settings, dtype=options.dtype or "auto"), Path(options.out)
    check_to_write(settings, adapters, out)
    merged = merge_model(settings, adapters, out, options.average, options.shard_size)
    stored, computed = (str(d).removeprefix("torch.") for d in (merged.stored, merged.computed))
    print(
        f"merged    {merged.adapters} into {settings.model}: {merged.parameters:,} parameters, "
        f"{stored}\nchecked   largest logit difference {merged.difference:.2g} on "
        f"{merged.compared_on}, computed in {computed}; standard deviation of the logits "
        f"{merged.deviation:.2g}"
    )
    print_files(out, merged.files)
    print(
        f"use it    as --model {out} of any command (prompt template: {merged.template.name}), or "
        "with transformers and vLLM"
    )
    return 0

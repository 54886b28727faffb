"""export: write an adapter for another program, or in another format."""

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
)  # fmt: skip
from files.errors import UserError, unknown


def add_options(parser: argparse.ArgumentParser) -> None:
    add_trained_model(parser)
    output = {
        "--for NAME": (
            str,
            "transformers: the whole model, any adapter in it; peft, vllm: the adapter, where they "
            "can compute it",
        ),
        "--format NAME": (str, "peft (default), paper (the paper's code) or native"),
        "--plain": (bool, "peft: variants of LoRA as LoRA with alpha = r, for vLLM and llama.cpp"),
        "--out FOLDER": (str, "new folder of the adapter", REQUIRED),
    }
    add(parser, "output", output | SHARD_SIZE)


def run(options: argparse.Namespace) -> int:
    from adapters.formats.folders import FORMATS
    from experiments.exporting import export_adapter, export_for

    engine, format = getattr(options, "for"), options.format or "peft"
    if engine and (options.format or options.plain):
        raise UserError("--for chooses the format itself: leave out --format and --plain")
    if format not in FORMATS:
        raise unknown("--format", format, FORMATS)
    if options.plain and format != "peft":
        raise UserError(f"--plain is for --format peft, not {format}")
    settings, adapters = measuring_settings(options)
    folder = Path(options.out)
    if engine:
        settings = replace(settings, dtype=options.dtype or "auto")
        done = export_for(engine, settings, adapters, folder, options.shard_size)
    else:
        done = export_adapter(settings, adapters, folder, format, options.plain)
    kind = f"for {engine}" if engine else f"as {format}{', plain' if options.plain else ''}"
    print(f"exported  {done.adapters} of {settings.model}, {kind}")
    print_files(folder, done.files)
    print(f"use it    {done.use}")
    return 0

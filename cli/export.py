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
    from adapters import load_adapter, save_adapter
    from adapters.formats.folders import FORMATS
    from adapters.several import SETUP
    from experiments.base import load_base
    from experiments.exporting import export_for
    from experiments.merging import check_to_write, describe_adapters

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
        use = export_for(engine, settings, adapters, folder, options.shard_size)
        print(f"exported  {settings.model} with {', '.join(map(str, adapters))}, for {engine}")
        print_files(folder, sorted(folder.iterdir()))
        print(f"use it    {use}")
        return 0
    check_to_write(settings, adapters, folder)
    if len(adapters) > 1:
        raise UserError("export writes one adapter at a time: give one --adapter")
    (adapter,) = adapters
    if (adapter / SETUP).is_file():
        raise UserError(
            f"{adapter} holds several adapters: choose one of them, such as "
            f"--adapter {adapter / 'default'}, the one that was trained"
        )
    model = load_base(settings)
    about = load_adapter(model, adapter)
    exported = describe_adapters(model)
    save_adapter(model, folder, format=format, run=about, plain=options.plain)
    plain = ", plain" if options.plain else ""
    print(f"exported  {exported} of {settings.model}, as {format}{plain}")
    print_files(folder, sorted(folder.iterdir()))
    return 0

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
        "--for NAME": "transformers: the whole model, any adapter in it; peft, vllm: the adapter, "
        "where they can compute it; llama.cpp, ollama: GGUF files of LLaMA and BLOOM",
        "--gguf KIND": "llama.cpp, ollama: merged (default), one model; lora, only the adapter; "
        "both, the base and its LoRA",
        "--format NAME": "peft (default), paper (the paper's code) or native",
        "--plain": (bool, "peft: variants of LoRA as LoRA with alpha = r, for vLLM and llama.cpp"),
        "--out FOLDER": (str, "new folder of the adapter", REQUIRED),
    }
    add(parser, "output", output | SHARD_SIZE)
    push = {
        "--push OWNER/NAME": "put the folder on the hub, into a repository that is made if needed",
        "--private": (bool, "the repository is private"),
    }
    add(parser, "hub", push)


def run(options: argparse.Namespace) -> int:
    from adapters.formats.folders import FORMATS
    from experiments.exporting import GGUF, check_push, export_adapter, export_for, push

    engine, format = getattr(options, "for"), options.format or "peft"
    if engine and (options.format or options.plain):
        raise UserError("--for chooses the format itself: leave out --format and --plain")
    if format not in FORMATS:
        raise unknown("--format", format, FORMATS)
    if options.plain and format != "peft":
        raise UserError(f"--plain is for --format peft, not {format}")
    if options.gguf and engine not in GGUF:
        raise UserError(f"--gguf is for --for {' and '.join(GGUF)}")
    if options.push:
        check_push(options.push)
    elif options.private:
        raise UserError("--private is for --push OWNER/NAME")
    settings, adapters = measuring_settings(options)
    folder = Path(options.out)
    if engine:
        settings = replace(settings, dtype=options.dtype or "auto")
        gguf = options.gguf or "merged"
        done = export_for(engine, settings, adapters, folder, options.shard_size, gguf)
    else:
        done = export_adapter(settings, adapters, folder, format, options.plain)
    kind = f"for {engine}" if engine else f"as {format}{', plain' if options.plain else ''}"
    print(f"exported  {done.adapters} of {settings.model}, {kind}")
    print_files(folder, done.files)
    print(f"use it    {done.use}")
    if options.push:
        print(f"pushed    {push(folder, options.push, options.private)}")
    return 0

"""export: write an adapter in the format of PEFT, of the paper's code, or of this project."""

import argparse
from pathlib import Path

from cli.options import REQUIRED, add, add_trained_model, measuring_settings, print_files
from files.errors import UserError, unknown


def add_options(parser: argparse.ArgumentParser) -> None:
    add_trained_model(parser)
    output = {
        "--format NAME": (str, "peft (default), paper (the paper's code) or native", "peft"),
        "--plain": (bool, "peft: variants of LoRA as LoRA with alpha = r, for vLLM and llama.cpp"),
        "--out FOLDER": (str, "new folder of the adapter", REQUIRED),
    }
    add(parser, "output", output)


def run(options: argparse.Namespace) -> int:
    from adapters import load_adapter, save_adapter
    from adapters.formats.folders import FORMATS
    from adapters.several import SETUP
    from experiments.base import load_base
    from experiments.merging import check_to_write, describe_adapters

    if options.format not in FORMATS:
        raise unknown("--format", options.format, FORMATS)
    if options.plain and options.format != "peft":
        raise UserError(f"--plain is for --format peft, not {options.format}")
    settings, adapters = measuring_settings(options)
    folder = Path(options.out)
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
    save_adapter(model, folder, format=options.format, run=about, plain=options.plain)
    plain = ", plain" if options.plain else ""
    print(f"exported  {exported} of {settings.model}, as {options.format}{plain}")
    print_files(folder, sorted(folder.iterdir()))
    return 0

"""pretrain: train a pocket model from scratch."""

import argparse
from pathlib import Path

from cli.options import add, command_line, refuse_others, resumable
from files.errors import UserError


def add_options(parser: argparse.ArgumentParser) -> None:
    table = {
        "--recipe NAME": "a recipe of train/recipes, or a TOML file (pocket)",
        "--family NAME": "llama (default), bloom, opt or gptj",
        "--seed N": (int, "of weights and text (the recipe's)"),
        "--max-steps N": (int, "steps, which decide the length of the text (the recipe's)"),
        "--out FOLDER": "of the new model",
        "--resume FOLDER": "continue the interrupted training here, with its own settings",
    }
    add(parser, "", table)


def run(options: argparse.Namespace) -> int:
    from experiments.folders import fresh_folder
    from experiments.pretrain import ORDER, Order, pretrain, unfinished

    if options.resume:
        refuse_others(options, "--resume continues with its own settings", ("resume",))
        folder = Path(options.resume)
        order = unfinished(folder)
    elif options.out:
        folder = fresh_folder(Path(options.out), numbered=False)
        names = options.recipe or "pocket", options.family or "llama"
        order = Order(*names, options.seed, options.max_steps)
    else:
        raise UserError("pretrain writes a model: give --out FOLDER, or --resume FOLDER")
    again = command_line("pretrain", "--resume", folder)
    with resumable(folder / ORDER, again):
        signal = pretrain(order, folder)
    if signal:
        print(f"stopped; continue with: {again}")
        return 128 + signal
    return 0

"""pretrain: train a pocket model from scratch."""

import argparse
from pathlib import Path

from cli.options import REQUIRED, add


def add_options(parser: argparse.ArgumentParser) -> None:
    table = {
        "--recipe NAME": "a recipe of train/recipes, or a TOML file (pocket)",
        "--family NAME": (str, "llama (default), bloom, opt or gptj", "llama"),
        "--seed N": (int, "of weights and text (the recipe's)"),
        "--max-steps N": (int, "steps, which decide the length of the text (the recipe's)"),
        "--out FOLDER": (str, "of the new model", REQUIRED),
    }
    add(parser, "", table)


def run(options: argparse.Namespace) -> int:
    from experiments.folders import fresh_folder
    from experiments.pretrain import pretrain

    folder = fresh_folder(Path(options.out), numbered=False)
    return pretrain(
        options.recipe or "pocket", options.family, folder, options.seed, options.max_steps
    )

"""pretrain: train a pocket model from scratch."""

import argparse
from pathlib import Path

from cli.options import add


def add_options(parser: argparse.ArgumentParser) -> None:
    add(parser, "--recipe", recipe="a recipe of train/recipes, or a TOML file (pocket)")
    parser.add_argument("--family", default="llama", help="llama (default), bloom, opt or gptj")
    parser.add_argument("--seed", type=int, help="of weights and text (the recipe's)")
    parser.add_argument(
        "--max-steps", type=int, help="steps, which decide the length of the text (the recipe's)"
    )
    parser.add_argument("--out", required=True, help="folder of the new model")


def run(options: argparse.Namespace) -> int:
    from experiments.folders import fresh_folder
    from experiments.pretrain import pretrain

    folder = fresh_folder(Path(options.out), numbered=False)
    return pretrain(
        options.recipe or "pocket", options.family, folder, options.seed, options.max_steps
    )

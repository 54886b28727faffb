"""models and show on the command line."""

import argparse


def add_models(parser: argparse.ArgumentParser):
    return models


def models(options: argparse.Namespace) -> int:
    from model.show import models_text

    print(models_text())
    return 0


def add_show(parser: argparse.ArgumentParser):
    parser.add_argument("--model", default="pocket-llama", help="a name of `run.py models`, a hub repository or a folder (pocket-llama)")
    parser.add_argument("--revision", help="branch, tag or commit of a hub repository")
    return show


def show(options: argparse.Namespace) -> int:
    from model.show import show_text

    print(show_text(options.model, options.revision))
    return 0


COMMANDS = {"models": add_models, "show": add_show}

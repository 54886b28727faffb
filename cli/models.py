"""models: list the models that --model knows by name, with parameters and sizes."""

import argparse


def add_options(parser: argparse.ArgumentParser) -> None:
    """None but --debug."""


def run(options: argparse.Namespace) -> int:
    from model.show import models_text

    print(models_text())
    return 0

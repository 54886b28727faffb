"""models on the command line."""

import argparse


def add_models(parser: argparse.ArgumentParser):
    return models


def models(options: argparse.Namespace) -> int:
    from model.show import models_text

    print(models_text())
    return 0


COMMANDS = {"models": add_models}

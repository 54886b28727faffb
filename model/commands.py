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
    parser.add_argument("--adapter", help="also draw this adapter in the block: a name of adapters/presets.toml, or several, lora+prefix")
    parser.add_argument("--config", help="or the adapter of a TOML file of settings, such as a run.toml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change one setting of the adapter, adapter.size=64")
    return show


def show(options: argparse.Namespace) -> int:
    from model.show import show_text

    print(show_text(options.model, options.revision))
    if options.adapter or options.config or options.set:
        from adapters.show import draw, trained
        from model.show import count
        from train.plan import with_adapter

        model = with_adapter(options)
        share = trained(model) / (count(model) - trained(model))
        print(f"\nwith the adapter {options.adapter or ''}:\n\n{draw(model)}\n\n{trained(model):,} trained parameters, {100 * share:.3f} % of the model")
    return 0


COMMANDS = {"models": add_models, "show": add_show}

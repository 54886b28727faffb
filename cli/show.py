"""show: draw a model's block with its sites, shapes and counts; needs no weights."""

import argparse

from cli.options import add, training_settings


def add_options(parser: argparse.ArgumentParser) -> None:
    add(parser, "--model", "--revision", "--adapter", "--config", "--set")


def run(options: argparse.Namespace) -> int:
    from adapters.show import draw, trained
    from experiments.layout import with_adapter
    from model.show import count, show_text

    model = None
    if options.adapter or options.config or options.set:
        settings = training_settings(options, {})
        options.model = settings.model
        model = with_adapter(settings, "cpu")
    print(show_text(options.model or "pocket-llama", options.revision))
    if model is not None:
        parameters = trained(model)
        share = parameters / (count(model) - parameters)
        print(f"\nwith the adapter {options.adapter or ''}:\n\n{draw(model)}\n")
        print(f"{parameters:,} trained parameters, {100 * share:.3f}% of the model")
    return 0

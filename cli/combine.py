"""combine: the weighted sum of saved adapters as a new one."""

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from cli.options import MODEL, MODEL_OPTIONS, PROGRAM, REQUIRED, add, given, print_files
from files.errors import UserError

if TYPE_CHECKING:  # importing it imports torch
    from adapters.config import AdapterConfig


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "The weighted sum of saved adapters as a new one: 1 adds, -1 subtracts, 0.5 halves."
    )
    parser.epilog = (
        f"{PROGRAM} combine runs/a/adapter=0.5 runs/b/adapter=0.5 --model pocket-llama \\\n"
        "    --how weights --out runs/mean"
    )
    parser.add_argument(
        "parts", nargs="+", metavar="FOLDER=WEIGHT", help="a saved adapter, and its weight"
    )
    add(parser, "model", MODEL)
    table = {
        "--how NAME": (
            str,
            "outputs or cat (default): the exact sum of what they add; svd: the same of LoRAs, cut "
            "to a rank; weights: the sum of their parameters, of the same shapes; ties, dare: of "
            "their parameters, without the changes that cancel each other",
            "outputs",
        ),
        "--rank N": (int, "svd: rank of the sum (default: the largest of the adapters)"),
        "--density SHARE": (float, "ties, dare: share of the entries that is kept (0.5)"),
        "--seed N": (int, "dare: of the entries that are dropped (0)"),
        "--out FOLDER": (str, "new folder of the adapter", REQUIRED),
    }
    add(parser, "sum", table)


def run(options: argparse.Namespace) -> int:
    from adapters import combine, load_adapter, save_adapter
    from data.stored_template import stored_template
    from experiments.base import check_model, load_base
    from experiments.folders import fresh_folder
    from train.settings import settings as make_settings

    parts = [folder_and_weight(text) for text in options.parts]
    settings = make_settings(options=given(options, MODEL_OPTIONS))
    folder = fresh_folder(Path(options.out), numbered=False)
    check_model(settings.model)
    model = load_base(settings)
    weights, runs = {}, []
    for number, (adapter, weight) in enumerate(parts, 1):
        runs.append(load_adapter(model, adapter, name := f"adapter{number}"))
        weights[name] = weight
    template = stored_template(runs)
    chosen = options.rank, options.density, options.seed
    try:
        config = combine(model, weights, "combined", options.how, *chosen)
    except UserError as error:  # which speaks of the names given above
        message = str(error)
        for name, (adapter, _) in zip(weights, parts, strict=True):
            message = message.replace(repr(name), str(adapter))
        raise UserError(message) from None
    about = {"model": settings.model}
    if template:
        about |= {"template": template.name, "template_text": template.table()}
    save_adapter(model, folder, "combined", run=about)
    total = " + ".join(f"{weight:g} x {adapter}" for adapter, weight in parts)
    of_rank = f" of rank {ranks_text(config)}" if options.how == "svd" else ""
    print(f"combined  {total}, {options.how}: {config.kind}{of_rank} at {config.place()}")
    print_files(folder, sorted(folder.iterdir()))
    print(
        f"use it    as --adapter {folder} of evaluate and generate, with --model {settings.model}"
    )
    return 0


def ranks_text(config: "AdapterConfig") -> str:
    """ "8", or "4 to 8" where the sites differ: a sum has no more than its weights allow."""
    part = config.only
    ranks = [part.options.r, *(table.get("r", part.options.r) for table in part.overrides.values())]
    return f"{min(ranks)}" if len(set(ranks)) == 1 else f"{min(ranks)} to {max(ranks)}"


def folder_and_weight(text: str) -> tuple[Path, float]:
    """ "runs/a/adapter=0.5" -> (folder, weight). Raises UserError."""
    folder, _, number = text.rpartition("=")
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not folder or not math.isfinite(weight):
        raise UserError(f"{text!r} should be FOLDER=WEIGHT, such as runs/a/adapter=0.5")
    return Path(folder), weight

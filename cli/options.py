"""The options that several commands share, and the settings they stand for."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from files.errors import UserError

if TYPE_CHECKING:  # the options are there before torch is loaded
    from train.settings import Settings

MODEL_OPTIONS = ("model", "revision", "device", "dtype", "quantize", "shard")


def add_model_options(parser: argparse.ArgumentParser, default: str = "pocket-llama") -> None:
    parser.add_argument(
        "--model",
        help=f"a name of `run.py models`, a hub repository or a folder; default {default}",
    )
    parser.add_argument("--revision", help="branch, tag or commit of a hub repository")
    parser.add_argument(
        "--device",
        "--devices",
        help="cpu, cuda, cuda:1 ...; several, cuda:0,cuda:1, for layers split over them",
    )
    parser.add_argument(
        "--dtype", help="float32, bfloat16 or float16 of the base and the computation"
    )
    parser.add_argument(
        "--quantize",
        help="int8, llm-int8 or nf4: the base's Linears in 8 or 4 bits; none: as they are, whatever the run had",
    )
    parser.add_argument(
        "--shard",
        action="store_true",
        default=None,
        help="under torchrun: each process holds a part of every block's weights",
    )


def add_data_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        help="a name of `run.py data list` (wordproblems for the models named pocket-*, math-v1 for all others), "
        "a .json, .jsonl, .csv, .tsv, .parquet or .txt file, or a data set of the hub, OWNER/NAME",
    )
    parser.add_argument(
        "--data-dir", help="folder that holds the paper's dataset/; without it the data is fetched"
    )
    parser.add_argument(
        "--tests",
        help="the sets to measure on, NAME,NAME, in place of those that belong to the data; a file will do as well",
    )
    parser.add_argument(
        "--columns",
        help="what the columns of your file are called, such as instruction=question,answer=label",
    )
    parser.add_argument(
        "--strict-rows",
        action="store_true",
        default=None,
        help="refuse a file with rows that cannot be used; without it they are left out",
    )
    parser.add_argument(
        "--template",
        help="prompt template: alpaca, paper-v1, plain or chat (the tokenizer's own); "
        "default: chat for your own data where the tokenizer has one, else alpaca",
    )


def data_settings(options: argparse.Namespace) -> dict:
    """The data options that were given, as settings. Raises UserError."""
    found = given(options, ("data", "data_dir", "template"))
    for name in ("only_right", "train_on_test", "strict_rows"):
        if getattr(options, name, None):
            found[name] = True
    if options.tests is not None:
        found["tests"] = [name for name in options.tests.split(",") if name]
        if not found["tests"]:
            raise UserError(f"--tests {options.tests!r} names no set")
    if options.columns is not None:
        found["columns"] = columns_of(options.columns)
    return found


def loads_of(texts: list[str]) -> dict[str, str]:
    """["math=runs/a/adapter"] -> its names and folders. Raises UserError."""
    found: dict[str, str] = {}
    for text in texts:
        name, sign, folder = text.partition("=")
        if not sign or not name.isidentifier() or not folder:
            raise UserError(f"{text!r} should be NAME=FOLDER, such as math=runs/a/adapter")
        if name in found:
            raise UserError(f"--load names an adapter twice: {name}; give each a name of its own")
        found[name] = folder
    return found


def seeds_of(text: str) -> list[int]:
    """ "0,1,2" -> its numbers. Raises UserError."""
    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError:
        raise UserError(f"--seeds {text!r} should be whole numbers, such as 0,1,2") from None


def columns_of(text: str | None) -> dict[str, str]:
    """ "instruction=question,answer=label" -> its pairs. Raises UserError."""
    pairs = [pair.partition("=") for pair in text.split(",")] if text else []
    if not all(field.strip() and name.strip() for field, _, name in pairs):
        raise UserError(
            f"--columns {text!r} should be FIELD=COLUMN,FIELD=COLUMN, such as instruction=question,answer=label"
        )
    found: dict[str, str] = {}
    for field, _, name in pairs:
        if field.strip() in found:
            raise UserError(
                f"--columns {text!r} names the field {field.strip()} twice: give it one column"
            )
        found[field.strip()] = name.strip()
    return found


def given(options: argparse.Namespace, names: tuple[str, ...]) -> dict:
    """The options that were given on the command line, as settings."""
    found = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return found | ({"quantize": ""} if found.get("quantize") == "none" else {})


def measure_settings(
    options: argparse.Namespace, more: dict | None = None
) -> "tuple[Settings, list[Path]]":
    """(settings, folders of adapters) of the commands that use a trained model. Raises UserError."""
    from experiments.loading import settings_to_measure

    return settings_to_measure(
        options.run,
        options.adapter or [],
        config=getattr(options, "config", None),
        recipe=getattr(options, "recipe", None),
        options=given(options, MODEL_OPTIONS) | (more or {}),
        sets=getattr(options, "set", None) or [],
    )


def run_settings(options: argparse.Namespace) -> "Settings":
    """The settings that the options of `plan` or `show` stand for. Raises UserError."""
    from experiments.continued import settings_to_continue
    from train.settings import settings

    chosen = given(options, tuple(key for key in MODEL_OPTIONS if hasattr(options, key)))
    source = getattr(options, "continue_from", None)
    recipe = getattr(options, "recipe", None)
    if not options.config and source is None:
        chosen.setdefault("model", "llama-7b")
    if options.adapter:
        chosen["adapter"] = {"preset": options.adapter}
    if getattr(options, "load", None):
        chosen["load"] = loads_of(options.load)
    if source is not None:
        return settings_to_continue(source, options.config, recipe, chosen, options.set)
    return settings(options.config, recipe, chosen, options.set)

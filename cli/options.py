"""What several commands share: options, reading their values, and printing."""

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from files.errors import UserError

if TYPE_CHECKING:  # importing them imports torch
    from model.language import LanguageModel
    from train.settings import Settings

INSTALLED = Path(sys.argv[0]).stem == "llm-adapters"
PROGRAM = "llm-adapters" if INSTALLED else "python run.py"  # what the user types
NAME = "llm-adapters" if INSTALLED else "run.py"  # in front of error messages
ADAPTER = "a preset of adapters/presets.toml, or several: lora+prefix"
SET = {"action": "append", "default": [], "metavar": "KEY=VALUE"}
FLAG = {"action": "store_true"}
YES = {"action": "store_true", "default": None}  # None: not given, so that the setting stays

SHARED = {
    "--model": {"help": "a name of `models`, a hub repository or a folder (pocket-llama)"},
    "--revision": {"help": "branch, tag or commit of a hub repository"},
    "--dtype": {"help": "float32, bfloat16 or float16 of the base and the computation"},
    "--quantize": {
        "help": "int8, llm-int8 or nf4: the base's Linears in 8 or 4 bits; none: as stored"
    },
    "--shard": {"help": "under torchrun: each process holds a part of every block", **YES},
    "--adapter": {"help": ADAPTER},
    "--load": {
        "help": "a saved adapter to build on, frozen; may be repeated",
        **(SET | {"metavar": "NAME=FOLDER"}),
    },
    "--continue": {
        "help": "train a saved adapter further: that of a run, with the run's settings below the "
        "options given, or one in a folder (native, PEFT or the paper's)",
        "dest": "continue_from",
        "metavar": "RUN_OR_FOLDER",
    },
    "--data": {
        "help": "a name of `data list`, a .json, .jsonl, .csv, .tsv, .parquet or .txt file, or a "
        "data set of the hub, OWNER/NAME (pocket models: wordproblems, others: math-v1)"
    },
    "--data-dir": {"help": "folder that holds the paper's dataset/ (default: fetch the data)"},
    "--columns": {
        "help": "names of your file's columns, such as instruction=question,answer=label"
    },
    "--strict-rows": {"help": "refuse a file with rows that cannot be used", **YES},
    "--template": {
        "help": "prompt template: alpaca, paper-v1, plain, or chat (the tokenizer's own); default: "
        "chat for your own data where the tokenizer has one, else alpaca"
    },
    "--tests": {"help": "test sets or files, NAME,NAME, in place of those of the data"},
    "--recipe": {"help": "a recipe of train/recipes, such as paper, or a TOML file"},
    "--config": {"help": "a TOML file of settings, such as the run.toml of a run"},
    "--set": {"help": "change one setting; may be repeated", **SET},
    "--average": {"help": "average what the adapters add instead of stacking them", **FLAG},
    "--shard-size": {
        "help": "largest size of a file of weights, in GB (5)",
        "type": float,
        "default": 5.0,
    },
    "--json": {"help": "JSON, for programs", **FLAG},
}
MODEL_OPTIONS = ("model", "revision", "device", "dtype", "quantize", "shard")
DATA = ("--data", "--data-dir", "--columns", "--strict-rows", "--template")


def add(group, *flags: str, **changed: str) -> None:
    """Add options of SHARED to a parser or a group; changed: another help text, by name."""
    for flag in flags:
        text = changed.get(flag[2:].replace("-", "_"))
        group.add_argument(flag, **SHARED[flag] | ({"help": text} if text else {}))


def add_device(group) -> None:
    group.add_argument(
        "--device", "--devices", help="cpu, cuda, cuda:1 ...; cuda:0,cuda:1 splits the layers"
    )


def add_model_options(parser: argparse.ArgumentParser, default: str = "pocket-llama") -> None:
    """A group with the options of MODEL_OPTIONS."""
    group = parser.add_argument_group("model")
    model = SHARED["--model"]["help"].replace("pocket-llama", default)
    add(group, "--model", "--revision", model=model)
    add_device(group)
    add(group, "--dtype", "--quantize", "--shard")


def add_trained_model(parser: argparse.ArgumentParser, average: bool = False) -> None:
    """What a command works on: a run, or a model with saved adapters."""
    parser.add_argument("run", nargs="?", help="folder of a run: its model, adapter and template")
    add_model_options(parser)
    group = parser.add_argument_group("adapter")
    group.add_argument(
        "--adapter",
        action="append",
        help="folder of a saved adapter, in place of the run's; several are stacked in this order",
    )
    if average:
        add(group, "--average")


def given(options: argparse.Namespace, names: tuple[str, ...]) -> dict:
    """The options of these names that were given, as a table of settings."""
    table = {name: getattr(options, name, None) for name in names}
    table = {name: value for name, value in table.items() if value is not None}
    return table | ({"quantize": ""} if table.get("quantize") == "none" else {})


def data_settings(options: argparse.Namespace) -> dict:
    """The data options that were given, as a table of settings. Raises UserError."""
    names = ("data", "data_dir", "template", "only_right", "train_on_test", "strict_rows")
    table = given(options, names)
    if options.tests is not None:
        table["tests"] = split_names(options.tests)
        if not table["tests"]:
            raise UserError(f"--tests {options.tests!r} names no set")
    if options.columns is not None:
        table["columns"] = parse_columns(options.columns)
    return table


def training_settings(options: argparse.Namespace, table: dict) -> "Settings":
    """The settings of a run to train or to plan; table: of other options. Raises UserError."""
    from experiments.continued import settings_to_continue
    from train.settings import settings

    table = given(options, MODEL_OPTIONS) | table
    if options.adapter is not None:
        table["adapter"] = {"preset": options.adapter}
    if loads := getattr(options, "load", None):
        table["load"] = parse_loads(loads)
    recipe = getattr(options, "recipe", None)
    if getattr(options, "continue_from", None) is None:
        return settings(options.config, recipe, table, options.set)
    return settings_to_continue(options.continue_from, options.config, recipe, table, options.set)


def measuring_settings(
    options: argparse.Namespace, table: dict | None = None
) -> "tuple[Settings, list[Path]]":
    """(settings, folders of adapters) of a command that uses a trained model. Raises UserError."""
    from experiments.loading import settings_to_measure

    return settings_to_measure(
        options.run,
        options.adapter or [],
        config=getattr(options, "config", None),
        recipe=getattr(options, "recipe", None),
        options=given(options, MODEL_OPTIONS) | (table or {}),
        sets=getattr(options, "set", []),
    )


def adapters_to_write(options: argparse.Namespace) -> "tuple[Settings, list[Path], Path]":
    """(settings, folders of adapters, folder of the result) of merge and export."""
    from experiments.base import check_model
    from experiments.folders import fresh_folder

    settings, adapters = measuring_settings(options)
    if not adapters:
        raise UserError("no adapter is given: give the folder of a run, or --adapter FOLDER")
    check_model(settings.model)
    return settings, adapters, fresh_folder(Path(options.out), numbered=False)


def split_names(text: str | None) -> list[str] | None:
    """ "a,b" -> ["a", "b"]; None stays None."""
    return None if text is None else [name for name in text.split(",") if name]


def parse_numbers(option: str, text: str | None, example: str) -> list[int] | None:
    """ "0,1,2" -> [0, 1, 2]; None stays None. Raises UserError."""
    try:
        return None if text is None else [int(number) for number in text.split(",")]
    except ValueError:
        raise UserError(
            f"{option} {text!r} should be whole numbers with commas, such as {example}"
        ) from None


def parse_loads(texts: list[str]) -> dict[str, str]:
    """["math=runs/a/adapter"] -> {"math": "runs/a/adapter"}. Raises UserError."""
    folders: dict[str, str] = {}
    for text in texts:
        name, sign, folder = text.partition("=")
        if not sign or not name.isidentifier() or not folder:
            raise UserError(f"{text!r} should be NAME=FOLDER, such as math=runs/a/adapter")
        if name in folders:
            raise UserError(f"--load names an adapter twice: {name}; give each its own name")
        folders[name] = folder
    return folders


def parse_columns(text: str | None) -> dict[str, str]:
    """ "answer=label" -> {"answer": "label"}. Raises UserError."""
    columns: dict[str, str] = {}
    for pair in text.split(",") if text else []:
        field, _, column = (part.strip() for part in pair.partition("="))
        if not field or not column:
            raise UserError(
                f"--columns {text!r} should be FIELD=COLUMN,FIELD=COLUMN, such as "
                "instruction=question,answer=label"
            )
        if field in columns:
            raise UserError(f"--columns {text!r} names the field {field} twice: give it one column")
        columns[field] = column
    return columns


def describe_adapters(model: "LanguageModel") -> str:
    """The adapters in use: "lora at q, v and prefix at kv"."""
    from adapters.attach import adapters_named, in_use

    names = dict.fromkeys(name for _, name, _ in in_use(model))
    configs = [next(iter(adapters_named(model, name).values())).config for name in names]
    return " and ".join(f"{config.kind} at {config.place()}" for config in configs)


def print_files(folder: Path, files: list[Path]) -> None:
    """One line on the files that a command has written, with their sizes."""
    from model.show import size_text

    names = [f"{path.name} ({size_text(path.stat().st_size)})" for path in files]
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    total = size_text(sum(path.stat().st_size for path in files))
    print(f"written   {folder}: {', '.join(names[:12])}{more}, {total} in all")


def command_line(*words: object) -> str:
    """A command to copy and paste."""
    return " ".join([PROGRAM, *(shlex.quote(str(word)) for word in words)])

"""What several commands share: options, reading their values, and printing."""

import argparse
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from files.errors import UserError

if TYPE_CHECKING:  # importing them imports torch
    from train.settings import Settings

INSTALLED = Path(sys.argv[0]).stem == "llm-adapters"
PROGRAM = "llm-adapters" if INSTALLED else "python run.py"  # what the user types
NAME = "llm-adapters" if INSTALLED else "run.py"  # in front of error messages
REQUIRED = object()  # in place of a default
MODEL_OPTIONS = ("model", "revision", "device", "dtype", "quantize", "shard")
ADAPTER = "a preset of adapters/presets.toml, or several: lora+prefix"

# An option: "--flag METAVAR" -> help, (type, help) or (type, help, default). bool is a switch,
# list may be repeated.
MODEL = {
    "--model NAME": "a name of `models`, a hub repository or a folder (pocket-llama)",
    "--revision NAME": "branch, tag or commit of a hub repository",
    "--device --devices NAME": "cpu, cuda, cuda:1 ...; cuda:0,cuda:1 splits the layers",
    "--dtype TYPE": "float32, bfloat16 or float16 of the base and the computation",
    "--quantize TO": "int8, llm-int8 or nf4: the base in 8 or 4 bits; none: as it is stored",
    "--shard": (bool, "under torchrun: each process holds a part of every block"),
}
TRAINED = {
    "--adapter NAME": f"{ADAPTER} (parallel)",
    "--load NAME=FOLDER": (list, "a saved adapter to build on, frozen; may be repeated"),
    "--continue FOLDER": "train a saved adapter further: that of a run, with the run's settings "
    "below the options given, or one in a folder (native, PEFT or the paper's)",
}
SAVED = {
    "--adapter FOLDER": (
        list,
        "a saved adapter, in place of the run's; several are stacked in this order",
    )
}
RUN_HELP = "folder of a run: its model, adapter and template"
AVERAGE = {"--average": (bool, "average what the adapters add instead of stacking them")}
DATA = {
    "--data NAME": "a name of `data list`, a .json, .jsonl, .csv, .tsv, .parquet or .txt file, or "
    "a data set of the hub, OWNER/NAME (pocket models: wordproblems, others: math-v1)",
    "--data-dir FOLDER": "folder that holds the paper's dataset/ (default: fetch the data)",
    "--columns NAMES": "of your file's columns, such as instruction=question,answer=label",
    "--strict-rows": (bool, "refuse a file with rows that cannot be used"),
    "--template NAME": "prompt template: alpaca, paper-v1, paper-final, plain, or chat (the "
    "tokenizer's own); default: chat for your own data where the tokenizer has one, else alpaca",
}
TESTS = {
    "--tests NAME,NAME": "test sets or files, in place of those of the data",
    "--items N": (int, "only the first N problems of each test set; 0: all"),
}
SETTINGS = {
    "--recipe NAME": "a recipe of train/recipes, such as paper, or a TOML file",
    "--config FILE": "a TOML file of settings, such as the run.toml of a run",
    "--set KEY=VALUE": (list, "change one setting; may be repeated"),
}
DECODE_MEMORY = {
    "--decode-memory HOW": "packed: a second copy of the weights, faster on a CPU and for int8 and "
    "nf4; plain: none; auto (default): if half of the free memory holds it"
}
COMPILE = {
    "--compile": (bool, "compile the blocks with torch.compile (train.compile, eval.compile)")
}
SHARD_SIZE = {"--shard-size GB": (float, "largest size of a file of weights, in GB (5)", 5.0)}


def add(parser: argparse.ArgumentParser, title: str, table: dict, **changed: str):
    """Add options to a parser, in a group of this title if it has one. Returns the group.

    changed: another help for an option, by its name."""
    group = parser.add_argument_group(title) if title else parser
    for key, spec in table.items():
        flags = [word for word in key.split() if word.startswith("-")]
        metavar = "".join(word for word in key.split() if not word.startswith("-"))
        kind, text, default = (*((str, spec) if isinstance(spec, str) else spec), None)[:3]
        name = flags[0].lstrip("-").replace("-", "_")
        more: dict = {"help": changed.get(name, text), "default": default}
        if kind is bool:
            more |= {"action": "store_true", "default": False}
        elif kind is list:
            more |= {"action": "append", "default": [], "metavar": metavar}
        else:
            more |= {"type": kind, "metavar": metavar}
        if default is REQUIRED:
            more |= {"required": True, "default": None}
        group.add_argument(*flags, dest="continue_from" if name == "continue" else name, **more)
    return group


def pick(table: dict, *names: str) -> dict:
    """The options of these names: pick(MODEL, "--model", "--dtype")."""
    return {key: spec for key, spec in table.items() if key.split()[0] in names}


def add_trained_model(parser: argparse.ArgumentParser, average: bool = False) -> None:
    """What a command works on: a run, or a model with saved adapters."""
    parser.add_argument("run", nargs="?", help=RUN_HELP)
    add(parser, "model", MODEL)
    add(parser, "adapter", SAVED | (AVERAGE if average else {}))


def given(options: argparse.Namespace, names: tuple[str, ...]) -> dict:
    """The options of these names that were given, as a table of settings."""
    found = {name: getattr(options, name, None) for name in names}
    table = {k: v for k, v in found.items() if v is not None and v is not False}
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
    from experiments.loading import settings_to_continue
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


def refuse_others(options: argparse.Namespace, why: str, allowed: tuple[str, ...]) -> None:
    """Raise UserError for an option that was given and has no effect beside this one."""
    for name, value in vars(options).items():
        if name not in (*allowed, "debug") and value not in (None, False, []):
            option = name if name == "run" else "--" + name.replace("_", "-")
            raise UserError(f"{why}; {option} has no effect with it: give no other option")


def measuring_settings(
    options: argparse.Namespace, table: dict | None = None
) -> "tuple[Settings, list[Path]]":
    """(settings, folders of adapters) of a command that uses a trained model. Raises UserError."""
    from experiments.loading import settings_to_measure

    return settings_to_measure(
        options.run,
        options.adapter,
        config=getattr(options, "config", None),
        recipe=getattr(options, "recipe", None),
        options=given(options, MODEL_OPTIONS) | (table or {}),
        sets=getattr(options, "set", []),
    )


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


@contextmanager
def resumable(file: Path, again: str, point: Callable[[], str] = str) -> Iterator[None]:
    """Within this block a second signal, or one while nothing is trained, says how to continue.

    file: what a run writes when it begins. again: the command. point: "" or " from ...".
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        if file.is_file():
            print(f"\nstopped; continue{point()} with: {again}")
        raise

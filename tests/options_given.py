"""What the rows of options share: a trained run, and calls of the commands."""

import json
import tomllib
from pathlib import Path

from in_command import COMMANDS, build_parser, command
from obeyed import Here, Rows

ROWS = Rows()
row = ROWS.row


def options_of(name: str) -> list[str]:
    """The options of a command by their first long name, its arguments by their own."""
    found = []
    for action in build_parser(name)._actions:
        words = [word for word in action.option_strings if word.startswith("--")]
        if "--help" not in words:
            found.append(f"{name} {words[0] if words else action.dest}")
    return found


def every_option() -> list[str]:
    return [option for name in COMMANDS for option in options_of(name)]


class Given(Here):
    @property
    def made(self) -> Path:
        return self.request.getfixturevalue("made")

    @property
    def lora(self) -> Path:
        return self.made / "lora-run" / "adapter"

    @property
    def run(self) -> Path:
        return self.made / "run"


def settings_in(path: Path) -> dict:
    return tomllib.loads(path.read_text())


def rows_for(*commands: str, options: str) -> list[str]:
    return [f"{name} {option}" for name in commands for option in options.split()]


def as_settings(table: dict, expected: dict) -> None:
    """The settings of a file are these: "train.max_steps" -> 2."""
    for key, value in expected.items():
        found = table
        for part in key.split("."):
            found = found[part]
        assert found == value, key


def words_of(options: dict) -> list:
    """{"--seed": 3, "--strict-rows": True} -> words."""
    return [
        word
        for name, value in options.items()
        for word in ((name,) if value is True else (name, value))
    ]


def plan(here, *words, status=0) -> dict:
    """The facts of a plan for the pocket model."""
    model = () if "--model" in words or "--config" in words else ("--model", "pocket-llama")
    return json.loads(command("plan", *model, *words, "--json", status=status))


def source_words(here, *more, model="pocket-llama"):
    """A call of each command that takes a model, with these options."""
    out = ("--out", here.path / "new")
    base = ("--model", model, *more)
    return [
        ("train", "--data", here.sums, *base, *out),
        ("evaluate", "--data", here.sums, *base, *out),
        ("harness", "--tasks", "x", *base),
        ("generate", "--prompt-ids", "5", *base),
        ("merge", "--adapter", here.lora, *base, *out),
        ("export", "--adapter", here.lora, *base, *out),
        ("combine", f"{here.lora}=1", *base, *out),
        ("plan", *base),
    ]


def quick(here, *words, out="out", status=0) -> Path:
    """A run of a step, without an answer."""
    few = "--set train.batch_size=2 --set eval.before=false --set test_share=0".split()
    here.told = command("train", *few, *words, "--out", here.path / out, status=status)
    return here.path / out

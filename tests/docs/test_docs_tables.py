"""The tables of the docs name every option, setting, preset and function that there is."""

import pkgutil
import re
from dataclasses import MISSING, fields

import pytest
from pages import BLOCK, BY_NAME, PAGES

import run as command_line
from adapters.config import METHODS, presets
from train.settings import Eval, Settings, Train


def section(page: str, title: str, level: str = "##") -> str:
    """The text under a heading, up to the next one of its level or above."""
    text = re.split(
        rf"^{level} {re.escape(title)}$", BY_NAME[page], maxsplit=1, flags=re.MULTILINE
    )[1]
    return re.split(rf"^#{{2,{len(level)}}} ", text, maxsplit=1, flags=re.MULTILINE)[0]


def first_cells(text: str) -> set[str]:
    """The names between backticks in the first column of a section's tables."""
    rows = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
    return {name.split()[0] for row in rows for name in re.findall(r"`([^`]+)`", row)}


@pytest.mark.parametrize("command", command_line.COMMANDS)
def test_options_of_a_command_are_those_of_its_parser(command):
    parser = command_line.build_parser(command)
    options = {name for action in parser._actions for name in action.option_strings} - {
        "-h",
        "--help",
        "--debug",
    }
    text = section("commands", command)
    documented = {name for name in first_cells(text) if name.startswith("--")}
    for group in ("model options", "data options"):
        if f"(#{group.replace(' ', '-')})" in text:
            documented |= first_cells(section("commands", group.capitalize()))
    assert documented == options


def test_every_command_is_in_the_table():
    assert first_cells(section("commands", "All commands")) == set(command_line.COMMANDS)


def default_of(field) -> str:
    """A default as the pages write it."""
    value = field.default_factory() if field.default is MISSING else field.default
    value = list(value) if isinstance(value, tuple) else value
    value = str(value).lower() if isinstance(value, bool) else value
    return f"`{'' if value in ('', {}) else value}`"


@pytest.mark.parametrize("cls", [Settings, Train, Eval])
def test_settings_are_in_the_table_with_their_defaults(cls):
    rows = re.findall(
        r"^\| `(\S+)` \|\s*(.*?)\s*\|", section("training", "All settings"), re.MULTILINE
    )
    prefix = "" if cls is Settings else f"{cls.__name__.lower()}."
    documented = {
        name: text for name, text in rows if name.rpartition(".")[0] == prefix.rstrip(".")
    }
    tables = ("train", "eval", "adapter")
    expected = {
        prefix + field.name: default_of(field) for field in fields(cls) if field.name not in tables
    }
    assert documented == {name: text.replace("``", "") for name, text in expected.items()}


@pytest.mark.parametrize("kind", METHODS)
def test_a_methods_options_are_in_the_table(kind):
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", section("methods", "Options"), re.MULTILINE)
    text = dict(rows)[kind]
    documented = dict(re.findall(r"`(\w+)` \(([^)]*)\)", text))
    expected = {field.name: default_of(field).strip("`") for field in fields(METHODS[kind].Options)}
    assert documented == {
        name: {"()": "[]", "": '""'}.get(value, value) for name, value in expected.items()
    }


def test_the_functions_of_the_python_page_exist():
    rows = re.findall(
        r"^\| `\w+`.*?\| (.*) \|$", section("python", "The other functions"), re.MULTILINE
    )
    named = re.findall(r"`((?:\w+\.)+\w+)[(`]", " ".join(rows))
    assert len(named) > 8
    for name in named:
        if not name.startswith("predictions."):
            assert pkgutil.resolve_name(name), name


def test_every_preset_is_on_the_page():
    assert set(presets()) <= set(re.findall(r"`([\w-]+)`", section("methods", "The methods")))


def test_no_line_is_long():
    """Tables, links and shown output may be longer than 110 columns."""
    for page in PAGES:
        for line in BLOCK.sub("", page.read_text(encoding="utf-8")).splitlines():
            assert len(line) <= 110 or line.startswith("|"), (page.name, line)

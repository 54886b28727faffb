"""The docs are true: every block runs and prints what is shown, every table names what exists.

How a page is read:
- A `python` block runs; the blocks of a page share their names.
- In a `bash` block every command of this program runs, unless a comment `# needs ...` says what is
  missing here. A command that trains and whose output is not shown runs two steps on forty rows,
  unless it names data.
  `# exits with 1` is the status that is expected.
- A block with a file name after its language, as in ```json rows.json, is written to that file.
- A `text` block directly after one of these is what it prints; `...` stands for anything.

`PYTHONPATH=. python tests/pages.py` writes what the blocks print now into the pages, but for
outputs with `...`.
"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from pages import (
    BLOCK,
    BY_NAME,
    PAGES,
    PLANS,
    Command,
    blocks_of,
    command_name,
    commands_of,
    pattern_of,
    prepare,
    results,
    tidy,
)
from plans import of_layers

import run as command_line


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> Path:
    return prepare(tmp_path_factory.mktemp("docs"))


@pytest.mark.parametrize(
    ("page", "plans"),
    [
        *((name, name not in PLANS) for name, text in BY_NAME.items() if any(blocks_of(text))),
        *(pytest.param(name, True, marks=pytest.mark.slow) for name in PLANS),
    ],
)
def test_a_page_runs_and_prints_what_it_shows(page, plans, prepared, tmp_path, monkeypatch):
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    if page not in PLANS:
        of_layers(2, monkeypatch, "llama-3.2-1b")
    for block, printed in results(BY_NAME[page], plans):
        if block.shown is not None:
            assert pattern_of(block.shown).fullmatch(tidy(printed)), (
                f"{block.text}\nprints\n{printed}\nnot\n{block.shown}"
            )


def all_commands() -> Iterator[tuple[str, Command]]:
    for name, text in BY_NAME.items():
        for block in blocks_of(text):
            if block.language == "bash":
                yield from ((name, command) for command in commands_of(block.text))


def test_every_command_parses():
    assert len(list(all_commands())) > 60
    for page, command in all_commands():
        if "$" in " ".join(command.arguments):  # a shell script
            continue
        name = command_name(command.arguments)
        assert name in command_line.COMMANDS, (page, command)
        parser = command_line.build_parser(name)
        parser.parse_args(
            command.arguments[1:] if command.arguments[:1] == [name] else command.arguments
        )


def test_what_is_started_otherwise_says_what_it_needs():
    for page, command in all_commands():
        assert command.needs or command.launcher == "python", (page, command)


def test_links_lead_somewhere():
    for page in [*PAGES]:
        text = BLOCK.sub("", page.read_text(encoding="utf-8"))
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if target.startswith("http"):
                continue
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            assert file.exists(), f"{page.name} links to {target}"
            if anchor:
                assert anchor in anchors(file.read_text(encoding="utf-8")), (
                    f"{page.name} links to {target}"
                )


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    heads = re.findall(r"^#+ (.*)$", BLOCK.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}

"""The docs are true: every block runs and prints what is shown, every table names what exists.

How a page is read:
- A `python` block runs; the blocks of a page share their names.
- In a `bash` block every command of this program runs, unless a comment `# needs ...` says what is
  missing here. A command that trains and whose output is not shown runs two steps on forty rows,
  unless it names data.
  `# exits with 1` is the status that is expected.
- A block with a file name after its language, as in ```json rows.json, is written to that file.
- A `text` block directly after one of these is what it prints; `...` stands for anything.

`PYTHONPATH=. python tests/test_docs.py` writes what the blocks print now into the pages,
but for outputs with `...`.
"""

import contextlib
import io
import os
import pkgutil
import re
import shlex
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields
from pathlib import Path

import pytest
from conftest import write_sums

import run as command_line
from adapters.config import METHODS, presets
from train.settings import Eval, Settings, Train

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
SHORT = ["--max-steps", "2", "--items", "2", "--set", "eval.before=false"]
BLOCK = re.compile(r"^```(\w*)(?: +(\S+))?\n(.*?)^```$", re.DOTALL | re.MULTILINE)
BY_NAME = {page.stem: page.read_text(encoding="utf-8") for page in PAGES}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, and the `text` block that shows its output."""

    language: str
    file: str
    text: str
    shown: str | None
    place: tuple[int, int]  # of the output in the page


def blocks_of(page: str) -> Iterator[Block]:
    """The blocks of a page that do something, in order."""
    matches = list(BLOCK.finditer(page))
    for match, after in zip(matches, [*matches, None][1:], strict=True):
        language, file, text = match.groups()
        if language == "text" or not (language in ("python", "bash") or file):
            continue
        follows = (
            after is not None
            and after[1] == "text"
            and not page[match.end() : after.start()].strip()
        )
        shown, place = (after[3], after.span(3)) if follows else (None, (0, 0))
        yield Block(language, file or "", text, shown, place)


@dataclass(frozen=True)
class Command:
    """One line of a bash block that starts this program."""

    arguments: list[str]  # without python run.py
    needs: str
    status: int
    launcher: str


def commands_of(text: str) -> list[Command]:
    """The commands of a bash block that start this program."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        code, _, comment = line.partition(" # ")
        if "run.py" not in code or line.startswith("#"):
            continue
        launcher, _, rest = code.partition("run.py")
        status = re.search(r"exits with (\d+)", comment)
        needs = comment.partition("needs ")[2]
        found.append(
            Command(shlex.split(rest), needs, int(status[1]) if status else 0, launcher.strip())
        )
    return found


def command_name(arguments: list[str]) -> str:
    return arguments[0] if arguments and not arguments[0].startswith("-") else "train"


def is_short(command: Command, shown: bool) -> bool:
    """Whether a command that trains is to run two steps instead of all."""
    return (
        command_name(command.arguments) == "train"
        and not shown
        and "--resume" not in command.arguments
    )


def execute(command: Command, shown: bool) -> str:
    """Run a command in this process; what it printed, with its messages on stderr."""
    arguments = list(command.arguments)
    if is_short(command, shown):
        arguments += SHORT
        if not {"--data", "--continue"} & set(arguments):
            arguments += ["--data", "sums.json"]
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(),
    ):
        try:
            status = command_line.main(arguments)
        except SystemExit as end:
            status = end.code
    messages = [line for line in err.getvalue().splitlines() if line.startswith("run.py")]
    assert status == command.status, (
        arguments,
        status,
        err.getvalue()[-2000:],
        out.getvalue()[-500:],
    )
    return out.getvalue() + "".join(f"{line}\n" for line in messages)


def results(page: str, plans: bool = True) -> Iterator[tuple[Block, str]]:
    """Run the blocks of a page in the current folder: each block with what it printed.

    plans=False: without the blocks that plan, which takes seconds where the model is large.
    """
    names: dict = {"__name__": "page"}
    for block in blocks_of(page):
        if block.file:
            if block.file.endswith(".py") or "/" in block.file:  # part of another test
                continue
            Path(block.file).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(block.text, block.text, "exec"), names)
            yield block, out.getvalue()
        else:
            runs = [command for command in commands_of(block.text) if not command.needs]
            if not plans and any(command.arguments[:1] == ["plan"] for command in runs):
                continue
            yield block, "".join(execute(command, block.shown is not None) for command in runs)


def pattern_of(shown: str) -> re.Pattern:
    """The text of an output block as an expression: `...` is anything."""
    lines = [line.rstrip() for line in shown.rstrip().splitlines()]
    return re.compile(
        r"\n".join(".*?".join(map(re.escape, line.split("..."))) for line in lines), re.DOTALL
    )


def tidy(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.rstrip().splitlines())


def prepare(folder: Path) -> Path:
    """Two short runs, which the pages name runs/first and runs/second."""
    write_sums(folder / "sums.json")
    with contextlib.chdir(folder):
        for name, rate in (("first", "0.01"), ("second", "0.02")):
            arguments = [
                "--adapter",
                "lora",
                "--data",
                "sums.json",
                "--out",
                f"runs/{name}",
                *SHORT,
            ]
            execute(Command([*arguments, "--set", f"train.learning_rate={rate}"], "", 0, ""), True)
    return folder


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> Path:
    return prepare(tmp_path_factory.mktemp("docs"))


PLANS = "memory-and-machines"  # the page that plans large models


@pytest.mark.parametrize(
    ("page", "plans"),
    [
        *((name, name != PLANS) for name, text in BY_NAME.items() if any(blocks_of(text))),
        pytest.param(PLANS, True, marks=pytest.mark.slow),
    ],
)
def test_a_page_runs_and_prints_what_it_shows(page, plans, prepared, tmp_path, monkeypatch):
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
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


def write_outputs(names: list[str]) -> None:
    """Run the pages and write what they print into them; outputs with `...` stay."""
    import tempfile

    with tempfile.TemporaryDirectory() as work:
        base = prepare(Path(work))
        for name in names or BY_NAME:
            text, began = BY_NAME[name], time.time()
            pieces, end = [], 0
            folder = Path(work) / "pages" / name
            shutil.copytree(base, folder, ignore=shutil.ignore_patterns("pages"))
            with contextlib.chdir(folder):
                for block, printed in results(text):
                    if block.shown is None or pattern_of(block.shown).fullmatch(tidy(printed)):
                        continue
                    if "..." in block.shown:
                        print(f"{name}: an output with ... is not this any more:\n{block.text}")
                        continue
                    start, stop = block.place
                    pieces += [text[end:start], tidy(printed) + "\n"]
                    end = stop
            (ROOT / "docs" / f"{name}.md").write_text(
                "".join([*pieces, text[end:]]), encoding="utf-8"
            )
            print(f"{name}: {len(pieces) // 2} outputs written, {time.time() - began:.1f} s")


if __name__ == "__main__":
    os.environ.update(HF_HUB_OFFLINE="1", LLM_ADAPTERS_MIRROR="http://127.0.0.1:9")
    write_outputs(sys.argv[1:])

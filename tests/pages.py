"""The pages of docs/: their blocks and commands, run in a folder of their own."""

import contextlib
import io
import os
import re
import shlex
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from conftest import write_sums
from processes import ROOT

import run as command_line

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
    """Whether a command that trains is to run two short steps instead of all."""
    return (
        command_name(command.arguments) == "train"
        and not shown
        and "--resume" not in command.arguments
    )


def execute(command: Command, shown: bool) -> str:
    """Run a command in this process; what it printed, with its messages on stderr."""
    arguments = list(command.arguments)
    if is_short(command, shown):
        arguments += [*SHORT, "--set", "train.batch_size=8"]
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


PLANS = ("memory-and-machines", "paper")  # the pages that plan large models


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

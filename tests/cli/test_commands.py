"""The command line itself: help without torch, first and last words, usage, packaging."""

import ast
import json
import re
import resource
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from processes import ROOT

import run as starter
from cli import __version__
from cli.closing import closing_lines
from cli.main import COMMANDS, build_parser, parse
from cli.train import first_line
from experiments.run import Result
from train.settings import settings


def python(code: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=300
    )


def test_help_of_every_command_needs_neither_torch_nor_the_model():
    done = python(
        """
from cli.main import COMMANDS, main
for command in COMMANDS:
    for words in ([command, "--help"], ["help", command]):
        try:
            main(words)
        except SystemExit as end:
            assert end.code == 0, words
print("LOADED", *sorted({name.split(".")[0] for name in sys.modules}))
"""
    )
    assert done.returncode == 0, done.stderr
    text, _, loaded = done.stdout.partition("LOADED")
    assert not {"torch", "numpy", "model", "adapters", "train", "eval"} & set(loaded.split())
    for command in COMMANDS:
        assert f"python run.py {command}" in text or command == "train"


def test_help_takes_less_than_a_third_of_a_second():
    """Of the processor, the least of three: other processes on this machine do not count."""

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, ROOT / "run.py", "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 0.3


def test_the_overview_is_a_table_of_commands_and_groups_of_options(capsys):
    for words in (["help"], ["--help"], ["train", "-h"]):
        with pytest.raises(SystemExit):
            starter.main(words)
        text = capsys.readouterr().out
        for command, about in COMMANDS.items():
            assert re.search(rf"^  {command} +{re.escape(about)}$", text, re.MULTILINE)
        for title in ("model", "adapter", "data", "training", "evaluation", "output"):
            assert f"\n{title}:\n" in text
        assert max(map(len, text.splitlines())) <= 100


def test_the_first_line_is_printed_before_torch_is_imported(tmp_path):
    """With a torch that cannot be imported: the line is there and the error follows."""
    done = python(
        "sys.modules['torch'] = None\nfrom cli.main import main\nsys.exit(main([]))", tmp_path
    )
    assert done.stdout == (
        "pocket-llama + parallel on wordproblems -> runs/pocket-llama-parallel-wordproblems\n"
    )
    assert done.stderr == "run.py: the package torch is missing: pip install -r requirements.txt\n"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            "--model llama-7b --adapter lora",
            "llama-7b + lora on math-v1 -> runs/llama-7b-lora-math",
        ),
        ("--model m/own --data my.json", "m/own + parallel on my.json -> runs/own-parallel-my"),
        ("--out x", "pocket-llama + parallel on wordproblems -> x"),
        ("--resume runs/a", "resuming runs/a"),
        ("--continue runs/a --out b", "training runs/a further -> b"),
        ("--config a.toml --set seed=1", "training with a.toml, seed=1"),
    ],
)
def test_the_first_line_names_what_runs(words, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, options = parse(words.split())
    assert first_line(options).startswith(line)


def answers(right: int, total: int = 4) -> list[dict]:
    return [
        {"set": "addsub", "index": index, "right": index < right, "paper_right": False}
        for index in range(total)
    ]


@pytest.mark.parametrize(
    ("result", "sentence"),
    [
        (Result(answers(1), answers(3)), "on 1 test set from 25.0% to 75.0%."),
        (Result([], answers(3)), "the mean accuracy on 1 test set is 75.0%."),
        (
            Result([], [], loss={"rows": 2, "before": 2.5, "after": 1.25}),
            "took the held-out loss per token from 2.5000 to 1.2500.",
        ),
        (Result([], []), "was not measured."),
    ],
)
def test_a_run_ends_with_a_sentence_and_three_commands(result, sentence):
    folder = Path("runs/a folder")
    _, shown, _, *lines = closing_lines(result, settings(), folder)
    assert shown.endswith(sentence)
    commands = [shlex.split(line, comments=True) for line in lines]
    assert [words[:4] for words in commands] == [
        ["python", "run.py", command, str(folder)]
        for command in ("inspect", "generate", "evaluate")
    ]
    for words in commands:
        build_parser(words[2]).parse_args(words[3:])


def test_only_the_command_line_knows_argparse():
    """No module outside cli/ imports argparse or takes a Namespace."""
    checked = 0
    for path in ROOT.glob("*/**/*.py"):
        room = path.relative_to(ROOT).parts[0]
        if room in ("cli", "tests") or room.startswith("."):
            continue
        checked += 1
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            elif isinstance(node, ast.arg) and node.annotation:
                assert "Namespace" not in ast.unparse(node.annotation), path
            assert not {"argparse", "cli"} & {name.split(".")[0] for name in names}, path
    assert checked > 100


def requirements(name: str) -> list[str]:
    lines = (line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return [line.replace('"', "'") for line in lines if line and not line.startswith("-r")]


def test_the_package_is_what_requirements_and_folders_say():
    toml = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project, setuptools = toml["project"], toml["tool"]["setuptools"]
    assert project["dependencies"] == requirements("requirements.txt")
    assert project["optional-dependencies"]["dev"] == requirements("requirements-dev.txt")
    assert setuptools["dynamic"]["version"] == {"attr": "cli.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)
    packages = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in ROOT.glob("*/**/__init__.py")
        if path.relative_to(ROOT).parts[0] != "tests"
        and not path.relative_to(ROOT).parts[0].startswith(".")
    }
    assert set(setuptools["packages"]) == packages
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    data = {
        Path(name)
        for name in listed.stdout.splitlines()
        if name.split("/")[0] in packages and Path(name).suffix not in (".py", ".md")
    }
    covered = {
        path.relative_to(ROOT)
        for package, patterns in setuptools["package-data"].items()
        for pattern in patterns
        for path in (ROOT / package).glob(pattern)
    }
    assert data <= covered
    name, _, function = project["scripts"]["llm-adapters"].partition(":")
    assert getattr(sys.modules[name], function) is starter.start


def test_json_of_a_plan_is_all_that_is_printed(capsys):
    assert starter.main(["plan", "--model", "pocket-llama", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == "pocket-llama"


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_memory_that_a_step_frees_is_there_for_the_next():
    """A page of blocks of 1 MB is asked for once, not in every round (counted: page faults)."""
    code = """
import resource
from cli.main import keep_freed_memory
{call}
for _ in range(5):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [bytearray(2**20) for _ in range(20)]
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    plain, kept = (
        int(python(code.format(call=call)).stdout) for call in ("", "keep_freed_memory()")
    )
    assert kept < 1000 < 4000 < plain

"""The README tells the truth: its file tree is the repository's, its commands exist, its import rule holds."""

import ast
import re
import shlex
import subprocess
from pathlib import Path

import run as command_line

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
ROOMS = (  # from the top down
    "cli",
    "benchmarks",
    "experiments",
    "train",
    "eval",
    "data",
    "adapters",
    "model",
    "files",
)
OPTIONAL = {
    "jinja2",
    "pyarrow",
    "datasets",
    "lm_eval",
    "wandb",
}  # chat templates (torch brings it), parquet, the harness: each says what to install


def tracked() -> list[str]:
    """Files of the repository, also outside a git checkout (a downloaded archive)."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        return [name for name in listed.splitlines() if (ROOT / name).is_file()]
    except (OSError, subprocess.CalledProcessError):
        skip = {".venv", "runs", "models", "__pycache__", ".pytest_cache", ".ruff_cache"}
        return [
            str(path.relative_to(ROOT))
            for path in ROOT.rglob("*")
            if path.is_file() and not skip & set(path.relative_to(ROOT).parts)
        ]


def tree_entries() -> set[str]:
    """Paths of the annotated tree: the block that begins with run.py; indented names lie in the folder above them."""
    block = re.search(r"```\n(run\.py.*?)```", README, re.DOTALL)[1]
    found, folder = set(), ""
    for line in block.splitlines():
        names = line.rstrip()
        if not names:
            continue
        indented = names.startswith("  ")
        for name in re.split(r"\s{2,}", names.strip())[0].split():
            if name.endswith("/") and not indented:
                folder = name
                found.add(name)
            else:
                found.add((folder if indented else "") + name)
    return found


def test_the_tree_and_the_repository_agree():
    entries = tree_entries()
    for entry in entries:
        assert (ROOT / entry).exists(), f"README names {entry}, which is not there"
    whole = {
        entry
        for entry in entries
        if entry.endswith("/")
        and not any(other != entry and other.startswith(entry) for other in entries)
    }
    for name in tracked():
        if name.startswith(".") or name.endswith("__init__.py"):
            continue
        assert name in entries or any(name.startswith(folder) for folder in whole), (
            f"{name} is not in README's file tree"
        )


def commands() -> list[list[str]]:
    """Every `python run.py ...` in the README's code blocks."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    lines = (
        "\n".join(text for language, text in blocks if language in ("", "bash"))
        .replace("\\\n", " ")
        .splitlines()
    )
    return [
        shlex.split(line.split("python run.py", 1)[1], comments=True)
        for line in lines
        if "python run.py" in line
    ]


def test_the_two_commands_are_in_the_readme_and_in_ci():
    ci = (ROOT / ".ci" / "run").read_text()
    for command in (
        "pip install -r requirements.txt && python run.py",
        "pip install -r requirements-dev.txt && python -m pytest",
    ):
        assert command in README
        assert command.replace("install", "install -q") in ci


def test_every_command_of_the_readme_parses():
    assert len(commands()) >= 8
    for arguments in commands():
        name = arguments[0] if arguments and not arguments[0].startswith("-") else "train"
        assert name in command_line.COMMANDS, arguments
        parser, _ = command_line.build(name)
        parser.parse_args(arguments[1:] if arguments and arguments[0] == name else arguments)


def test_the_python_block_runs(tmp_path, monkeypatch):
    block = next(
        text
        for text in re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
        if "load_model(" in text
    )
    monkeypatch.chdir(tmp_path)  # it saves an adapter
    exec(compile(block, "README.md", "exec"), {})
    assert (tmp_path / "my-adapter" / "adapter_config.json").is_file()


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name.split(".")[0] for name in names}


def test_imports_go_one_way():
    """A room imports only from the rooms after it in ROOMS, also inside of functions."""
    for at, room in enumerate(ROOMS):
        above = {*ROOMS[:at], "run"}
        for path in (ROOT / room).rglob("*.py"):
            assert not imports(path) & above, path
            assert not imports(path) & {"transformers", "peft"}, path


def test_requirements_name_all_that_is_imported():
    needed = {
        name.split(">")[0].split("<")[0].replace("-", "_")
        for name in (ROOT / "requirements.txt").read_text().split()
    }
    ours = {*ROOMS, "run"}
    import sys

    used = set().union(
        *(imports(path) for folder in ours - {"run"} for path in (ROOT / folder).rglob("*.py")),
        imports(ROOT / "run.py"),
    )
    assert used - ours - set(sys.stdlib_module_names) <= needed | OPTIONAL


def test_optional_extras_are_imported_where_they_are_needed_alone():
    for folder in ROOMS:
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.parse(path.read_text()).body:
                names = (
                    [alias.name for alias in node.names]
                    if isinstance(node, ast.Import)
                    else [getattr(node, "module", None) or ""]
                )
                assert not {name.split(".")[0] for name in names} & OPTIONAL, path


def test_family_files_read_like_a_paper():
    longest = {"llama": 252, "bloom": 250, "opt": 250, "gptj": 250}  # llama.py has two pictures
    for family, lines in longest.items():
        assert len((ROOT / "model" / f"{family}.py").read_text().splitlines()) <= lines

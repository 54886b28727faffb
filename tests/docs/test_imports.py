"""Imports go down the rooms only, and the requirements name what is imported."""

import ast
import re
import sys
from functools import cache
from pathlib import Path

from processes import ROOT
from repository import ROOMS, ROOT

# Installed only by those who need them; the error names the package: chat templates (torch brings
# jinja2), parquet, data sets of the hub, the harness, curves, plots and what is compared with.
PEER = {"transformers", "peft"}
SERVER = {"starlette", "uvicorn"}
COPIED = ROOT / "adapters/formats/modeling_adapter.py"  # into folders for transformers
OPTIONAL = {"jinja2", "gguf", "pyarrow", "datasets", "lm_eval", "wandb", "matplotlib", "ray", *PEER}
OPTIONAL |= {*SERVER, "triton"}
KERNELS = ROOT / "model/quantize/fused.py"  # of triton; itself imported inside of a function
OF_THE_SERVER = {"serve/app.py", "serve/stream.py"}  # themselves imported inside of functions


# ---------------------------------------------------------------- imports


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name.split(".")[0] for name in names}


def test_imports_go_one_way():
    """A room imports only from the rooms after it in ROOMS, also inside of functions."""
    for at, room in enumerate(ROOMS):
        above = {*ROOMS[:at], "run", "minimal"}
        for path in (ROOT / room).rglob("*.py"):
            assert not imports(path) & above, path
            is_peer = (room == "benchmarks" and path.stem.startswith("peer")) or path == COPIED
            assert is_peer or not imports(path) & PEER, path


def test_minimal_is_one_file():
    ours = {*ROOMS, "run"}
    packages = imports(ROOT / "minimal.py") - set(sys.stdlib_module_names)
    assert packages == {"torch", "safetensors", "tokenizers"}
    assert not packages & ours
    assert len((ROOT / "minimal.py").read_text().splitlines()) <= 240


def test_requirements_name_all_that_is_imported():
    lines = (ROOT / "requirements.txt").read_text().split()
    needed = {re.split("[<>=]", line)[0].replace("-", "_") for line in lines}
    ours = {*ROOMS, "run"}
    used = imports(ROOT / "run.py") | imports(ROOT / "minimal.py")
    for room in ROOMS:
        used |= set().union(*(imports(path) for path in (ROOT / room).rglob("*.py")))
    assert used - ours - set(sys.stdlib_module_names) <= needed | OPTIONAL


def test_optional_extras_are_imported_where_they_are_needed():
    """Inside of functions: with the import at its top a module could not be loaded without."""
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            for node in parsed(path).body:
                names = [getattr(node, "module", None) or ""]
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                is_server = str(path.relative_to(ROOT)) in OF_THE_SERVER
                optional = OPTIONAL - SERVER if is_server else OPTIONAL
                optional = optional - {"triton"} if path == KERNELS else optional
                assert not {name.split(".")[0] for name in names} & optional or path == COPIED
                here = {name.replace(".", "/") + ".py" for name in names}
                assert is_server or not here & OF_THE_SERVER, path
                assert str(KERNELS.relative_to(ROOT)) not in here, path


def test_what_is_copied_into_folders_is_self_contained_and_not_imported():
    assert imports(COPIED) == {"inspect", "torch", "transformers"}
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            assert "import modeling_adapter" not in path.read_text(), path


def test_family_files_read_like_a_paper():
    longest = {"llama": 200, "bloom": 215, "opt": 210, "gptj": 200}  # opt.py has two pictures
    for family, lines in longest.items():
        assert len((ROOT / "model" / f"{family}.py").read_text().splitlines()) <= lines

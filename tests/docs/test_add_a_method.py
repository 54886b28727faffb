"""The section "Add an adapter in one file" of docs/methods.md, followed in a copy."""

import json
import re
import shutil

import pytest
from conftest import write_sums
from processes import finish
from repository import ROOMS, ROOT, tracked


def blocks() -> dict[str, str]:
    """The section's code blocks by the file they go to."""
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    section = page.split("## Add an adapter in one file", 1)[1]
    return dict(
        re.findall(r"^```\w+ (adapters/\S+)\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    )


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The repository with the page's file, row and preset."""
    folder = tmp_path_factory.mktemp("copy")
    for name in tracked():
        if name.split("/")[0] in (*ROOMS, "run.py"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    pieces = blocks()
    assert list(pieces) == [
        "adapters/methods/ssf.py",
        "adapters/config.py",
        "adapters/presets.toml",
    ]
    assert not (folder / "adapters" / "methods" / "ssf.py").exists()
    (folder / "adapters" / "methods" / "ssf.py").write_text(pieces["adapters/methods/ssf.py"])
    config = folder / "adapters" / "config.py"
    row = pieces["adapters/config.py"]
    assert row.count("\n") == 1
    config.write_text(
        config.read_text().replace(
            '    "bottleneck": "bottleneck.Bottleneck",\n',
            '    "bottleneck": "bottleneck.Bottleneck",\n' + row,
        )
    )
    presets = folder / "adapters" / "presets.toml"
    presets.write_text(presets.read_text() + "\n" + pieces["adapters/presets.toml"])
    return folder


def commands(copy, *lines: str) -> list[str]:
    """What each command prints; all in one process, which imports the copy in place of ours."""
    code = f"import sys\nsys.path.insert(0, {str(copy)!r})\n"
    code += f"for name in list(sys.modules):\n    if name.split('.')[0] in {ROOMS!r}:\n"
    code += "        del sys.modules[name]\nfrom cli.main import main\n"
    for line in lines:
        code += f"status = main({line.split()!r})\nassert status == 0, status\nprint('END')\n"
    done = finish("-c", code, cwd=copy)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("END\n")


@pytest.mark.parametrize(
    "family",
    [
        "llama",
        *(pytest.param(family, marks=pytest.mark.slow) for family in ("bloom", "opt", "gptj")),
    ],
)
def test_it_trains_is_saved_and_is_loaded_and_the_other_commands_know_it(copy, family):
    rows = json.loads(write_sums(copy / "all.json").read_text())
    (copy / "sums.json").write_text(json.dumps(rows[:9]))  # a step takes all that are trained on
    _, evaluated, planned, shown, _ = commands(
        copy,
        f"--model pocket-{family} --adapter ssf --data sums.json --max-steps 8 --items 2 "
        f"--set train.batch_size=8 --set train.warmup_steps=0 --set train.epochs=9 "
        f"--set eval.before=false --set eval.max_new_tokens=4 --out runs/{family}",
        f"evaluate runs/{family} --items 2",
        "plan --model pocket-llama --adapter ssf --json --length 16",
        "show --model pocket-bloom --adapter ssf --set adapter.shift=false",
    )
    losses = [
        json.loads(line)["loss"]
        for line in (copy / "runs" / family / "log.jsonl").read_text().splitlines()
    ]
    assert losses[-1] < 0.7 * losses[0]
    assert "with adapter" in evaluated
    assert json.loads(planned)["trainable_parameters"] == 4 * 2 * (3 * 128 + 344)
    assert "{qkv}" in shown

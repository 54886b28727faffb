"""The grid of runs and its table, beside the published figures."""

import csv
import json
import shutil

import processes
import pytest
from paper_folder import write_paper_folder

import run as command_line
from experiments import jobs
from experiments.jobs import Job, run_jobs
from train.settings import settings

QUICK = ("--set", "train.max_steps=12", "--set", "eval.items=2", "--set", "eval.max_new_tokens=4")


@pytest.fixture(autouse=True, scope="module")
def forked_jobs():
    """The runs of a grid start faster (tests/processes.py)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "subprocess", processes)
        yield


def main(*words) -> int:
    return command_line.main([str(word) for word in words])


def test_the_pocket_table_runs_what_is_missing_and_says_what_failed(tmp_path, capsys):
    words = (
        *"table --pocket --models pocket-opt --adapters lora,prefix".split(),
        *QUICK,
        "--set",
        "quantize=int8",
        "--out",
        tmp_path,
    )
    assert main(*words) == 0
    text = (tmp_path / "table.md").read_text()
    assert "| pocket-opt, int8 | prefix | 30,720 |" in text
    lines = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert len(lines) == 2 * 8 * 2  # adapters, sets and their average, readers
    assert all(
        float(line["low"]) <= float(line["accuracy"]) <= float(line["high"]) for line in lines
    )
    stamp = (tmp_path / "pocket-opt-lora" / "result.json").stat().st_mtime_ns
    (tmp_path / "pocket-opt-prefix" / "result.json").unlink()
    capsys.readouterr()
    assert main(*words) == 0
    assert "2 runs in" in (said := capsys.readouterr().out)
    assert "1 of them complete" in said
    assert (tmp_path / "pocket-opt-lora" / "result.json").stat().st_mtime_ns == stamp
    (tmp_path / "bad.toml").write_text('model = "pocket-opt"\ndtype = "int3"\n')
    said = []
    failed = run_jobs([Job(settings(), "lora", tmp_path / "bad")], say=said.append)
    assert [job.folder.name for job in failed] == ["bad"]
    assert "float32" in said[0]  # the reason, from the end of its log


def test_a_grid_from_toml_has_each_model_without_adapter_and_every_seed(tmp_path, capsys):
    data = write_paper_folder(tmp_path / "paper")
    (tmp_path / "grid.toml").write_text(f"""
data = "math-v1"
data_dir = "{data}"
models = ["pocket-llama"]
adapters = ["lora"]
seeds = [0, 1]
recipe = "paper"
[settings.train]
max_steps = 2
warmup_steps = 1
validation_rows = 2
[settings.eval]
items = 2
max_new_tokens = 3
beams = 2
""")
    assert main("table", tmp_path / "grid.toml", "--out", tmp_path / "out") in (
        0,
        1,
    )  # two steps need not lower the loss
    folders = sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir())
    assert folders == ["pocket-llama-base", "pocket-llama-lora-seed0", "pocket-llama-lora-seed1"]
    for name in ("pocket-llama-base/evaluate.toml", "pocket-llama-lora-seed1/run.toml"):
        text = (tmp_path / "out" / name).read_text()
        assert 'template = "paper-v1"' in text
        assert "beams = 2" in text
    text = (tmp_path / "out" / "table.md").read_text()
    assert ", seed 1 |" in text
    assert "| mean of 2 seeds |" in text
    assert "| pocket-llama | none | 0 |" in text
    assert "published" not in text  # the table has no row for this model


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("table",), "--data-dir"),
        (("table", "--pocket", "--adapters", "lara"), "did you mean 'lora'"),
        (("table", "--pocket", "--jobs", "0"), "at least 1"),
        (("table", "--data", "alpaca"), "so say which"),
        (("table", "--pocket", "--seeds", "x"), "whole numbers"),
        (("table", "--pocket", "--models", ""), "should be a list"),
        (("table", "nowhere.toml"), "does not exist"),
        (("table", "--pocket", "--models", "pocket-llama,pocket-llama"), "'pocket-llama' twice"),
        (("table", "--pocket", "--seeds", "1,1"), "twice"),
        (("table", "--pocket", "--set", "seed=3"), "use its own seeds"),
        (("table", "--pocket", "--seeds", "-1"), "from 0"),
        (
            ("table", "--pocket", "--adapters", "lora", "--set", "adapter.size=8"),
            "unknown option of lora adapters 'size'",
        ),
    ],
)
def test_mistakes_are_said_before_anything_runs(words, said, tmp_path, capsys):
    assert main(*words, "--out", tmp_path / "none") == 1
    assert said in (error := capsys.readouterr().err)
    assert error.count("\n") == 1
    assert not (tmp_path / "none").exists()


def test_results_made_under_other_settings_are_not_shown_as_these(tmp_path, capsys):
    words = (
        *"table --pocket --models pocket-llama --adapters lora".split(),
        *QUICK,
        "--out",
        tmp_path,
    )
    assert main(*words, "--set", "adapter.r=4") == 0
    before = (tmp_path / "table.md").read_text()
    for more in (
        ("--set", "adapter.r=8"),
        ("--set", "adapter.r=4", "--set", "train.learning_rate=1e-4"),
    ):
        assert main(*words, *more) == 1
        assert "holds results of other settings (" in (error := capsys.readouterr().err)
        assert error.count("\n") == 1
    assert (
        main(*words, "--set", "adapter.r=4", "--set", "eval.batch_size=7") == 0
    )  # changes nothing
    assert (tmp_path / "table.md").read_text() == before


# ---------------------------------------------------------------- data without answers
@pytest.fixture(scope="module")
def without_answers(tmp_path_factory):
    """The folder of a grid of runs on rows that have no answers."""
    folder = tmp_path_factory.mktemp("grid")
    rows = [
        {"instruction": f"Name a thing of {n} parts.", "output": f"A {n}-gon."} for n in range(30)
    ]
    (folder / "things.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "grid.toml").write_text(f"""
data = "{folder / "things.jsonl"}"
models = ["pocket-llama"]
adapters = ["lora"]
seeds = [3, 4]
[settings]
dtype = "float32"
train.max_steps = 2
train.batch_size = 4
train.warmup_steps = 0
""")
    assert main("table", folder / "grid.toml", "--out", folder / "out") == 0
    return folder / "out"


def test_a_table_without_test_sets_has_the_losses_and_no_average(without_answers):
    assert sorted(path.name for path in without_answers.iterdir() if path.is_dir()) == [
        "pocket-llama-base", "pocket-llama-lora-seed3", "pocket-llama-lora-seed4"]  # fmt: skip
    losses = [json.loads((without_answers / f"pocket-llama-{name}" / "result.json").read_text())[
        "held_out_loss"]
              for name in ("base", "lora-seed3", "lora-seed4")]  # fmt: skip
    heads, _, *lines = (without_answers / "table.md").read_text().splitlines()
    assert heads == "| model | adapter | parameters | loss | held-out loss |  |"
    assert len(lines) == 3
    assert f"| {losses[0]['loss']:.4f} (rows: 3) | strict |" in lines[0]
    for line, loss in zip(lines[1:], losses[1:], strict=True):
        assert (
            f"| {loss['before']:.4f} before, {loss['after']:.4f} after (rows: 3) | strict |" in line
        )
    rows = list(csv.DictReader((without_answers / "table.csv").open()))
    assert [(row["set"], row["accuracy"], row["total"]) for row in rows] == [("", "", "")] * 3
    assert [row["held-out loss, before"] for row in rows] == [
        str(losses[0]["loss"]),
        *(str(one["before"]) for one in losses[1:]),
    ]
    assert [row["held-out loss, after"] for row in rows] == [
        "",
        *(str(one["after"]) for one in losses[1:]),
    ]
    page = (without_answers / "table.html").read_text()
    assert f"{losses[1]['after']:.4f} after" in page
    assert "average" not in page


def test_inspect_says_what_a_run_without_test_set_came_to(without_answers, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(without_answers / "pocket-llama-lora-seed3", run)
    facts = json.loads((run / "result.json").read_text())
    before = {"data": "verbs.jsonl", "steps": 9}
    (run / "result.json").write_text(
        json.dumps(facts | {"problems": ["it is odd"], "notes": ["by hand"], "history": [before]})
    )
    assert main("inspect", run) == 0
    said = capsys.readouterr().out
    loss = facts["held_out_loss"]
    assert (
        f"held-out loss per token: {loss['before']:.4f} before, {loss['after']:.4f} after (rows: 3)"
        in said
    )
    for line in ("PROBLEM: it is odd", "note: by hand", "trained before on verbs.jsonl, 9 steps"):
        assert line in said.splitlines()
    assert main("inspect", without_answers / "pocket-llama-base") == 0
    assert "held-out loss per token: " in capsys.readouterr().out
    assert main("inspect", run, "--wrong") == 1  # there is nothing to choose from
    assert "holds no predictions.jsonl" in capsys.readouterr().err
    (run / "result.json").unlink()
    assert main("inspect", run) == 1
    assert "holds no predictions.jsonl" in capsys.readouterr().err

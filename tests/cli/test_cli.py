"""The command line as a user meets it, in processes of its own: what it writes, and what it says
when something is wrong.
"""

import json
import signal
import tomllib
from pathlib import Path

import processes
import pytest
from command_line import (
    QUICK,
    ROOT,
    checked,  # noqa: F401
    in_process,
    run,
)
from interrupted_runs import finish
from processes import ROOT


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """One complete short run in a folder of its own."""
    cwd = tmp_path_factory.mktemp("work")
    done = processes.finish(ROOT / "run.py", *QUICK, "--seed", "3", cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert "report:" in done.stdout
    return cwd / "runs" / "pocket-llama-parallel-wordproblems"


def test_a_run_leaves_everything_behind(finished):
    names = {path.name for path in finished.iterdir()}
    assert names == {
        "run.toml",
        "log.jsonl",
        "adapter",
        "predictions-base.jsonl",
        "predictions.jsonl",
        "result.json",
        "report.html",
        "checkpoint-000003.pt",
        "leakage.json",
    }
    settings = tomllib.loads((finished / "run.toml").read_text())
    assert (settings["seed"], settings["train"]["max_steps"], settings["adapter"]["preset"]) == (
        3,
        3,
        "parallel",
    )
    assert [
        json.loads(line)["step"] for line in (finished / "log.jsonl").read_text().splitlines()
    ] == [1, 2, 3]
    result = json.loads((finished / "result.json").read_text())
    assert result["after"]["multiarith"]["total"] == result["before"]["multiarith"]["total"] == 2
    predictions = [
        json.loads(line) for line in (finished / "predictions.jsonl").read_text().splitlines()
    ]
    assert len(predictions) == 2 * 7
    page = (finished / "report.html").read_text()
    assert "http://" not in page
    assert "https://" not in page
    assert "<b>[up]</b>" in page
    assert "<svg" in page


def test_run_toml_repeats_the_run(finished, tmp_path):
    again = run("--config", finished / "run.toml", "--out", tmp_path / "again")
    assert again.returncode == 0, again.stderr
    for name in ("predictions.jsonl", "predictions-base.jsonl"):
        assert (tmp_path / "again" / name).read_text() == (finished / name).read_text()
    losses = [
        [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]
        for folder in (finished, tmp_path / "again")
    ]
    assert losses[0] == losses[1]


def test_evaluate_repeats_the_runs_own_numbers(finished, tmp_path):
    done = run("evaluate", finished, "--out", tmp_path / "e", "--batch-size", 3)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "e" / "predictions.jsonl").read_text() == (
        finished / "predictions.jsonl"
    ).read_text()
    assert f"adapter {finished / 'adapter'}, data wordproblems" in done.stdout
    assert "with adapter" in done.stdout
    base = run("evaluate", "--model", "pocket-llama", "--items", 2, "--out", tmp_path / "b")
    assert base.returncode == 0, base.stderr
    assert "no adapter, data wordproblems" in base.stdout
    assert "with adapter" not in base.stdout
    assert (tmp_path / "b" / "predictions.jsonl").read_text() == (
        finished / "predictions-base.jsonl"
    ).read_text()


def test_generate(finished, folder):
    told = run(
        "generate",
        finished,
        "--instruction",
        "Tom has 3 pens. Amy gives Tom 4 more. How many pens does Tom have now?",
    )
    assert told.returncode == 0, told.stderr
    assert "The answer is" in told.stdout
    first = run("generate", "--model", folder, "--prompt-ids", "5,6,7", "--max-new-tokens", "2")
    assert first.returncode == 0, first.stderr
    assert len(first.stdout.strip().split(",")) == 2


def test_interrupted_with_ctrl_c_and_resumed(finished, tmp_path):
    """Ctrl-C after the first steps, then --resume: the same adapter as the undisturbed run, to
    the bit.
    """
    out = tmp_path / "out"
    whole = run(
        "--config", finished / "run.toml", "--out", tmp_path / "whole", "--set", "train.max_steps=6"
    )
    assert whole.returncode == 0, whole.stderr
    status, output, error = finish(
        "--config",
        finished / "run.toml",
        "--out",
        out,
        "--set",
        "train.max_steps=6",
        at=[("step", 2, 0, signal.SIGINT)],
    )
    assert status == 130, error
    assert f"--resume {out}" in output
    assert not (out / "adapter").exists()
    assert (
        f"not finished, it has no adapter yet: continue it with --resume {out}"
        in run("evaluate", out).stderr
    )
    done = run("--resume", out)
    assert done.returncode == 0, done.stderr
    name = "adapter/adapter_model.safetensors"
    assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert "is complete" in run("--resume", out).stderr


def test_another_adapter_over_a_saved_configuration_is_that_adapter(finished, tmp_path):
    from train.settings import settings

    made = settings(str(finished / "run.toml"), options={"adapter": {"preset": "series"}})
    assert made.adapter == settings(options={"adapter": {"preset": "series"}}).adapter
    assert made.adapter.only.options.reads == "output"
    assert (
        settings(str(finished / "run.toml"), sets=["adapter.size=9"]).adapter
        == settings(sets=["adapter.size=9"]).adapter
    )


def test_results_are_never_overwritten(checked, finished):
    assert "--resume" not in checked(
        "--out", finished, said="exists and is not empty: give another --out"
    )  # it is complete
    checked(
        "evaluate",
        "--adapter",
        finished,
        "--model",
        "pocket-llama",
        said=f"its adapter is {finished / 'adapter'}",
    )
    before = (finished / "result.json").read_text()
    done = run(*QUICK, "--seed", "4", "--set", "eval.before=false", cwd=finished.parent.parent)
    assert done.returncode == 0, done.stderr
    assert (finished.parent / f"{finished.name}-2" / "result.json").is_file()
    assert (finished / "result.json").read_text() == before


def test_help_names_every_command():
    done = in_process("--help")
    assert done.returncode == 0
    for word in ("evaluate", "generate", "pretrain", "--resume", "--set"):
        assert word in done.stdout


def test_pretrain_makes_a_model_that_trains(tmp_path):
    done = run("pretrain", "--max-steps", "2", "--out", tmp_path / "fresh")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "fresh").iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    tuned = run(
        "--model", tmp_path / "fresh", "--recipe", "pocket-tune", *QUICK, "--out", tmp_path / "out"
    )
    assert tuned.returncode == 0, tuned.stderr

"""The scripts that measure a step, loading and whole runs."""

import contextlib
import io
import json
import sys
from unittest import mock

import pytest
import torch

from benchmarks import fits
from benchmarks.process import run_python
from benchmarks.random_weights import random_checkpoint
from files.errors import UserError
from model import load_model
from run import main
from train import loop


# ---------------------------------------------------------------- the scripts
@pytest.mark.parametrize("how", ["none", "int8", "nf4"])
def test_a_step_is_measured(capsys, how):
    assert (
        main(
            [
                *"benchmark --case step --model pocket-llama --quantize".split(),
                how,
                *"--tokens 16 --rows 2 --repeats 1 --checkpointing".split(),
                "every 2",
                "--dtype",
                "float32",
            ]
        )
        == 0
    )  # not every CPU is fast in bfloat16
    said = capsys.readouterr().out
    assert "tokens/s" in said
    assert "% of a plain matrix product's" in said


def test_a_step_without_the_memory_names_the_benchmarks_own_options(monkeypatch, capsys):
    """Not those of a training run, whose loop it goes through."""

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(loop, "accumulate", full)
    assert (
        main(
            (
                "benchmark --case step --model pocket-llama --tokens 16 --rows 2 --dtype float32"
            ).split()
        )
        == 1
    )
    assert capsys.readouterr().err.splitlines()[-1] == (
        "run.py: out of memory on cpu: lower --rows or --tokens, or give --checkpointing block or "
        "--quantize nf4"
    )


def test_accuracy_against_the_rate(monkeypatch, capsys):
    """In bold: the rate of the lowest loss."""
    from benchmarks import rates

    losses = {0.001: 0.5, 0.003: 0.2, 0.01: 0.3, 0.03: 0.4, 0.1: 0.6}
    monkeypatch.setattr(rates, "PROBLEMS", 1)
    monkeypatch.setattr(rates, "short_runs", lambda job: losses.get)
    assert main("benchmark --case rates --only ia3,road".split()) == 0
    *head, ia3, road = capsys.readouterr().out.splitlines()
    assert head == ["| adapter | 0.001 | 0.003 | 0.01 | 0.03 | 0.1 |", "|---|---|---|---|---|---|"]
    assert ia3 == "| `ia3` | 0 | **0** | 0 | 0 | 0 |"  # untrained
    assert road.startswith("| `road` |")


def test_random_files_are_a_model(tmp_path):
    written = random_checkpoint("pocket-gptj", tmp_path / "model")
    model = load_model(str(tmp_path / "model"))
    assert written == sum(one.nbytes for one in model.parameters())
    assert {name: one.shape for name, one in model.named_parameters()} == {
        name: one.shape for name, one in load_model("pocket-gptj").named_parameters()
    }
    assert all(0.01 < one.float().std() < 0.03 for one in model.parameters())


def run_here(code: str, *words: str):
    """process.run_python in this process, which need not import torch."""
    told = io.StringIO()
    with mock.patch.object(sys, "argv", ["-c", *words]), contextlib.redirect_stdout(told):
        exec(code, {})
    yield from map(json.loads, told.getvalue().splitlines())


def test_python_runs_code_and_reads_the_json_it_prints(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where Python finds no module of this project
    code = "import os, sys, files; print('{\"a\": \"%s\"}' % (sys.argv[1] + os.environ['WHERE']))"
    assert list(run_python(f"print('said'); {code}", "in ", WHERE="env")) == [{"a": "in env"}]
    with pytest.raises(UserError, match="the measurement ended with: gone"):
        list(run_python("import sys; sys.exit('gone')"))


def test_a_run_from_files_to_the_adapter_is_measured_stage_by_stage(capsys, monkeypatch):
    monkeypatch.setattr(fits, "run_python", run_here)
    assert (
        main(["benchmark", "--case", "llama-7b-fits", "--model", "pocket-gptj", "--tokens", "16"])
        == 0
    )
    stages = [
        line.partition("  ")[0].partition(":")[0]
        for line in capsys.readouterr().out.splitlines()[2:]
    ]
    assert stages[1:] == [
        "loaded, int8",
        "parallel",
        "a training step, checkpoint saved",
        "adapter saved",
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--case", "steps"], "unknown benchmark case 'steps'; did you mean 'step'?"),
        (["--case", "load", "--rows", "2"], "--rows does not apply to"),
        (["--case", "step", "--tokens", "0"], "--tokens 0 must be at least 1"),
        (["--case", "step", "--dtype", "int8"], "--dtype 'int8' is not one of"),
        (
            ["--case", "step", "--quantize", "int4", "--model", "pocket-llama"],
            "unknown quantization 'int4'",
        ),
        (["--case", "step", "--device", "cuda:77"], "torch sees"),
        (["--case", "step", "--checkpointing", "all"], "'all' should be none, block"),
    ],
)
def test_mistakes_are_one_line(capsys, words, said):
    assert main(["benchmark", *words]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1

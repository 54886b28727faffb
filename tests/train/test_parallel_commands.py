"""Commands under torchrun: one line of one process, and the results of one."""

import json
import os
import signal
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from conftest import write_sums
from launched import (
    ROOT,
    finish,
    folder,  # noqa: F401
    launch,
)

import run as command_line
from experiments import run as experiment
from model import UserError
from train import lost
from train.checkpoint import checkpoints
from train.settings import settings


# ---------------------------------------------------------------- the command line
def rows_of_sums(folder: Path) -> list[str]:
    """A few rows in a file, and the options of a short run on them."""
    write_sums(folder / "sums.json")
    sets = [
        "eval.before=false",
        "eval.max_new_tokens=30",
        "train.batch_size=4",
        "train.micro_batch_size=1",
    ]
    return [
        *"--data sums.json --adapter lora".split(),
        *(word for one in sets for word in ("--set", one)),
    ]


def log_of(folder: Path) -> list[dict]:
    path = folder / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def test_a_mistake_is_one_line_of_one_process(tmp_path):
    first, second = finish(launch(2, ROOT / "run.py", "--adapter", "lorra", cwd=tmp_path))
    assert (first[0], second[0]) == (1, 1)
    assert first[2] == "run.py: unknown adapter 'lorra'; did you mean 'lora'?\n"
    assert second[1:] == ("", "")


def test_one_of_several_processes_ends_without_pythons_cleanup(tmp_path):
    """With gloo's threads still there, that aborts one of them now and then."""
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, os\natexit.register(lambda: os._exit(99))\n"
    )  # Python imports it when it starts
    for world, status in (("1", 99), ("2", 2)):
        variables = os.environ | {"PYTHONPATH": str(tmp_path), "WORLD_SIZE": world}
        command = [sys.executable, str(ROOT / "run.py"), "--nonsense"]
        assert subprocess.run(command, env=variables, capture_output=True).returncode == status


def test_rank_0_reports_an_error_that_it_meets_later_than_the_others(monkeypatch):
    monkeypatch.setattr(lost, "PATIENCE", timedelta(seconds=1))
    store, error = torch.distributed.HashStore(), UserError("unknown adapter")
    reported = []
    rank_0 = threading.Timer(0.5, lambda: reported.append(lost.is_reported(store, 0, 2, error)))
    rank_0.start()
    assert lost.is_reported(store, 1, 2, error)
    rank_0.join()
    assert reported == [False]


def test_an_error_of_one_process_is_reported_by_it_and_not_its_end_by_rank_0(monkeypatch):
    monkeypatch.setattr(lost, "PATIENCE", timedelta(seconds=0.1))
    store = torch.distributed.HashStore()
    assert not lost.is_reported(store, 1, 2, UserError("no such file here"))
    assert lost.is_reported(store, 0, 2, lost.Lost("connection closed"))


@pytest.mark.parametrize("words", [("--nonsense",), ("--max-steps", "x"), ("--adapter", "lorra")])
def test_who_has_nothing_to_say_ends_behind_who_has(tmp_path, words):
    """torchrun ends all processes as soon as one has ended: the one that speaks was cut off where
    another was faster.
    """
    first, second = launch(
        2, ROOT / "run.py", *words, cwd=tmp_path, more={"TORCHELASTIC_RUN_ID": "one"}
    )
    try:
        assert first.communicate(timeout=300)[1].count("run.py: ") == 1
        with pytest.raises(subprocess.TimeoutExpired):
            second.wait(timeout=1)
        second.terminate()
        assert second.communicate(timeout=60) == ("", "")
        assert second.returncode in (
            -signal.SIGTERM,
            128 + signal.SIGTERM,
        )  # the second where it is starting yet
    finally:
        first.kill(), second.kill()


def test_other_commands_are_for_one_process(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, said in (
        ("0", "run.py: models is for one process: start it with python, not with torchrun\n"),
        ("1", ""),
    ):
        monkeypatch.setenv("RANK", rank)
        assert command_line.main(["models"]) == 2
        assert capsys.readouterr().err == said


def killed_under_torchrun(folder: Path, command: list[str]) -> None:
    torchrun = [sys.executable, *"-m torch.distributed.run --standalone --nproc-per-node 2".split()]
    job = subprocess.run(
        [*torchrun, *command],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert job.returncode != 0
    assert (
        "forcefully exiting via" not in job.stderr
    )  # torchrun's word for a process that has not ended half a minute after it was told to
    assert (
        job.stderr.count("another process of this job ended or does not answer") <= 1
    )  # torchrun may have ended the other before it says so


def killed_without_it(folder: Path, command: list[str]) -> None:
    (left, _, said), (killed, *_) = finish(launch(2, *command, cwd=folder))
    assert left != 0
    assert killed == -signal.SIGKILL
    assert said.count("another process of this job ended or does not answer") == 1


@pytest.mark.parametrize(
    "is_killed", [killed_without_it, pytest.param(killed_under_torchrun, marks=pytest.mark.slow)]
)
def test_two_processes_answer_and_write_what_one_does(tmp_path, is_killed):
    """The whole job: one process is killed (kill -9) and the job ends at once, the last whole step
    saved; continued by two; by one, to the same.
    """
    script = [
        str(ROOT / "tests" / "at_moments.py"),
        json.dumps([("micro-batch", 7, 0, signal.SIGKILL, 1)]),
    ]  # in the fourth step: each has two of four
    words = [*rows_of_sums(tmp_path), *"--max-steps 12 --set train.save_every=2 --out two".split()]
    is_killed(tmp_path, [*script, *words])
    assert not (tmp_path / "two" / "result.json").exists()
    assert [torch.load(path)["step"] for path in checkpoints(tmp_path / "two")] == [3]

    for status, _, error in finish(launch(2, ROOT / "run.py", "--resume", "two", cwd=tmp_path)):
        assert status == 0, error
    assert {path.name for path in (tmp_path / "two").iterdir()} == {
        "run.toml",
        "log.jsonl",
        "adapter",
        "predictions.jsonl",
        "result.json",
        "report.html",
        "checkpoint-000012.pt",
        "leakage.json",
    }
    experiment.run(settings(config=str(tmp_path / "two" / "run.toml")), tmp_path / "one")
    two, one = (
        {entry["step"]: entry["loss"] for entry in log_of(tmp_path / name)}
        for name in ("two", "one")
    )  # steps after the checkpoint stand there twice
    torch.testing.assert_close(
        torch.tensor([two[step] for step in one]),
        torch.tensor(list(one.values())),
        rtol=1e-4,
        atol=0,
    )
    assert (tmp_path / "one" / "predictions.jsonl").read_text() == (
        tmp_path / "two" / "predictions.jsonl"
    ).read_text()
    assert json.loads((tmp_path / "two" / "result.json").read_text())["processes"] == 2

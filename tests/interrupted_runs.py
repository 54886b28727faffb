"""Runs of the real command line that are killed, and compared with an undisturbed one."""

import json
import random
import signal
from itertools import islice
from pathlib import Path

import processes
from processes import ROOT

from data.wordproblems import problems
from experiments.report import read_log
from train.checkpoint import checkpoints, read_checkpoint

EVERY = (
    "--set train.micro_batch_size=5 --set train.validation_rows=12 --set eval.before=true "
    "--set eval.batch_size=4 --set eval.max_new_tokens=12"
).split()
WHAT = ["--adapter", "lora", "--set", "adapter.dropout=0.1", *EVERY]


def rows(tmp_path: Path) -> Path:
    """A small file of word problems, so that a run starts in little time."""
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(list(islice(problems("svamp", "train", 0), 300))))
    return path


def finish(*arguments, at: tuple = (), limit: int | None = None) -> tuple[int, str, str]:
    """(status, stdout, stderr) of python run.py, which sends itself signals at these moments
    (tests/at_moments.py: what comes to a process from outside comes too late on a busy machine);
    no file that it writes may grow beyond `limit` bytes, which is what a full disk is like.
    """
    moments = [ROOT / "tests" / "at_moments.py", json.dumps(at)]
    script = moments if at else [ROOT / "run.py"]
    done = processes.finish(*script, *arguments, limit=limit)
    return done.returncode, done.stdout, done.stderr


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def moment(what: str, rng: random.Random) -> tuple:
    """A moment of a run, from the newest checkpoint on, and how long behind it."""
    count = {"starting": 1, "saving": rng.randint(1, 2), "step": rng.randint(1, 6)}.get(
        what, rng.randint(1, 8)
    )
    return what, count, rng.uniform(0.1, 3) if what == "starting" else rng.uniform(0, 0.03)


def kill(command: list, folder: Path, what: str, rng: random.Random) -> None:
    """Kill the command at a moment of this kind; "hangup step": with the signal of a closed
    terminal, which saves a checkpoint where the command trains."""
    hangup = what.startswith("hangup ")
    number = signal.SIGHUP if hangup else signal.SIGKILL
    at = (*moment(what.removeprefix("hangup "), rng), number)
    status, out, error = finish(*command, at=[at])
    assert status == (128 + number if hangup else -number), error
    if hangup:
        assert f"--resume {folder}" in out
    for path in checkpoints(folder):
        read_checkpoint(path)  # whole, every one of them
    if what == "hangup step":
        assert len(read_log(folder / "log.jsonl")) == read_checkpoint(path)["step"]


def check_same(folder: Path, whole: Path) -> None:
    for name in (
        "adapter/adapter_model.safetensors",
        "adapter/adapter_config.json",
        "predictions-base.jsonl",
        "predictions.jsonl",
        "run.toml",
    ):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    kept = ("step", "loss", "learning_rate", "gradient_norm", "skipped", "validation_loss")
    first, second = (
        [{key: entry.get(key) for key in kept} for entry in read_log(path / "log.jsonl")]
        for path in (folder, whole)
    )
    assert first == second
    first, second = (
        json.loads((path / "result.json").read_text()) | {"seconds": 0, "peak_memory_bytes": 0}
        for path in (folder, whole)
    )
    assert first == second
    assert not [path.name for path in folder.iterdir() if path.name.endswith((".tmp", ".part"))]


def chain(
    tmp_path: Path, steps: int, items: int, kills: list[str], rng: random.Random, settings=WHAT
) -> tuple[Path, Path]:
    """(the folder of an undisturbed run, that of a run killed -9 at these moments, one after the
    other, and not yet finished).
    """
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    command = [
        *settings,
        "--data",
        rows(tmp_path),
        "--max-steps",
        steps,
        "--items",
        items,
        "--set",
        "train.save_every=3",
    ]
    status, _, error = finish(*command, "--out", whole)
    assert status == 0, error
    for what in kills:
        kill(
            ["--resume", folder]
            if (folder / "run.toml").is_file()
            else [*command, "--out", folder],
            folder,
            what,
            rng,
        )
    return whole, folder

"""The real command line, killed, stopped, out of disk and out of memory: what it leaves, what it
says, and that it ends with the bits of an undisturbed run.
"""

import random
import shutil
import signal
import sys

import processes
import pytest
from interrupted_runs import EVERY, ROOT, chain, check_same, finish, lines, rows

from experiments.report import read_log
from train.checkpoint import checkpoints, read_checkpoint


def test_killed_out_of_disk_and_terminated_a_run_ends_with_the_same_bits(tmp_path):
    whole, folder = chain(
        tmp_path, 18, 24, ["base", "step"], random.Random(5)
    )  # after the fourth step

    # the disk is full: one line that names the file, everything as it was
    full = tmp_path / "full"
    shutil.copytree(folder, full)
    saved = {path.name: path.read_bytes() for path in checkpoints(full)}
    status, _, error = finish("--resume", full, limit=100_000)
    said = [line for line in error.splitlines() if line.startswith("run.py:")]
    assert status == 1
    assert len(said) == 1, error
    assert f"cannot write {full}/checkpoint-0000" in said[0]
    assert "Traceback" not in error
    assert {path.name: path.read_bytes() for path in checkpoints(full)} == saved
    assert not list(full.glob(".*.tmp"))

    # SIGTERM in training and while measuring: status 143, and the line that says how to go on
    for what in ("step", "measuring"):
        status, out, error = finish("--resume", folder, at=[(what, 2, 0, signal.SIGTERM)])
        assert status == 143, error
        assert f"--resume {folder}" in out
        assert "Traceback" not in error
        newest = read_checkpoint(checkpoints(folder)[-1])
        assert newest["step"] == len(
            read_log(folder / "log.jsonl")
        )  # the step at hand was finished, and saved
    (folder / "predictions-base.jsonl.part").write_text(
        ""
    )  # as a kill leaves it that comes just after predictions-base.jsonl
    assert finish("--resume", folder)[0] == 0
    check_same(folder, whole)


METHODS = {
    "lora": "--adapter lora --set adapter.dropout=0.2",
    "prefix": "--adapter prefix --set train.group_by_length=true",
    "adalora": "--adapter adalora",
    "pissa": "--adapter pissa --set train.batch_size=20",
    "float16": "--adapter unipelt --dtype float16 --set train.learning_rate=1e-3",
    "best": "--adapter parallel --set train.validate_every=2 --set train.keep=2",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_killed_at_ten_random_moments_a_run_ends_with_the_same_bits(tmp_path, name):
    rng = random.Random(name)
    training = ["step", "step", "step", "saving", "saving", "starting"]
    training += ["hangup step", "hangup step"]
    rng.shuffle(training)
    kills = [rng.choice(["base", "hangup base"]), *training, "measuring", "hangup measuring"]
    whole, folder = chain(tmp_path, 70, 24, kills, rng, [*METHODS[name].split(), *EVERY])
    assert finish("--resume", folder)[0] == 0
    check_same(folder, whole)


def test_a_second_signal_ends_the_run_within_the_step(tmp_path):
    folder = tmp_path / "out"
    status, out, error = finish(
        "--adapter",
        "lora",
        "--data",
        rows(tmp_path),
        *(
            "--set train.batch_size=20 --set train.micro_batch_size=1 --set "
            "eval.before=false --max-steps"
        ).split(),
        3,
        "--out",
        folder,
        at=[("micro-batch", 23, 0, signal.SIGINT), ("micro-batch", 26, 0, signal.SIGTERM)],
    )  # both in the second step
    assert status == 143, error
    assert "stopping after this step" in error
    assert lines(folder / "log.jsonl") == 1  # the second step was not finished
    assert not checkpoints(folder)
    assert f"--resume {folder}" in out


LIMITED = """
import re, resource, sys
sys.path.insert(0, {root!r})
import run
from train import loop
true = loop.accumulate
def accumulate(*arguments):
    used = int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (used + 40_000_000, used + 40_000_000))
    return true(*arguments)
loop.accumulate = accumulate
sys.exit(run.main({words!r}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_memory_that_really_runs_out_is_one_line(tmp_path):
    words = [
        "--adapter",
        "lora",
        "--data",
        str(rows(tmp_path)),
        *(
            "--set train.batch_size=250 --set train.micro_batch_size=250 "
            "--max-steps 2 --set eval.before=false --out"
        ).split(),
        str(tmp_path / "out"),
    ]
    done = processes.finish("-c", LIMITED.format(root=str(ROOT), words=words))
    said = [line for line in done.stderr.splitlines() if line.startswith("run.py:")]
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert said == [
        "run.py: out of memory on cpu with 250 rows at once: lower "
        "train.micro_batch_size or set train.checkpointing=block; "
        f"the last checkpoint is intact, --resume {tmp_path / 'out'} takes both with --set"
    ]

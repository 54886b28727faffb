"""The loop, stopped, resumed and out of its range: to the bit, in one line, or not kept."""

import os
import signal
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import processes
import pytest
import torch
from processes import ROOT
from training_runs import S, model_with, run, same, state

from adapters import parameters
from model import UserError
from train import loop, pipeline
from train.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from train.optim import LossScale
from train.signals import Signals


def test_a_second_signal_ends_at_once(capfd, monkeypatch):
    for rank, said in (
        ("0", 1),
        ("1", 0),
    ):  # of several processes, which torchrun passes it on to, one speaks
        monkeypatch.setenv("RANK", rank)
        with Signals():
            os.kill(os.getpid(), signal.SIGTERM)
        assert capfd.readouterr().err.count("stopping after this step") == said
    with Signals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGINT
        with pytest.raises(SystemExit, match="130"):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_last_step_is_saved_is_not_lost(folder, tmp_path, monkeypatch, number):
    def save(*arguments, **more):
        save_checkpoint(*arguments, **more)
        os.kill(os.getpid(), number)

    monkeypatch.setattr("train.checkpoint.save_checkpoint", save)
    before = signal.signal(number, lambda *_: sys.exit(77))
    try:
        with pytest.raises(SystemExit, match="77"):
            run(model_with(folder), tmp_path, replace(S, max_steps=2, save_every=2))
    finally:
        signal.signal(number, before)
    assert load_checkpoint(tmp_path, {"base model": "b"})["step"] == 2


def test_weights_that_are_not_finite_are_never_saved(folder, tmp_path):
    model = model_with(folder)
    run(model, tmp_path)
    (before,) = checkpoints(tmp_path)
    saved = before.read_bytes()

    def spoil(entry):
        next(iter(parameters(model))).data.fill_(torch.inf)

    with pytest.raises(UserError, match="not finite after step"):
        run(model, tmp_path, replace(S, max_steps=1), log=spoil)
    assert checkpoints(tmp_path) == [before]
    assert before.read_bytes() == saved


def test_memory_of_the_cpu_runs_out_in_one_line_too(folder, tmp_path, monkeypatch):
    def full(*arguments):
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't "
            "allocate memory: you tried to allocate 99 bytes"
        )

    monkeypatch.setattr(pipeline, "summed_loss", full)
    with pytest.raises(UserError, match="out of memory on cpu"):
        run(model_with(folder), tmp_path)


def test_the_same_seed_gives_the_same_weights(folder, tmp_path):
    first, second = model_with(folder), model_with(folder)
    run(first, tmp_path)
    run(second, tmp_path)
    assert same(state(first), state(second))


@pytest.mark.parametrize(
    ("number", "dtype"),
    [(signal.SIGINT, None), (signal.SIGTERM, None), (signal.SIGTERM, torch.float16)],
)
def test_stopped_in_the_middle_and_resumed_ends_with_the_same_bits(
    folder, tmp_path, monkeypatch, number, dtype
):
    """Mid-epoch (20 rows, batches of 6), with dropout: order and draws must be right too. In
    float16 so must the loss scale, made to move every step.
    """
    monkeypatch.setattr(loop, "LossScale", partial(LossScale, patience=1))
    whole = model_with(folder, "lora", dropout=0.3, dtype=dtype)
    _, expected = run(whole, tmp_path)

    half, entries = model_with(folder, "lora", dropout=0.3, dtype=dtype), []

    def log(entry):
        entries.append(entry)
        if entry["step"] == 5:
            os.kill(os.getpid(), number)

    outcome, _ = run(half, tmp_path, log=log)
    assert (outcome.step, outcome.signal) == (5, number)
    other = model_with(folder, "lora", dropout=0.3, dtype=dtype)
    torch.manual_seed(99)
    _, rest = run(other, tmp_path, resume=True)
    assert same(state(other), state(whole))
    assert [e["loss"] for e in entries + rest] == [e["loss"] for e in expected]


def test_resuming_with_something_else_is_refused(folder, tmp_path):
    run(model_with(folder), tmp_path)
    for fingerprints in ({"base model": "other"}, {}, {"base model": "b", "data": "new"}):
        with pytest.raises(UserError, match="was made with another"):
            run(model_with(folder), tmp_path, resume=True, fingerprints=fingerprints)
    (path,) = checkpoints(tmp_path)
    path.write_bytes(b"no checkpoint")
    with pytest.raises(UserError, match="cannot be read"):
        run(model_with(folder), tmp_path, resume=True)
    path.unlink()
    with pytest.raises(UserError, match="no checkpoint to resume from"):
        run(model_with(folder), tmp_path, resume=True)


def test_steps_that_are_not_finite_are_skipped_and_many_in_a_row_stop_the_run(
    folder, tmp_path, monkeypatch
):
    model = model_with(folder)
    true_loss, calls = pipeline.summed_loss, []

    def sometimes(*arguments):
        calls.append(1)
        return true_loss(*arguments) * (torch.nan if len(calls) == 4 else 1.0)

    monkeypatch.setattr(pipeline, "summed_loss", sometimes)
    outcome, entries = run(model, tmp_path)
    assert outcome.skipped == 1
    assert [e["step"] for e in entries if e["skipped"]] == [2]
    assert all(tensor.isfinite().all() for tensor in state(model))

    def hidden(
        model, *arguments
    ):  # the loss is a number, its gradient is not: 0 at the square root of 0
        return true_loss(model, *arguments) + (0 * parameters(model)[0].sum()).sqrt()

    monkeypatch.setattr(pipeline, "summed_loss", hidden)
    outcome, entries = run(model, tmp_path, replace(S, max_steps=3))
    assert outcome.skipped == 3
    assert all(
        entry["skipped"] and entry["loss"] and entry["gradient_norm"] is None for entry in entries
    )
    assert all(tensor.isfinite().all() for tensor in state(model))
    monkeypatch.setattr(
        pipeline, "summed_loss", lambda *arguments: true_loss(*arguments) * torch.nan
    )
    with pytest.raises(UserError, match="not finite"):
        run(model_with(folder), tmp_path, replace(S, max_steps=100))


def test_out_of_memory_is_one_line_with_what_to_lower(folder, tmp_path, monkeypatch):
    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(pipeline, "summed_loss", full)
    with pytest.raises(UserError, match=r"2 rows at once: lower train\.micro_batch_size"):
        run(model_with(folder), tmp_path)


def test_a_pickle_that_would_execute_something_is_refused(tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    (tmp_path / "checkpoint-000001.pt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError, match="cannot be read"):
        load_checkpoint(tmp_path, {})
    assert not (tmp_path / "executed").exists()


KILLED = """
import sys; sys.path.insert(0, {root!r})
from pathlib import Path
import torch
from train.checkpoint import save_checkpoint
step = 0
while True:
    step += 1
    save_checkpoint(Path({path!r}), step, {{"step": step, "fingerprints": {{}}, "a": \
torch.full((400_000,), step), "b": torch.full((9,), step)}})
    print(step, flush=True)
"""


@pytest.mark.parametrize("times", [3, pytest.param(25, marks=pytest.mark.slow)])
def test_kill_minus_nine_leaves_a_whole_checkpoint(tmp_path, times):
    for attempt in range(times):
        process = processes.start("-c", KILLED.format(root=str(ROOT), path=str(tmp_path)))
        told = Path(process.outputs[0])
        while told.read_text().count("\n") < 2:
            assert process.returncode is None, process.communicate()
            time.sleep(0.001)
        time.sleep(0.003 * attempt)
        process.kill()
        seen = int(process.communicate()[0].split()[-1])
        saved = load_checkpoint(tmp_path, {})
        assert len(checkpoints(tmp_path)) <= 2  # one, or the kill came before the older one went
        assert saved["step"] in (seen, seen + 1)
        assert saved["a"].eq(saved["step"]).all()
        assert saved["b"].eq(saved["step"]).all()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_log_that_does_not_fit_on_the_disk_is_one_line():
    from files.writing import JsonLines

    with (
        pytest.raises(UserError, match=r"cannot write /dev/full: .*No space left"),
        JsonLines(Path("/dev/full")) as log,
    ):
        log.write({"step": 1})


def test_the_log_survives_a_line_cut_short(tmp_path):
    from experiments.report import read_log
    from files.writing import JsonLines

    (tmp_path / "log.jsonl").write_text(
        '{"step": 1, "loss": 3, "learning_rate": 0.1}\n{"step": 2, "lo'
    )  # as a kill leaves it
    with JsonLines(tmp_path / "log.jsonl") as log:
        log.write({"step": 2, "loss": 1, "learning_rate": 0.1})
    assert [entry["loss"] for entry in read_log(tmp_path / "log.jsonl")] == [3, 1]

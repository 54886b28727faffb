"""The loop: what may not change the result does not, what is interrupted continues to the bit,
what is not finite is not kept.
"""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import processes
import pytest
import torch
from conftest import DEVICES

from adapters import attach, named_parameters, parameters
from data.batches import Example, collate, encode_row, epoch_order, micro_batches
from data.prompts import prompt, template
from files.writing import write_atomically
from model import UserError, load_model
from model.sites import Linear
from train import loop, loss, pipeline
from train.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from train.loop import train
from train.optim import LossScale, learning_rate
from train.settings import Train
from train.signals import Signals

ROOT = Path(__file__).parent.parent
S = Train(
    max_steps=8,
    batch_size=6,
    micro_batch_size=2,
    learning_rate=0.02,
    warmup_steps=2,
    save_every=100,
)


def examples(count: int = 20) -> list[Example]:
    generator = torch.Generator().manual_seed(5)
    made = []
    for _ in range(count):
        n = int(torch.randint(4, 12, (), generator=generator))
        made.append(
            Example(
                torch.randint(3, 61, (n,), generator=generator).tolist(),
                [0.0, 0.0, 0.0] + [1.0] * (n - 3),
            )
        )
    return made


def model_with(folder, preset="parallel", device="cpu", dtype=None, **changes):
    torch.manual_seed(0)
    model = load_model(str(folder), device=device, dtype=dtype)
    attach(model, preset, **({"size": 4} if preset != "lora" else {"r": 2}) | changes)
    return model


def run(model, folder, s=S, **more):
    entries = []
    arguments = {
        "seed": 1,
        "pad_id": 0,
        "folder": folder,
        "fingerprints": {"base model": "b"},
        "log": entries.append,
    } | more
    outcome = train(model, named_parameters(model), examples(), s, **arguments)
    return outcome, entries


def state(model) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in parameters(model)]


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# ---------------------------------------------------------------- loss and batches
def gradients(model, s: Train) -> list[torch.Tensor]:
    rows = examples(6)
    weight = sum(sum(row.weights[1:]) for row in rows)
    for part in micro_batches(rows, s.micro_batch_size):
        (loss.summed_loss(model, *collate(part, 0, "cpu")) / weight).backward()
    found = [parameter.grad.clone() for parameter in parameters(model)]
    model.zero_grad()
    return found


@pytest.mark.parametrize("change", ["micro-batches", "checkpointing", "chunks"])
def test_the_gradient_does_not_depend_on(folder, monkeypatch, change):
    model = model_with(folder, init="bert")
    plain = gradients(model, replace(S, micro_batch_size=6))
    s = replace(S, micro_batch_size=1 if change == "micro-batches" else 6)
    model.checkpointing = change == "checkpointing"
    if change == "chunks":
        monkeypatch.setattr(loss, "CHUNK", 3)
    for a, b in zip(plain, gradients(model, s), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_the_loss_is_that_of_the_full_logits(tiny):
    ids, weights, _ = collate(examples(4), 0, "cpu")
    logits = tiny(ids)[:, :-1]
    each = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
    )
    torch.testing.assert_close(
        loss.summed_loss(tiny, ids, weights), (each * weights[:, 1:].flatten()).sum()
    )


def test_micro_batches_keep_the_set_of_a_step_and_sort_it():
    rows = examples(7)
    parts = micro_batches(rows, 3)
    flat = [row for part in parts for row in part]
    assert sorted(map(id, flat)) == sorted(map(id, rows))
    assert [len(row) for row in flat] == sorted((len(row) for row in rows), reverse=True)


@pytest.mark.parametrize("group", [False, True])
def test_an_epoch_has_every_row_once_in_an_order_of_the_seed(group):
    lengths = [len(row) for row in examples(20)]
    order = epoch_order(lengths, 6, seed=1, epoch=0, group=group)
    assert sorted(row for batch in order for row in batch) == list(range(20))
    assert order == epoch_order(lengths, 6, seed=1, epoch=0, group=group)
    assert order != epoch_order(lengths, 6, seed=1, epoch=1, group=group)
    assert order != epoch_order(lengths, 6, seed=2, epoch=0, group=group)


def test_the_response_alone_is_learnt_and_what_is_cut_is_told():
    from model import load_tokenizer

    tokenizer = load_tokenizer("pocket-llama")
    row = {
        "instruction": "Tom has 3 pens. Amy gives Tom 4 more. How many pens does Tom have now?",
        "output": " Tom has 3 + 4 = 7 pens. The answer is 7.",
    }
    example, cut = encode_row(tokenizer, row, template("alpaca"), cutoff=256)
    learnt = [token for token, weight in zip(example.ids, example.weights, strict=True) if weight]
    assert tokenizer.decode(learnt) == row["output"].strip()
    assert learnt[-1] == tokenizer.eos_id
    assert example.ids[: -len(learnt)] == tokenizer.encode(prompt("alpaca", row["instruction"]))
    assert not cut
    short, cut = encode_row(tokenizer, row, template("alpaca"), cutoff=20)
    assert cut
    assert len(short) == 20


# ---------------------------------------------------------------- training
@pytest.mark.parametrize(
    ("preset", "dtype"),
    [
        *((preset, torch.float32) for preset in ("series", "parallel", "lora")),
        ("parallel", torch.bfloat16),
        ("lora", torch.float16),
    ],
    ids=str,
)
@pytest.mark.parametrize("device", DEVICES)
def test_the_loss_falls_and_the_base_stays_to_the_bit(folder, tmp_path, preset, dtype, device):
    model = model_with(folder, preset, device, dtype)
    base = {name: p.clone() for name, p in model.named_parameters() if ".adapters." not in name}
    _, entries = run(model, tmp_path, replace(S, max_steps=40, schedule="constant"))
    seen = [entry["loss"] for entry in entries if not entry["skipped"]]
    assert sum(seen[-4:]) < 0.95 * sum(seen[:4])
    for name, parameter in model.named_parameters():
        if ".adapters." not in name:
            assert torch.equal(parameter, base[name])
            assert parameter.dtype == dtype


def test_micro_batches_and_checkpointing_leave_the_steps_as_they_are(folder, tmp_path, monkeypatch):
    """In the loop itself: the loss of a step is over the tokens of the whole step, however its
    rows go through the model.
    """
    import model.language

    calls = []
    true_checkpoint = model.language.checkpoint
    monkeypatch.setattr(
        model.language, "checkpoint", lambda *a, **k: calls.append(1) or true_checkpoint(*a, **k)
    )
    _, whole = run(model_with(folder), tmp_path, replace(S, micro_batch_size=6))
    assert not calls
    for change in ({"micro_batch_size": 1}, {"micro_batch_size": 6, "checkpointing": "block"}):
        _, parts = run(model_with(folder), tmp_path, replace(S, **change))
        for a, b in zip(whole, parts, strict=True):
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-3)
            assert a["gradient_norm"] == pytest.approx(b["gradient_norm"], rel=1e-2)
    assert calls


@pytest.mark.parametrize(
    "change",
    [
        {"clip": 1e-3},
        {"betas": (0.5, 0.9)},
        {"weight_decay": 0.5},
        {"learning_rate": 0.01},
        {"schedule": "constant"},
    ],
    ids=str,
)
def test_every_setting_reaches_the_optimizer(folder, tmp_path, change):
    first, second = model_with(folder), model_with(folder)
    run(first, tmp_path)
    run(second, tmp_path, replace(S, **change))
    assert not same(state(first), state(second))


def test_float16_gradients_are_unscaled_before_they_are_used(folder, tmp_path):
    s = replace(S, max_steps=1, learning_rate=1e-6)
    (_, exact), (_, half) = (
        run(model_with(folder, dtype=dtype), tmp_path, s)
        for dtype in (torch.float32, torch.float16)
    )
    assert half[0]["gradient_norm"] == pytest.approx(exact[0]["gradient_norm"], rel=0.05)


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


def test_the_learning_rate_rises_and_falls():
    s = Train(learning_rate=1.0, warmup_steps=10, schedule="linear")
    assert learning_rate(s, 0, 110) == pytest.approx(0.1)
    assert learning_rate(s, 9, 110) == pytest.approx(1.0)
    assert learning_rate(s, 60, 110) == pytest.approx(0.5)
    assert learning_rate(
        replace(s, schedule="cosine", final_learning_rate=0.1), 109, 110
    ) == pytest.approx(0.1, abs=1e-3)
    assert learning_rate(replace(s, schedule="constant"), 109, 110) == 1.0
    assert learning_rate(s, 1, 4) == pytest.approx(1.0)  # a short run still reaches its full rate


def test_the_loss_scale_halves_on_overflow_and_doubles_after_calm():
    scale = LossScale(8.0, dynamic=True, patience=2)
    scale.update(False)
    assert scale.scale == 4
    for _ in range(4):
        scale.update(True)
    assert scale.scale == 16
    fixed = LossScale(1.0)
    fixed.update(False)
    assert fixed.scale == 1.0


def test_a_frozen_linear_keeps_no_input_for_the_backward_pass():
    """What training saves memory on: only the adapter's own inputs are kept."""
    kept = []
    linear, x = Linear(8, 8), torch.randn(4, 8, requires_grad=True)
    linear.weight.requires_grad_(False)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.data_ptr()) or t, lambda t: t
    ):
        linear(x)
    assert x.data_ptr() not in kept


# ---------------------------------------------------------------- checkpoints
def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path):
    save_checkpoint(tmp_path, 1, {"step": 1, "fingerprints": {}})
    path = tmp_path / "checkpoint-000001.pt"

    def fail(temporary):
        temporary.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"cannot write .*checkpoint-000001.pt: .*No space left"):
        write_atomically(path, fail)
    assert load_checkpoint(tmp_path, {})["step"] == 1
    assert os.listdir(tmp_path) == ["checkpoint-000001.pt"]


def test_a_write_is_flushed_to_disk_and_cleans_up_after_the_killed(tmp_path, monkeypatch):
    flushed = []
    true_fsync = os.fsync
    monkeypatch.setattr(
        os,
        "fsync",
        lambda handle: flushed.append(os.readlink(f"/proc/self/fd/{handle}")) or true_fsync(handle),
    )
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    for name in (".checkpoint-000001.pt.123.tmp", f".checkpoint-000002.pt.{killed.pid}.tmp"):
        (tmp_path / name).write_bytes(b"half")
    save_checkpoint(tmp_path, 2, {})
    assert [Path(name).name.rpartition(".")[2] for name in flushed] == [
        "tmp",
        tmp_path.name,
    ]  # the file, then the folder its name stands in
    assert os.listdir(tmp_path) == ["checkpoint-000002.pt"]


def test_two_processes_that_write_one_file_leave_a_whole_one(tmp_path):
    """As when both have fetched the same model: neither takes what the other is writing for what
    a killed one left.
    """
    with subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE
    ) as writer:  # ends with its input
        path, other = tmp_path / "file", tmp_path / f".file.{writer.pid}.tmp"
        other.write_text("half")
        write_atomically(path, lambda temporary: temporary.write_text("whole"))
        assert (path.read_text(), other.read_text()) == ("whole", "half")
        writer.kill()


def test_the_mode_of_a_file_follows_the_umask(tmp_path):
    save_checkpoint(tmp_path, 1, {})
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "checkpoint-000001.pt").stat().st_mode & 0o777 == 0o666 & ~umask


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

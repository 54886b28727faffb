"""Validation: rows that are never trained on choose the adapter; checkpoints that are kept;
LoRA+; what is drawn elsewhere.
"""

import json
import os
import signal
import sys
import types
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from test_training import S, examples, model_with, run, same, state

import run as command_line
from adapters import attach, named_parameters
from adapters.attach import rates
from data.batches import batch_of, collate, epoch_order, micro_batches
from experiments.report import read_log
from experiments.rows import hold_out
from experiments.tracker import TRACKERS, check_tracker
from model import UserError, load_model
from train import loop, pipeline
from train.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from train.loop import train
from train.loss import mean_loss, summed_loss
from train.optim import AdamW

V = replace(
    S, max_steps=12, validation_rows=4, validate_every=3, schedule="constant", learning_rate=0.05
)
HELD_OUT = examples(24)[20:]


def losses(monkeypatch, values):
    """mean_loss gives these, one after the other."""
    rest = list(values)
    monkeypatch.setattr(loop, "mean_loss", lambda *arguments: rest.pop(0))


# ---------------------------------------------------------------- what is validated
def test_rows_are_held_out_by_the_seed_and_never_trained_on():
    rows = [*examples(30), *examples(3)]  # three rows twice
    training, held_out, twins = hold_out(rows, 10, seed=1)
    assert len(held_out) == 10
    assert len(training) + 10 + twins == 33
    assert not {tuple(row.ids) for row in training} & {tuple(row.ids) for row in held_out}
    assert hold_out(rows, 10, seed=1) == (training, held_out, twins)
    assert hold_out(rows, 10, seed=2)[1] != held_out
    assert hold_out(rows, 0, seed=1) == (rows, [], 0)
    assert (
        sum(hold_out(rows, 10, seed=seed)[2] for seed in range(5)) > 0
    )  # a twin is left out of both
    with pytest.raises(UserError, match="leaves no row of 33"):
        hold_out(rows, 40, seed=1)


def test_the_validation_loss_is_per_token_without_dropout(folder):
    model = model_with(folder, "lora", dropout=0.5)
    with torch.no_grad():
        for parameter in named_parameters(model).values():
            parameter.normal_(std=0.3)
    model.train()
    found = mean_loss(model, HELD_OUT, 3, 0)
    assert model.training
    model.eval()
    expected = sum(summed_loss(model, *collate([row], 0, "cpu")).item() for row in HELD_OUT) / sum(
        sum(row.weights[1:]) for row in HELD_OUT
    )
    assert found == pytest.approx(expected, rel=1e-5)


def test_without_validation_rows_nothing_changes_and_with_them_the_steps_stay_as_they_are(
    folder, tmp_path
):
    plain, validated = (
        model_with(folder, "lora", dropout=0.3),
        model_with(folder, "lora", dropout=0.3),
    )
    outcome, first = run(plain, tmp_path, replace(V, validation_rows=0, validate_every=0))
    assert (outcome.adapter_step, outcome.validation) == (12, {})
    _, second = run(validated, tmp_path, replace(V, best=False), held_out=HELD_OUT)
    assert same(state(plain), state(validated))
    assert [entry["step"] for entry in second if "validation_loss" in entry] == [3, 6, 9, 12]
    assert [entry["loss"] for entry in first] == [entry["loss"] for entry in second]


# ---------------------------------------------------------------- the best step
def test_the_best_steps_weights_are_loaded_in_the_end_and_nan_is_never_best(
    folder, tmp_path, monkeypatch
):
    at_six = model_with(folder)
    monkeypatch.setattr(loop, "mean_loss", lambda *arguments: 1.0)
    run(at_six, tmp_path, replace(V, max_steps=6), held_out=HELD_OUT)
    at_six = load_checkpoint(tmp_path, {"base model": "b"})["parameters"]

    model = model_with(folder)
    losses(monkeypatch, [2.0, 1.0, float("nan"), 1.0])
    outcome, entries = run(model, tmp_path, V, held_out=HELD_OUT)
    assert (outcome.step, outcome.adapter_step, outcome.validation) == (
        12,
        6,
        {"best_step": 6, "best_loss": 1.0},
    )
    assert all(
        torch.equal(parameter, at_six[name]) for name, parameter in named_parameters(model).items()
    )
    assert entries[8]["validation_loss"] is None
    last = load_checkpoint(
        tmp_path, {"base model": "b"}
    )  # the checkpoint itself holds the last step, and the best beside it
    assert not all(torch.equal(last["parameters"][name], tensor) for name, tensor in at_six.items())
    again = model_with(folder)
    outcome, _ = run(
        again, tmp_path, V, held_out=HELD_OUT, resume=True
    )  # killed after the last step
    assert outcome.adapter_step == 6
    assert same(state(again), state(model))

    losses(monkeypatch, [2.0, 1.0, float("nan"), 1.0])
    kept, _ = run(model_with(folder), tmp_path, replace(V, best=False), held_out=HELD_OUT)
    assert (kept.adapter_step, kept.validation["best_step"]) == (12, 6)
    losses(monkeypatch, [float("nan")] * 4)
    outcome, _ = run(model_with(folder), tmp_path, V, held_out=HELD_OUT)
    assert (outcome.adapter_step, outcome.validation) == (12, {})


def test_a_resumed_run_still_knows_the_best(folder, tmp_path, monkeypatch):
    losses(monkeypatch, [1.0, 2.0, 3.0, 4.0])
    whole = model_with(folder)
    run(whole, tmp_path, V, held_out=HELD_OUT)
    losses(monkeypatch, [1.0, 2.0])
    outcome, _ = run(
        model_with(folder),
        tmp_path,
        V,
        held_out=HELD_OUT,
        log=lambda entry: os.kill(os.getpid(), signal.SIGTERM) if entry["step"] == 7 else None,
    )
    assert (outcome.step, outcome.signal) == (7, signal.SIGTERM)
    losses(monkeypatch, [3.0, 4.0])
    rest = model_with(folder)
    outcome, _ = run(rest, tmp_path, V, held_out=HELD_OUT, resume=True)
    assert (outcome.adapter_step, outcome.validation["best_loss"]) == (3, 1.0)
    assert same(state(rest), state(whole))


def test_weights_that_are_not_finite_are_never_the_best(folder, tmp_path, monkeypatch):
    model = model_with(folder)

    def spoil(*arguments):  # attention on a CPU can hide it from the loss
        next(iter(named_parameters(model).values())).data.fill_(torch.nan)
        return 1.0

    monkeypatch.setattr(loop, "mean_loss", spoil)
    with pytest.raises(UserError, match="not finite after step 3"):
        run(model, tmp_path, V, held_out=HELD_OUT)


def test_patience_stops_the_run_also_when_it_was_interrupted(folder, tmp_path, monkeypatch):
    losses(monkeypatch, [2.0, 1.0, 1.5, 1.2, 0.1])
    s = replace(V, max_steps=30, patience=2, save_every=3)
    outcome, entries = run(model_with(folder), tmp_path, s, held_out=HELD_OUT)
    assert (outcome.step, outcome.adapter_step, len(entries)) == (12, 6, 12)
    outcome, entries = run(model_with(folder), tmp_path, s, held_out=HELD_OUT, resume=True)
    assert (outcome.step, outcome.adapter_step, len(entries)) == (12, 6, 0)


@pytest.mark.parametrize(
    "change", [{"train": {"patience": 2}}, {"train": {"validate_every": 5}}], ids=str
)
def test_settings_that_need_validation_rows_say_so(change):
    from train.settings import settings

    with pytest.raises(UserError, match=r"set train\.validation_rows"):
        settings(options=change)


# --------------------------------------------- interrupted within a step; checkpoints that are kept
def test_killed_between_two_micro_batches_and_resumed_ends_with_the_same_bits(
    folder, tmp_path, monkeypatch
):
    """Half a step's gradient is there when the end comes; nothing of it may be left."""
    whole = model_with(folder, "lora", dropout=0.3)
    run(whole, tmp_path, S)
    half = model_with(folder, "lora", dropout=0.3)
    true_loss, calls = pipeline.summed_loss, []

    def killed(*arguments):
        calls.append(1)
        if (
            len(calls) == 3 * 4 + 2 + 1
            # 3 micro-batches in each of four steps (6, 6, 6, 2 rows: the last has one), then in the
            # middle of the sixth
        ):
            raise KeyboardInterrupt
        return true_loss(*arguments)

    monkeypatch.setattr(pipeline, "summed_loss", killed)
    with pytest.raises(KeyboardInterrupt):
        run(half, tmp_path, replace(S, save_every=2))
    assert load_checkpoint(tmp_path, {"base model": "b"})["step"] == 4
    rest = model_with(folder, "lora", dropout=0.3)
    run(rest, tmp_path, replace(S, save_every=2), resume=True)
    assert same(state(rest), state(whole))


def test_the_newest_checkpoints_are_kept_and_the_newest_that_can_be_read_is_resumed(
    folder, tmp_path, capsys
):
    s = replace(S, save_every=2, keep=3)
    whole = model_with(folder)
    run(whole, tmp_path, s)
    assert [path.name for path in checkpoints(tmp_path)] == [
        f"checkpoint-00000{step}.pt" for step in (4, 6, 8)
    ]
    newest, middle = checkpoints(tmp_path)[-1], checkpoints(tmp_path)[-2]
    damaged = bytearray(newest.read_bytes())
    damaged[len(damaged) // 2] ^= 1  # one bit, in a tensor
    newest.write_bytes(damaged)
    capsys.readouterr()
    rest = model_with(folder)
    _, entries = run(rest, tmp_path, s, resume=True)
    said = capsys.readouterr().out
    assert f"{newest} cannot be read as a checkpoint" in said
    assert f"the one before it is tried, {middle.name}" in said
    assert [entry["step"] for entry in entries] == [7, 8]
    assert same(state(rest), state(whole))
    for path in checkpoints(tmp_path):
        path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match="cannot be read"):
        run(model_with(folder), tmp_path, s, resume=True)


def test_an_old_checkpoint_goes_only_when_the_new_one_is_on_the_disk(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 1, {"fingerprints": {}})
    there = []
    true_fsync = os.fsync
    monkeypatch.setattr(
        os,
        "fsync",
        lambda handle: (
            there.append((tmp_path / "checkpoint-000001.pt").is_file()) or true_fsync(handle)
        ),
    )
    save_checkpoint(tmp_path, 2, {"fingerprints": {}})
    assert there == [True, True]
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-000002.pt"]
    for step in (999_999, 1_000_000):
        save_checkpoint(tmp_path, step, {"fingerprints": {}}, keep=3)
    assert [path.name[11:-3] for path in checkpoints(tmp_path)] == [
        "000002",
        "999999",
        "1000000",
    ]  # by number, not by letter
    save_checkpoint(
        tmp_path, 3, {"fingerprints": {}}, keep=2
    )  # a run that went back to step 2: what comes later is of no use
    assert [path.name for path in checkpoints(tmp_path)] == [
        "checkpoint-000002.pt",
        "checkpoint-000003.pt",
    ]


# ---------------------------------------------------------------- LoRA+
@pytest.mark.parametrize("kind", ["lora", "dora", "pissa"])
def test_lora_plus_is_adamw_with_two_groups_made_by_hand(folder, tmp_path, kind):
    """Hayou et al. 2024: B learns 16 times as fast as A."""
    s = replace(
        S,
        max_steps=3,
        schedule="constant",
        warmup_steps=0,
        batch_size=6,
        micro_batch_size=6,
        clip=1e9,
    )

    def made():
        torch.manual_seed(0)
        model = load_model(str(folder))
        attach(model, kind, r=2, dropout=0.0, b_rate=16.0)
        return model

    ours, theirs = made(), made()
    found = rates(ours)
    assert {name.rpartition(".")[2]: rate for name, rate in found.items()} == {
        "lora_A": 1.0,
        "lora_B": 16.0,
        **({"lora_magnitude_vector": 1.0} if kind == "dora" else {}),
    }
    train(
        ours,
        named_parameters(ours),
        examples(6),
        s,
        seed=1,
        pad_id=0,
        folder=tmp_path,
        fingerprints={},
        rates=found,
    )

    named = named_parameters(theirs)
    groups = [
        {"params": [p for name, p in named.items() if "lora_B" not in name], "lr": s.learning_rate},
        {
            "params": [p for name, p in named.items() if "lora_B" in name],
            "lr": 16 * s.learning_rate,
        },
    ]
    optimizer = torch.optim.AdamW(groups, betas=s.betas, weight_decay=s.weight_decay, fused=True)
    rows = examples(6)
    for epoch in range(3):
        (order,) = epoch_order([len(row) for row in rows], 6, 1, epoch)
        (batch,) = micro_batches([rows[row] for row in order], 6)
        (
            summed_loss(theirs, *batch_of(batch, 0, "cpu", packing=True))
            / sum(sum(row.weights[1:]) for row in rows)
        ).backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, parameter in named_parameters(ours).items():
        assert torch.equal(parameter, named[name])


# ---------------------------------------------------------------- schedules
@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_every_schedule_reaches_the_optimizer(folder, tmp_path, monkeypatch, schedule):
    used = []
    true_step = AdamW.step
    monkeypatch.setattr(
        AdamW,
        "step",
        lambda self: used.append([group["lr"] for group in self.param_groups]) or true_step(self),
    )
    run(
        model_with(folder),
        tmp_path,
        replace(
            S,
            max_steps=10,
            learning_rate=1.0e-3,
            warmup_steps=2,
            schedule=schedule,
            final_learning_rate=0.1,
        ),
    )
    assert all(len(rates) == 1 for rates in used)
    expected = {
        "linear": [0.5, 1, 1, 0.8875, 0.775, 0.6625, 0.55, 0.4375, 0.325, 0.2125],
        "constant": [0.5] + 9 * [1.0],
        "cosine": [0.5, 1, 1, 0.96574, 0.86820, 0.72221, 0.55, 0.37779, 0.23180, 0.13426],
    }[schedule]
    assert [1000 * rate[0] for rate in used] == pytest.approx(expected, rel=1e-3)


# ---------------------------------------------------------------- the whole run, and the trackers
class Board:
    """In the place of torch.utils.tensorboard: what was written, by folder."""

    written: ClassVar[dict] = {}

    def __init__(self, folder, purge_step):
        self.values = Board.written.setdefault(folder, {})
        for key in [key for key in self.values if key[1] >= purge_step]:
            del self.values[key]

    def add_scalar(self, name, value, step):
        self.values[name, step] = value

    def flush(self):
        pass

    def close(self):
        self.values["closed", 0] = True


QUICK = (
    *(
        "--adapter lora --max-steps 6 --items 2 --set eval.before=false --set eval.max_new_tokens=2"
    ).split(),
)


def main(*words) -> int:
    return command_line.main([str(word) for word in words])


def test_a_run_with_validation_says_and_draws_what_it_kept(tmp_path, monkeypatch, capsys):
    Board.written = {}
    monkeypatch.setitem(
        sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Board)
    )
    out = tmp_path / "out"
    sets = (
        *(
            "--set train.validation_rows=20 --set train.validate_every=2 --set "
            "train.tracker=tensorboard"
        ).split(),
    )
    values = [3.0, 1.0, 2.0]
    monkeypatch.setattr(loop, "mean_loss", lambda *arguments: values.pop(0))
    assert main(*QUICK, *sets, "--set", "train.save_every=4", "--keep", 2, "--out", out) == 0
    said = capsys.readouterr().out
    assert "20 rows are held out to validate on every 2 steps" in said
    assert "the adapter is that of step 4, the lowest validation loss, 1.0000" in said
    result = json.loads((out / "result.json").read_text())
    assert (result["steps"], result["adapter_step"], result["validation"]) == (
        6,
        4,
        {"best_step": 4, "best_loss": 1.0},
    )
    assert "the adapter is that of step 4" in (out / "report.html").read_text()
    assert [entry.get("validation_loss") for entry in read_log(out / "log.jsonl")] == [
        None,
        3.0,
        None,
        1.0,
        None,
        2.0,
    ]
    assert [path.name for path in checkpoints(out)] == [
        "checkpoint-000004.pt",
        "checkpoint-000006.pt",
    ]

    board = Board.written[str(out / "tensorboard")]
    for name in ("loss", "learning_rate", "gradient_norm", "tokens_per_second"):
        assert [step for step in range(1, 8) if (f"train/{name}", step) in board] == [
            1,
            2,
            3,
            4,
            5,
            6,
        ]
    assert {
        step: value for (name, step), value in board.items() if name == "train/validation_loss"
    } == {2: 3.0, 4: 1.0, 6: 2.0}
    assert board["accuracy/multiarith", 6] == result["after"]["multiarith"]["accuracy"]
    assert board["closed", 0]

    # the file holds the weights of step 4, which the older of the two checkpoints has
    model = load_model("pocket-llama", dtype=torch.float32)
    from adapters import load_adapter

    load_adapter(model, out / "adapter")
    saved = torch.load(out / "checkpoint-000004.pt", weights_only=True)["parameters"]
    assert all(
        torch.equal(parameter, saved[name]) for name, parameter in named_parameters(model).items()
    )


def test_in_tensorboard_a_resumed_run_takes_the_place_of_the_steps_it_repeats(
    tmp_path, monkeypatch
):
    Board.written = {}
    monkeypatch.setitem(
        sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Board)
    )
    for first, last in (
        (1, 5),
        (4, 4),
    ):  # killed after step 5, resumed from the checkpoint of step 3
        tracker = TRACKERS["tensorboard"](tmp_path, {})
        for step in range(first, last + 1):
            tracker.write({"step": step, "loss": 1.0, "skipped": False})
    board = Board.written[str(tmp_path / "tensorboard")]
    assert [step for name, step in board if name == "train/loss"] == [1, 2, 3, 4]
    TRACKERS["tensorboard"](tmp_path, {}).finish(4, {"svamp": 0.5})  # resumed after its last step
    assert board["accuracy/svamp", 4] == 0.5
    assert ("train/loss", 4) in board


def test_weights_and_biases_goes_on_with_the_same_run(tmp_path, monkeypatch):
    calls = []
    fake = types.ModuleType("wandb")
    fake.Error = type("Error", (Exception,), {})
    one = types.SimpleNamespace(
        log=calls.append,
        define_metric=lambda *a, **k: None,
        finish=lambda: calls.append("finished"),
    )
    fake.init = lambda **options: calls.append(options) or one
    monkeypatch.setitem(sys.modules, "wandb", fake)
    check_tracker("wandb")
    for step in (1, 2):  # the second time: resumed
        tracker = TRACKERS["wandb"](tmp_path, {"seed": 1})
        tracker.write({"step": step, "loss": 0.5, "skipped": False, "validation_loss": None})
        tracker.finish(step, {"svamp": 0.25})
    first, second = calls[0], calls[4]
    assert first["id"] == second["id"]
    assert (first["resume"], first["config"], first["dir"]) == ("allow", {"seed": 1}, str(tmp_path))
    assert calls[1:4] == [
        {"loss": 0.5, "skipped": 0.0, "step": 1},
        {"accuracy/svamp": 0.25, "step": 1},
        "finished",
    ]

    def refused(**options):
        raise fake.Error("api_key not configured\nmore")

    fake.init = refused
    with pytest.raises(
        UserError, match="wandb does not start: api_key not configured; WANDB_MODE=offline keeps"
    ):
        TRACKERS["wandb"](tmp_path, {})


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tensorboard", "pip install tensorboard"),
        ("wandb", "pip install wandb"),
        ("tensorbord", "did you mean 'tensorboard'"),
    ],
)
def test_a_tracker_that_is_not_there_is_one_line_before_the_model_is_loaded(
    tmp_path, monkeypatch, capsys, name, said
):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setattr(
        "experiments.prepare.load_base", lambda *_: pytest.fail("the model was loaded")
    )
    assert main(*QUICK, "--set", f"train.tracker={name}", "--out", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()

"""The fields of Train, each with what its value must give."""

import json
import math
import os
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from obeyed import Rows, lines_of, losses, rows_of, watched
from training_runs import S, examples, model_with, run, same, state

from adapters import named_parameters
from data.batches import encode_prompt, encode_row, epoch_order
from data.prompts import template
from experiments import base
from model import load_model, load_tokenizer
from train import loop, pipeline
from train.settings import Train

ROWS = Rows()
row = ROWS.row


# ---------------------------------------------------------------- train: the optimizer, by hand
def rate_by_hand(s: Train, step: int, total: int) -> float:
    warm = min(s.warmup_steps, total // 2)
    if step < warm:
        return s.learning_rate * (step + 1) / warm
    done = (step - warm) / (total - warm)
    falls = {"linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2, "constant": None}[
        s.schedule
    ]
    if falls is None:
        return s.learning_rate
    low = s.final_learning_rate * s.learning_rate
    return low + (s.learning_rate - low) * falls


def trained_by_hand(folder: Path, s: Train, rows) -> tuple[list[dict], list[torch.Tensor]]:
    """Losses, rates, norms and weights of AdamW on whole batches, one row after another."""
    model = model_with(folder)
    parameters = list(named_parameters(model).values())
    first, second = s.betas
    moments = [(torch.zeros_like(one), torch.zeros_like(one)) for one in parameters]
    per_epoch = math.ceil(len(rows) / s.batch_size)
    total, entries = s.max_steps or per_epoch * s.epochs, []
    for step in range(total):
        epoch, batch = divmod(step, per_epoch)
        lengths = [len(one) for one in rows]
        chosen = epoch_order(lengths, s.batch_size, 1, epoch, s.group_by_length)[batch]
        loss = 0.0
        for one in (rows[number] for number in chosen):
            ids, weights = torch.tensor([one.ids]), torch.tensor(one.weights[1:])
            each = F.cross_entropy(model(ids)[0, :-1], ids[0, 1:], reduction="none")
            loss = loss + (each * weights).sum()
        loss = loss / sum(sum(rows[number].weights[1:]) for number in chosen)
        gradients = torch.autograd.grad(loss, parameters)
        norm = math.sqrt(sum(float((one**2).sum()) for one in gradients))
        rate = rate_by_hand(s, step, total)
        with torch.no_grad():
            for one, gradient, (m, v) in zip(parameters, gradients, moments, strict=True):
                gradient = gradient * min(1.0, s.clip / (norm + 1e-6))
                m.lerp_(gradient, 1 - first)
                v.lerp_(gradient**2, 1 - second)
                m_hat, v_hat = m / (1 - first ** (step + 1)), v / (1 - second ** (step + 1))
                one.mul_(1 - rate * s.weight_decay).sub_(rate * m_hat / (v_hat.sqrt() + 1e-8))
        entries.append({"loss": loss.item(), "learning_rate": rate, "gradient_norm": norm})
    return entries, parameters


CHANGES = {
    "epochs": {"epochs": 2, "max_steps": 0, "batch_size": 8},
    "max_steps": {"max_steps": 3},
    "batch_size": {"batch_size": 5},
    "micro_batch_size": {"micro_batch_size": 1},
    "learning_rate": {"learning_rate": 0.05},
    "warmup_steps": {"warmup_steps": 1},
    "schedule": {"schedule": "cosine"},
    "final_learning_rate": {"final_learning_rate": 0.5},
    "betas": {"betas": (0.6, 0.8)},
    "weight_decay": {"weight_decay": 0.5},
    "clip": {"clip": 0.1},
}


@row(*(f"train.{name}" for name in CHANGES), each=True)
def the_optimizer(here):
    name = here.name.removeprefix("train.")
    usual = S if name == "epochs" else replace(S, max_steps=5)
    s = replace(usual, **CHANGES[name])
    model, plain = model_with(here.tiny), model_with(here.tiny)
    with watched(here.monkeypatch) as seen:
        _, entries = run(model, here.path, s)
    expected, weights = trained_by_hand(here.tiny, s, examples())
    assert len(entries) == len(expected)
    for ours, theirs in zip(entries, expected, strict=True):
        for key, value in theirs.items():
            assert ours[key] == pytest.approx(value, rel=2e-3), key
    for ours, theirs in zip(state(model), weights, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=2e-4)
    assert max(rows for _, (rows, _) in seen) == s.micro_batch_size
    if name != "micro_batch_size":
        run(plain, here.path, usual)
        assert not same(state(model), state(plain)), "this value shows nothing"


@row("train.group_by_length")
def batches_of_near_equal_lengths(here):
    rows = examples()
    s = replace(S, max_steps=0, epochs=1, batch_size=4, micro_batch_size=4, group_by_length=True)
    with watched(here.monkeypatch) as seen:
        run(model_with(here.tiny), here.path, s)
    longest = sorted(length for _, (_, length) in seen)
    lengths = sorted(len(row) for row in rows)
    assert longest == [max(lengths[i : i + 4]) for i in range(0, 20, 4)]
    with watched(here.monkeypatch) as seen:
        run(model_with(here.tiny), here.path, replace(s, group_by_length=False))
    assert sorted(length for _, (_, length) in seen) != longest


@row("train.tokens_per_batch")
def as_many_rows_as_fit_in_so_many_tokens(here):
    s = replace(S, max_steps=0, epochs=1, packing=False)
    with watched(here.monkeypatch) as seen:
        run(model_with(here.tiny), here.path, replace(s, tokens_per_batch=25))
    shapes = [shape for _, shape in seen]
    assert sum(rows for rows, _ in shapes) == 20
    assert max(rows * length for rows, length in shapes) <= 25 < 2 * 25 < 20 * 4
    assert max(rows for rows, _ in shapes) > S.micro_batch_size


@row("train.packing")
def linears_see_no_pads(here):
    counts, lengths = [], [len(row) for row in examples()]
    for packing in (True, False):
        model, tokens = model_with(here.tiny), []
        up = model.blocks[0].get_submodule(model.sites["up"])
        up.register_forward_hook(lambda site, args, y, n=tokens: n.append(y[..., 0].numel()))
        s = replace(S, max_steps=0, epochs=1, micro_batch_size=6, packing=packing)
        run(model, here.path, s)
        counts.append(sum(tokens))
    assert sum(lengths) <= counts[0] <= 17 / 16 * sum(lengths) < counts[1]


@row("train.checkpointing")
def blocks_are_computed_again(here):
    import model.language

    calls, checkpoint = [], model.language.checkpoint
    here.monkeypatch.setattr(
        model.language,
        "checkpoint",
        lambda call, block, *a, **k: calls.append(block) or checkpoint(call, block, *a, **k),
    )
    plain = model_with(here.tiny)
    run(plain, here.path, replace(S, max_steps=1, micro_batch_size=6))
    assert not calls
    for value, numbers in (("block", [0, 1, 2]), ("every 2", [0, 2]), ("every 3", [0])):
        again = model_with(here.tiny)
        run(again, here.path, replace(S, max_steps=1, micro_batch_size=6, checkpointing=value))
        assert [list(again.blocks).index(block) for block in calls] == numbers, value
        for a, b in zip(state(plain), state(again), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
        calls.clear()


@row("train.offload")
def what_is_kept_is_offloaded(here):
    with_hooks = []

    @contextmanager
    def offloaded(model):
        with_hooks.append(model)
        yield

    here.monkeypatch.setattr(loop, "offloaded", offloaded)
    run(model_with(here.tiny), here.path, replace(S, max_steps=2))
    assert not with_hooks
    run(model_with(here.tiny), here.path, replace(S, max_steps=2, offload=True))
    assert len(with_hooks) == 2
    here.train("--set", "train.offload=true", status=1)  # the run is on the CPU already
    assert "train.offload" in here.told


@row("train.compile")
def blocks_are_compiled(here):
    """The numbers of compiled blocks are tests/model/test_compiled.py's."""
    on, checked = [], []

    @contextmanager
    def compiled(model):
        on.append("begin")
        yield
        on.append("end")

    def watch(*arguments):
        on.append("loss")
        return summed_loss(*arguments)

    summed_loss = pipeline.summed_loss
    here.monkeypatch.setattr(base, "check_compiler", lambda *found: checked.append(found))
    here.monkeypatch.setattr(loop, "compiled", compiled)
    here.monkeypatch.setattr(pipeline, "summed_loss", watch)
    here.still()
    assert set(on) == {"loss"}
    assert not checked
    on.clear()
    here.still("--set", "train.compile=true", out="compiled")
    assert on[0] == "begin"
    assert on[-1] == "end"
    assert set(on[1:-1]) == {"loss"}
    assert set(checked) == {(torch.device("cpu"), "train.compile")}


@row("train.deterministic")
def sums_have_a_fixed_order(here):
    found, summed_loss = [], pipeline.summed_loss

    def watch(*arguments):
        on = torch.are_deterministic_algorithms_enabled()
        found.append((on, torch.is_deterministic_algorithms_warn_only_enabled()))
        return summed_loss(*arguments)

    here.monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    here.monkeypatch.setattr(pipeline, "summed_loss", watch)
    here.still()
    assert set(found) == {(False, False)}
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    found.clear()
    here.monkeypatch.setattr(
        base, "load_model", lambda *a, **k: found.append(workspace()) or load_model(*a, **k)
    )
    here.still("--set", "train.deterministic=true", out="deterministic")
    assert found[0] == ":4096:8"  # before a card is used
    assert set(found[1:]) == {(True, False)}
    assert not torch.are_deterministic_algorithms_enabled()


@row("train.tf32")
def factors_are_rounded_on_a_card(here):
    found, summed_loss = [], pipeline.summed_loss

    def watch(*arguments):
        found.append(torch.backends.cuda.matmul.allow_tf32)
        return summed_loss(*arguments)

    here.monkeypatch.setattr(pipeline, "summed_loss", watch)
    run(model_with(here.tiny), here.path, replace(S, max_steps=1))
    assert set(found) == {False}
    run(model_with(here.tiny), here.path, replace(S, max_steps=1, tf32=True))
    assert found[-1]
    assert not torch.backends.cuda.matmul.allow_tf32
    here.train("--set", "train.tf32=true", status=1)  # there is no card
    assert "train.tf32 is for a GPU" in here.told


def workspace() -> str:
    return os.environ["CUBLAS_WORKSPACE_CONFIG"]


@row("train.save_every", "train.keep")
def checkpoints_are_kept(here):
    written = []
    true_save = loop.State.save
    here.monkeypatch.setattr(
        loop.State,
        "save",
        lambda self, *a, **k: written.append(self.step) or true_save(self, *a, **k),
    )
    run(model_with(here.tiny), here.path, replace(S, save_every=3, keep=2))
    assert written == [3, 6, 8]
    left = sorted(path.name for path in here.path.glob("checkpoint-*.pt"))
    assert left == ["checkpoint-000006.pt", "checkpoint-000008.pt"]


@row("train.validate_every", "train.best", "train.patience")
def validation(here):
    s = replace(S, max_steps=12, batch_size=2, validation_rows=4, validate_every=2, save_every=5)
    found = []

    def train(values, **changes):
        rest = list(values)
        here.monkeypatch.setattr(loop, "mean_loss", lambda *arguments: rest.pop(0))
        outcome, entries = run(
            model_with(here.tiny), here.path, replace(s, **changes), held_out=examples(24)[20:]
        )
        found[:] = [one["step"] for one in entries if "validation_loss" in one]
        return outcome

    assert train([3.0, 1.0, 2.0, 2.0, 2.0, 2.0]).adapter_step == 4
    assert found == [2, 4, 6, 8, 10, 12]
    assert train([3.0, 1.0, 2.0, 2.0, 2.0, 2.0], best=False).adapter_step == 12
    assert train([3.0, 1.0, 2.0, 2.0, 2.0, 2.0], patience=2).step == 8  # two after the best one
    train([3.0, 1.0, 2.0], validate_every=0)
    assert found == [5, 10, 12]  # as often as checkpoints are saved


# ---------------------------------------------------------------- train: a whole run
@cache
def pocket():
    """The pocket model, which nobody changes."""
    return load_model("pocket-llama", torch.float32)


def loss_by_hand(rows: list[dict], prompt_weight=0.0, cutoff=256, form="alpaca") -> float:
    """The loss of the pocket model on all rows at once, from its logits."""
    model, tokenizer = pocket(), load_tokenizer("pocket-llama")
    total = weight = 0.0
    for one in rows:
        ids = tokenizer.encode(template(form, tokenizer).whole(one), bos=True)
        ids.append(tokenizer.eos_id)
        _, asked = encode_prompt(tokenizer, one, template(form, tokenizer))
        weights = torch.tensor([prompt_weight] * len(asked) + [1.0] * (len(ids) - len(asked)))
        ids, weights = torch.tensor([ids[:cutoff]]), weights[:cutoff]
        with torch.no_grad():
            each = F.cross_entropy(model(ids)[0, :-1], ids[0, 1:], reduction="none")
        total += float((each * weights[1:]).sum())
        weight += float(weights[1:].sum())
    return total / weight


def four(here, name="four.json", **changes) -> Path:
    """Four rows, all of which are in the first step."""
    path = here.path / name
    path.write_text(json.dumps([one | changes for one in rows_of(here.sums)[:4]]))
    return path


WHOLE = ("--set", "test_share=0")


@row("train.prompt_weight")
def prompts_count_as_much_as_they_weigh(here):
    path = four(here)
    for weight in (0.0, 0.25):
        folder = here.still(
            *WHOLE, "--set", f"train.prompt_weight={weight}", data=path, out=f"{weight}"
        )
        assert losses(folder)[0] == pytest.approx(loss_by_hand(rows_of(path), weight), rel=1e-3)


@row("train.cutoff")
def rows_are_cut_off(here):
    path = four(here)
    tokenizer = load_tokenizer("pocket-llama")
    whole = [
        encode_row(tokenizer, one, template("alpaca", tokenizer), cutoff=999)[0]
        for one in rows_of(path)
    ]
    cutoff = max(map(len, whole)) - 1
    with watched(here.monkeypatch) as seen:
        folder = here.still(*WHOLE, "--set", f"train.cutoff={cutoff}", data=path)
    assert max(length for _, (_, length) in seen) == cutoff
    result = json.loads((folder / "result.json").read_text())
    assert result["rows_cut_off"] == sum(len(one) > cutoff for one in whole)
    expected = loss_by_hand(rows_of(path), cutoff=cutoff)
    assert losses(folder)[0] == pytest.approx(expected, rel=1e-3)


@row("train.validation_rows")
def so_many_rows_validate(here):
    folder = here.still(*WHOLE, "--set", "train.validation_rows=39", "--set", "train.save_every=1")
    (entry,) = lines_of(folder / "log.jsonl")
    rows = rows_of(here.sums)
    left = [one for one in rows if entry["loss"] == pytest.approx(loss_by_hand([one]), rel=1e-3)]
    assert len(left) == 1  # one row is left to train on
    rest = [one for one in rows if one is not left[0]]
    assert entry["validation_loss"] == pytest.approx(loss_by_hand(rest), rel=1e-3)


@row("train.tracker")
def a_run_is_drawn_elsewhere(here):
    import sys
    import types

    drawn = []

    class Writer:
        def __init__(self, where, purge_step):
            drawn.append(Path(where))

        def add_scalar(self, name, value, step):
            drawn.append((name, step))

        def flush(self):
            pass

        close = flush

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    here.monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    folder = here.still("--set", "train.tracker=tensorboard")
    assert folder in [drawn[0], *drawn[0].parents]
    assert ("train/loss", 1) in [one for one in drawn if isinstance(one, tuple)]
    here.train("--set", "train.tracker=wanda", status=1, out="no")
    assert "train.tracker" in here.told

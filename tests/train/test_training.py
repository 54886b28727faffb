"""The loop: what may not change the result does not."""

from dataclasses import replace

import pytest
import torch
from conftest import DEVICES
from training_runs import S, examples, gradients, model_with, run

from data.batches import collate, encode_row, epoch_order, micro_batches
from data.prompts import prompt, template
from model.sites import Linear
from train import loss, loss_gradient
from train.optim import LossScale, learning_rate
from train.settings import Train


@pytest.mark.parametrize("change", ["micro-batches", "checkpointing", "chunks"])
def test_the_gradient_does_not_depend_on(folder, monkeypatch, change):
    model = model_with(folder, init="bert")
    plain = gradients(model, replace(S, micro_batch_size=6))
    s = replace(S, micro_batch_size=1 if change == "micro-batches" else 6)
    model.checkpointing = change == "checkpointing"
    if change == "chunks":
        monkeypatch.setattr(loss_gradient, "CHUNK", 3)
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
    _, entries = run(
        model, tmp_path, replace(S, max_steps=24, micro_batch_size=6, schedule="constant")
    )
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


def test_float16_gradients_are_unscaled_before_they_are_used(folder, tmp_path):
    s = replace(S, max_steps=1, learning_rate=1e-6)
    (_, exact), (_, half) = (
        run(model_with(folder, dtype=dtype), tmp_path, s)
        for dtype in (torch.float32, torch.float16)
    )
    assert half[0]["gradient_norm"] == pytest.approx(exact[0]["gradient_norm"], rel=0.05)


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

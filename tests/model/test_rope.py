"""Rope types in training, and texts that are longer than what a rotary model was trained for."""

import warnings
from dataclasses import replace

import pytest
import torch
from conftest import write_checkpoint
from families import LLAMA3, MISTRAL, QWEN3, YARN, config_of
from training_runs import S, examples, run, state

from adapters import attach, parameters
from data.batches import collate, micro_batches
from eval.generate import generate
from eval.likelihood import log_likelihoods
from model import load_model
from model.config import family_and_config
from model.devices import split
from model.rope_scaling import trained_length
from model.tokens import Tokens
from train.loss import summed_loss
from train.measure import mean_loss
from train.pipeline import accumulate

DYNAMIC = {"rope_scaling": {"type": "dynamic", "factor": 3.0}, "max_position_embeddings": 6}
CPU = torch.device("cpu")


@pytest.fixture
def dynamic(tmp_path):
    """A model whose angles depend on the length of a row: most examples are longer than 6."""
    return write_checkpoint(tmp_path / "dynamic", **DYNAMIC)


def model_with(folder, preset: str = "lora", stages: int = 1):
    torch.manual_seed(0)
    model = load_model(str(folder))
    if stages > 1:
        split(model, [CPU] * stages)
    options = {"lora": {"r": 2, "dropout": 0.0}, "parallel": {"size": 4}}.get(preset, {"length": 3})
    attach(model, preset, **options)
    for parameter in parameters(model):
        parameter.data.normal_(0, 0.3)
    return model


def loss_and_gradient(model, size: int) -> tuple[float, torch.Tensor]:
    """Of twelve rows, through train.pipeline.accumulate in micro-batches of this size."""
    losses, _ = accumulate(model, dict(enumerate(micro_batches(examples(12), size))), 10.0, 0)
    gradient = torch.cat([parameter.grad.flatten() for parameter in parameters(model)])
    model.zero_grad()
    return sum(loss.item() for loss in losses), gradient


@pytest.mark.parametrize(
    ("preset", "stages", "checkpointing"),
    [("lora", 1, 0), ("prefix", 2, 1), ("prefix", 1, 0), ("prompt", 1, 1), ("prompt", 2, 0)],
)
def test_a_row_does_not_depend_on_its_micro_batch(dynamic, preset, stages, checkpointing):
    model = model_with(dynamic, preset, stages)
    model.checkpointing = checkpointing
    expected, alone = loss_and_gradient(model, 1)
    for size in (2, 5, 12):
        loss, gradient = loss_and_gradient(model, size)
        assert loss == pytest.approx(expected, rel=1e-5)
        assert (gradient - alone).abs().max() < 1e-4 * alone.std()


def test_a_run_does_not_depend_on_the_micro_batch_size(dynamic, tmp_path):
    """Through train.loop: losses of every step, validation, and the adapter in the end."""
    found = {}
    for size in (1, 3, 6):
        model, s = model_with(dynamic), replace(S, max_steps=4, micro_batch_size=size)
        more = {"held_out": examples(25)[20:]}
        (tmp_path / str(size)).mkdir()
        _, entries = run(model, tmp_path / str(size), s, **more)
        losses = [entry["loss"] for entry in entries]
        found[size] = [*losses, entries[-1]["validation_loss"]], state(model)
    for size in (3, 6):
        assert found[size][0] == pytest.approx(found[1][0], rel=1e-4)
        pairs = zip(found[size][1], found[1][1], strict=True)
        assert all((a - b).abs().max() < 1e-3 for a, b in pairs)


def test_the_loss_of_a_row_is_that_of_the_model_on_it_alone(dynamic):
    model, rows = model_with(dynamic).eval(), examples(7)
    expected = 0.0
    with torch.no_grad():
        for row in rows:
            ids, weights = torch.tensor([row.ids]), torch.tensor(row.weights)
            logs = model(ids)[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
            expected -= (logs * weights[1:]).sum().item()
        found = summed_loss(model, *collate(rows, 0, "cpu")).item()
    assert found == pytest.approx(expected, rel=1e-5)
    tokens = sum(sum(row.weights[1:]) for row in rows)
    assert mean_loss(model, rows, 4, 0) == pytest.approx(expected / tokens, rel=1e-5)


def test_other_rope_types_count_from_zero(folder):
    """Positions are not given, so that the bits of runs stay."""
    model, calls = model_with(folder), []
    hidden = model.hidden
    model.hidden = lambda *args, **more: calls.append(more) or hidden(*args, **more)
    summed_loss(model, *collate(examples(3), 0, "cpu"))
    (call,) = calls
    assert call.keys() == {"positions", "packing", "prompts"}
    assert (call["positions"], call["packing"]) == (None, None)
    del model.hidden
    plain = summed_loss(model, *collate(examples(3), 0, "cpu")[:2])
    assert torch.equal(summed_loss(model, *collate(examples(3), 0, "cpu")), plain)


@pytest.mark.parametrize("changes", [DYNAMIC, MISTRAL, QWEN3])
def test_the_angles_need_no_mask(tmp_path, changes):
    """Right-padded rows go through training without a mask, so that the fused kernel is used."""
    model = load_model(str(write_checkpoint(tmp_path, **changes)))
    seen = []
    step = model.step
    model.step = lambda *args: seen.append(step(*args)) or seen[-1]
    summed_loss(model, *collate([row for row in examples(6) if len(row) < 5], 0, "cpu"))
    assert seen[0].mask is None
    assert seen[0].window_mask is None


@pytest.mark.parametrize(
    ("changes", "limit"),
    [
        ({}, 64),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, 256),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, 128),
        ({"rope_scaling": YARN}, 64),
        ({"rope_scaling": YARN | {"factor": 8.0}}, 128),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, 256),
        ({"rope_scaling": LLAMA3}, 64),
        ({"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 64}}, 512),
        ({"rope_scaling": {"rope_type": "default"}}, 64),
        (MISTRAL, 64),
    ],
)
def test_how_long_a_text_a_model_was_trained_for(changes, limit):
    assert trained_length(family_and_config(config_of("llama", **changes), "test")[1]) == limit


def said(act) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        act()
    return [str(warning.message) for warning in caught]


def test_a_text_past_the_trained_length_is_said_once(folder):
    model, ids = load_model(str(folder)), torch.full((2, 70), 5)
    assert said(lambda: model(ids[:, :64])) == []
    texts = said(lambda: model(ids))
    assert len(texts) == 1
    assert "70 tokens" in texts[0]
    assert "64" in texts[0]
    assert "\n" not in texts[0]
    assert said(lambda: model(ids)) == []
    assert len(said(lambda: load_model(str(folder))(ids))) == 1  # another model


def test_generation_past_the_trained_length_says_so_once(folder):
    ids = torch.full((2, 60), 5)
    assert said(lambda: generate(load_model(str(folder)), ids, max_new_tokens=5)) == []
    for beams in (1, 2):
        texts = said(
            lambda beams=beams: generate(
                load_model(str(folder)), ids, max_new_tokens=9, beams=beams
            )
        )
        assert len(texts) == 1
        assert "65 tokens" in texts[0]


def test_pads_do_not_count_and_virtual_tokens_do(folder):
    model, ids = load_model(str(folder)), torch.full((2, 70), 5)
    mask = torch.ones_like(ids)
    mask[:, :8] = 0
    assert said(lambda: model(ids, mask)) == []
    attach(model, "prefix", length=4)
    assert "66 tokens" in said(lambda: model(ids, mask))[0]


def test_positions_that_are_given_count(folder):
    model, ids = load_model(str(folder)), torch.full((1, 3), 5)
    assert said(lambda: model(ids, positions=torch.tensor([[61, 62, 63]]))) == []
    assert "65 tokens" in said(lambda: model(ids, positions=torch.tensor([[62, 63, 64]])))[0]


def test_training_and_likelihoods_say_it_too(folder):
    row = replace(examples(1)[0], ids=[5] * 66, weights=[1.0] * 66)
    for act in (
        lambda model: summed_loss(model, *collate([row], 0, "cpu")),
        lambda model: log_likelihoods(model, [([5] * 60, [6] * 7)]),
    ):
        assert len(said(lambda act=act: act(load_model(str(folder))))) == 1


def test_shorter_texts_are_not_looked_at(folder, monkeypatch):
    """A maximum of positions would make a GPU wait in every step."""
    looks, true = [], Tokens.query_positions
    monkeypatch.setattr(Tokens, "query_positions", lambda *args: looks.append(1) or true(*args))
    model, ids = load_model(str(folder)), torch.full((2, 9), 5)
    mask = torch.ones_like(ids)
    mask[0, 0] = 0
    model(ids, mask)
    assert len(looks) == 1  # for the angles


@pytest.mark.parametrize("family", ["bloom", "opt", "gptj"])
def test_other_families_do_as_before(tmp_path, family):
    model = load_model(str(write_checkpoint(tmp_path, family)))
    assert said(lambda: model(torch.full((1, 64), 5))) == []
    if family == "bloom":
        assert said(lambda: model(torch.full((1, 99), 5))) == []

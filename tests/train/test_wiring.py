"""Wiring that the tests of single rooms do not see: what is stored, restored, drawn."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from training_runs import S, run

from adapters import attach, combine, named_parameters
from eval.answers import is_right, read_answer
from eval.predict import predict
from model import UserError, load_model, load_tokenizer
from model.quantize.int8 import LLMInt8
from model.sites import Linear
from train.checkpoint import State
from train.optim import LossScale, adamw
from train.settings import Train


def test_the_whole_state_is_restored(folder, tmp_path):
    model = load_model(str(folder))
    attach(model, "lora", r=2)
    parameters = named_parameters(model)

    def state(scale):
        return State(model, parameters, adamw(parameters, Train(), {}), scale)

    saved = state(LossScale(4.0, calm=3, dynamic=True, patience=7))
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    saved.optimizer.step()  # a run of nine steps, of which some are taken, has moments
    saved.step, saved.skipped, saved.skipped_in_a_row = 9, 5, 2
    saved.validated(0.5)
    saved.save(tmp_path, {})
    fresh = state(LossScale())
    fresh.load(tmp_path, {}, total=9)
    assert vars(fresh.scale) == {"scale": 4.0, "calm": 3, "dynamic": True, "patience": 7}
    assert (fresh.step, fresh.skipped, fresh.skipped_in_a_row) == (9, 5, 2)
    assert fresh.validation == {"best_step": 9, "best_loss": 0.5}


def test_the_loss_scale_stays_at_least_one():
    scale = LossScale(2.0, dynamic=True)
    for _ in range(3):
        scale.update(False)
    assert scale.scale == 1.0


def test_every_pipeline_stage_draws_its_own_dropout(folder, tmp_path, monkeypatch):
    """The seed in force at each layer: one for each micro-batch and stage, whatever the step."""
    model = load_model(str(folder), devices=["cpu", "cpu"], layers_per_device=[2, 1])
    attach(model, "lora", r=2, dropout=0.5)
    seeds = []
    for number, block in enumerate(model.blocks):
        block.register_forward_pre_hook(
            lambda *_, number=number: seeds.append((number, torch.initial_seed()))
        )
    run(model, tmp_path, replace(S, max_steps=2))
    by_layer = [[seed for number, seed in seeds if number == layer] for layer in range(3)]
    assert by_layer[0] == by_layer[1]  # one stage
    assert len(set(by_layer[0]) | set(by_layer[2])) == 2 * 2 * 3  # stages, steps, micro-batches


ANSWERS = {
    "max_new_tokens": 3,
    "beams": 2,
    "temperature": 2.0,
    "top_k": 3,
    "top_p": 0.5,
    "scoring": "likelihood",
}


@pytest.mark.parametrize("key", ANSWERS)
def test_a_journal_is_of_one_way_to_answer(tmp_path, key):
    model, tokenizer = load_model("pocket-llama"), load_tokenizer("pocket-llama")
    row = {"instruction": "Is it? Answer format: yes/no", "input": "", "answer": "yes"}
    one = {"max_new_tokens": 2} | ({"temperature": 1.0} if key.startswith("top") else {})
    for how in (one, one):
        first = predict(
            model, tokenizer, {"boolq": [row]}, template="alpaca", journal=tmp_path / "part", **how
        )
    assert len(first) == 1
    with pytest.raises(UserError, match="remove it"):
        predict(
            model, tokenizer, {"boolq": [row]}, template="alpaca", journal=tmp_path / "part",
            **one | {key: ANSWERS[key]},
        )  # fmt: skip


@pytest.mark.parametrize(("far", "right"), [(0.0009, True), (0.0012, False), (0.02, False)])
def test_numbers_are_right_within_a_thousandth(far, right):
    assert is_right(5 + far, "5") is is_right(5 - far, "5") is right


@pytest.mark.parametrize("set_name", ["social_i_qa", "openbookqa"])
def test_the_papers_reader_looks_for_five_labels_in_smaller_sets(set_name):
    assert read_answer("it is answer5 or answer1", set_name, "paper") == "answer5"
    assert read_answer("the correct answer is answer5", set_name) is None


@pytest.mark.parametrize("value", [5.9, 6.1, 20.0])
def test_llm_int8_keeps_what_lies_from_six_on(value):
    """An entry from 6 on is multiplied apart, and the others are rounded as if it were 0."""
    torch.manual_seed(0)
    plain = Linear(16, 8)
    plain.weight.data.normal_()
    layer = LLMInt8(plain)
    layer.store(plain.weight.data)
    x = 0.1 * torch.randn(1, 16)
    x[0, 3] = value
    near = x if value < 6 else x.index_fill(1, torch.tensor([3]), 0)
    step = near.abs().max() / 127
    rounded = (near / step).round() * step + (x - near)
    expected = F.linear(rounded, layer.codes.float() * layer.scale[:, None])
    torch.testing.assert_close(layer.multiply(x), expected, rtol=1e-5, atol=1e-5)


def test_a_learned_scale_is_summed_from_one(folder):
    """start + sum of weight x (scale - start), where 1 is what changes nothing."""
    model = load_model(str(folder))
    for name, scale in (("a", 3.0), ("b", 0.5)):
        attach(model, "learned-parallel", name=name, size=2)
        for path, one in model.named_parameters():
            if path.endswith(f"{name}.adapter_scaling"):
                one.data.fill_(scale)
    combine(model, {"a": 0.5, "b": 0.25}, "both", how="weights")
    found = {
        one.item()
        for path, one in model.named_parameters()
        if path.endswith("both.adapter_scaling")
    }
    assert found == {1 + 0.5 * 2.0 - 0.25 * 0.5}


def test_adamw_takes_torchs_steps_and_state():
    """To the bit, also from a state that torch's has saved."""
    ours, theirs = ([torch.nn.Parameter(torch.randn(5, 3)) for _ in "ab"] for _ in "ab")
    for parameter, other in zip(ours, theirs, strict=True):
        other.data.copy_(parameter.data)
    s = Train(learning_rate=0.1, weight_decay=0.2)
    mine = adamw(dict(zip("ab", ours, strict=True)), s, {"b": 16.0})
    groups = [{"params": [parameter]} for parameter in theirs]
    reference = torch.optim.AdamW(groups, lr=0.1, betas=s.betas, weight_decay=0.2, fused=True)
    for step in range(4):
        for parameter, other in zip(ours, theirs, strict=True):
            parameter.grad, other.grad = (torch.full((5, 3), step - 1.3) for _ in "ab")
        mine.step()
        reference.step()
        assert all(map(torch.equal, ours, theirs))
        if step == 1:
            mine.load_state_dict(deepcopy(reference.state_dict()))
    mine.zero_grad()
    assert ours[0].grad is None

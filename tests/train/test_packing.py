"""Micro-batches by tokens, and packed rows: no row looks at another, and nothing else changes."""

from dataclasses import replace

import pytest
import torch
from conftest import write_checkpoint
from families import MISTRAL
from methods import IN_TURN, attach_small, randomise
from training_runs import S, examples, run, state

from adapters import parameters
from data.batches import Example, batch_of, micro_batches
from model import load_model
from model.devices import split
from train.loss import summed_loss
from train.measure import mean_loss
from train.pipeline import accumulate

CPU = torch.device("cpu")
DYNAMIC = {"rope_scaling": {"type": "dynamic", "factor": 3.0}, "max_position_embeddings": 6}


def model_with(folder, method: str):
    torch.manual_seed(0)
    model = load_model(str(folder)).eval()  # no dropout, whose draws follow the shape
    attach_small(model, method)
    randomise(model)
    return model.eval()


def gradients(model) -> list[torch.Tensor]:
    found = [parameter.grad.clone() for parameter in parameters(model)]
    model.zero_grad()
    return found


def one_by_one(model, rows: list[Example]) -> tuple[float, list[torch.Tensor]]:
    """The reference: each row alone in the model, so without a pad."""
    singles = ((torch.tensor([row.ids]), torch.tensor([row.weights])) for row in rows)
    total = sum(summed_loss(model, *single) for single in singles)
    total.backward()
    return total.item(), gradients(model)


def packed(model, rows: list[Example], size: int = 9) -> tuple[float, list[torch.Tensor]]:
    batches = dict(enumerate(micro_batches(rows, size)))
    losses, _ = accumulate(model, batches, 1.0, 0, packing=True)
    return sum(losses).item(), gradients(model)


def assert_same(found, expected, share: float = 2e-5) -> None:
    """The same loss; gradients that differ by this share of the largest one at most."""
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    largest = max(gradient.abs().max() for gradient in expected[1])
    assert largest > 0
    for ours, theirs in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=share * largest)


@pytest.mark.parametrize(("any_family", "method"), IN_TURN)
def test_packed_rows_have_the_loss_and_gradients_of_single_rows(any_folder, method):
    model, rows = model_with(any_folder, method), examples(5)
    # the softmax of a fusion magnifies rounding: batches by the plain attention differ by 2e-5
    share = 1e-4 if method == "fusion" else 2e-5
    assert_same(packed(model, rows), one_by_one(model, rows), share)


@pytest.mark.parametrize("method", ["lora", "prefix", "prompt"])
@pytest.mark.parametrize("config", [MISTRAL, DYNAMIC], ids=["window", "dynamic rope"])
def test_windows_and_angles_are_those_of_a_row(tmp_path, config, method):
    model = model_with(write_checkpoint(tmp_path / "tiny", **config), method)
    assert_same(packed(model, examples(5)), one_by_one(model, examples(5)))


@pytest.mark.parametrize(
    ("any_family", "method", "checkpointing"),
    [
        *(("llama", method, every) for method in ("parallel", "prompt") for every in (0, 2)),
        *((family, "prompt", 2) for family in ("bloom", "opt", "gptj")),
    ],
)
def test_stages_and_recomputation_take_packed_rows(any_folder, method, checkpointing):
    model = model_with(any_folder, method)
    expected = one_by_one(model, examples(9))
    halves = model_with(any_folder, method)
    halves.checkpointing = checkpointing
    split(halves, [CPU, CPU], [1, 2])
    assert_same(packed(halves, examples(9), 4), expected)


def test_pads_are_computed_in_attention_only(any_folder):
    """Linears get as many tokens as the rows have, up to a round number; attention gets rows."""
    model, rows, seen = model_with(any_folder, "lora"), examples(6), set()
    site = model.blocks[1].get_submodule(model.sites["up"])
    site.register_forward_hook(lambda site, args, y: seen.add(y.shape[:2]))
    packed(model, rows)
    assert seen == {(1, -(-sum(map(len, rows)) // 2) * 2)}
    assert mean_loss(model, rows, 6, 0) == pytest.approx(
        mean_loss(model, rows, 6, 0, packing=True), rel=1e-6
    )
    assert len(seen) == 2  # without packing, rows with pads


def test_few_numbers_of_tokens_occur():
    """Pads and tokens without a label make the numbers round; none is in twice, or has a weight."""
    numbers = set()
    for rows in map(examples, range(60, 90, 5)):
        labels = batch_of(rows, 0, "cpu", packing=True).labels
        index, kept = labels.packing.index, labels.packing.kept
        assert len(set(index.tolist())) == len(index) <= 17 / 16 * sum(map(len, rows))
        assert len(set(kept.tolist())) == len(kept) == len(labels.targets)
        assert labels.weights.sum() == sum(sum(row.weights[1:]) for row in rows)
        numbers |= {len(index), len(kept)}
    assert all(number % 16 == 0 for number in numbers)


def test_full_rows_are_not_packed():
    rows = [Example([3, 4, 5], [0.0, 1.0, 1.0])] * 2
    assert batch_of(rows, 0, "cpu", packing=True).labels.packing is None


def test_micro_batches_hold_at_most_so_many_tokens():
    rows = [Example([3] * n, [1.0] * n) for n in (9, 2, 5, 3, 3, 2, 20, 4)]

    def sizes(**how) -> list[list[int]]:
        return [[len(row) for row in batch] for batch in micro_batches(rows, 99, **how)]

    assert sizes() == [[20, 9, 5, 4, 3, 3, 2, 2]]
    assert sizes(tokens=12) == [[20], [9], [5, 4], [3, 3, 2, 2]]  # pads included
    assert sizes(tokens=12, packing=True) == [[20], [9], [5, 4, 3], [3, 2, 2]]
    assert sizes(tokens=1) == [[20], [9], [5], [4], [3], [3], [2], [2]]


@pytest.mark.parametrize("packing", [False, True])
def test_training_by_tokens_is_training_by_rows(folder, tmp_path, packing):
    """The same rows in each step, so the same losses and norms."""
    rows = model_with(folder, "parallel")
    tokens = model_with(folder, "parallel")
    _, expected = run(rows, tmp_path, replace(S, packing=False))
    _, found = run(tokens, tmp_path, replace(S, packing=packing, tokens_per_batch=25))
    for key in ("loss", "gradient_norm"):
        theirs = [entry[key] for entry in expected]
        assert [entry[key] for entry in found] == pytest.approx(theirs, rel=2e-3)
    for ours, theirs in zip(state(tokens), state(rows), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=2e-4)

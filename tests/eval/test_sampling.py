"""Drawn tokens: the distribution, the seed of a row, and what ends it."""

import itertools

import pytest
import torch

from eval.generate import Sampling, generate, left_pad
from eval.sampling import draw

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13, 14], [15], [16, 17, 18, 19], [20, 21]]
FILTERS = [
    (1.0, 0, 1.0),
    (0.7, 0, 1.0),
    (1.0, 5, 1.0),
    (1.0, 0, 0.8),
    (1.3, 12, 0.6),
    (1.0, 100, 1e-9),
    (2.0, 1, 1.0),
    (1.0, 0, 0.5),
    (0.5, 3, 0.999),
]


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), FILTERS)
def test_the_distribution_to_draw_from_is_that_of_transformers(temperature, top_k, top_p):
    transformers = pytest.importorskip("transformers")
    logits = 3 * torch.randn(7, 61, generator=torch.Generator().manual_seed(0))
    logits[0, :30] = logits[0, 30]  # equals
    logits[1] = torch.tensor(
        [0.0] * 4 + [float("-inf")] * 57
    )  # a share of 0.5 ends between two of them
    expected = (
        transformers.TemperatureLogitsWarper(temperature)(None, logits)
        if temperature != 1
        else logits
    )
    expected = transformers.TopKLogitsWarper(top_k)(None, expected) if top_k else expected
    expected = transformers.TopPLogitsWarper(top_p)(None, expected) if top_p < 1 else expected
    assert torch.equal(Sampling(temperature, top_k, top_p).filter(logits), expected)


def test_tokens_are_drawn_as_often_as_they_are_likely():
    chances = torch.tensor([0.5, 0.3, 0.15, 0.05, 0.0])
    kept = Sampling(top_p=0.9).filter(chances.log()[None]).repeat(4000, 1)  # without the fourth
    drawn = draw(kept, [torch.Generator().manual_seed(seed) for seed in range(4000)])
    shares = torch.bincount(drawn, minlength=5) / 4000
    assert shares[3:].tolist() == [0, 0]
    assert (shares[:3] - chances[:3] / 0.95).abs().max() < 0.03  # four standard deviations


def test_a_sampled_row_depends_on_its_seed_and_nothing_else(any_tiny):
    how, seeds = Sampling(temperature=1.5, top_k=20, top_p=0.95), [11, 12, 13, 14, 15]
    free = [
        generate(any_tiny, torch.tensor([row]), sampling=how, seeds=[seed])[0]
        for row, seed in zip(PROMPTS, seeds, strict=True)
    ]
    stop = [free[0][2], free[1][5]]
    alone = [
        generate(any_tiny, torch.tensor([row]), stop_ids=stop, sampling=how, seeds=[seed])[0]
        for row, seed in zip(PROMPTS, seeds, strict=True)
    ]
    assert len({len(row) for row in alone}) > 1
    for order in itertools.islice(itertools.permutations(range(5)), 0, 120, 29):
        rows = left_pad([PROMPTS[i] for i in order], 0, "cpu")
        assert generate(
            any_tiny, *rows, stop_ids=stop, sampling=how, seeds=[seeds[i] for i in order]
        ) == [alone[i] for i in order]
    many = generate(any_tiny, torch.tensor(PROMPTS[:1] * 6), sampling=how, seeds=[1, 2, 3, 1, 2, 3])
    assert many[:3] == many[3:]
    assert len(set(map(tuple, many))) == 3


def test_temperature_near_0_and_top_k_1_are_greedy(tiny):
    rows = left_pad(PROMPTS, 0, "cpu")
    for how in (Sampling(temperature=1e-4), Sampling(top_k=1), Sampling(top_p=1e-9)):
        assert generate(tiny, *rows, sampling=how, seeds=range(5)) == generate(tiny, *rows)


def test_a_row_ends_when_its_own_condition_is_met(tiny):
    """Each row's new tokens, the one that ended it too; the others go on as they would."""
    free = generate(tiny, *left_pad(PROMPTS, 0, "cpu"), max_new_tokens=9)
    ends = {tuple(free[0][:3]), tuple(free[2][:5]), tuple(free[4][:1])}
    asked, streamed = [], []

    def stop(new: list[int]) -> bool:
        asked.append(tuple(new))
        return tuple(new) in ends

    found = generate(
        tiny, *left_pad(PROMPTS, 0, "cpu"), max_new_tokens=9, stop=stop, stream=streamed.append
    )
    lengths = [3, 9, 5, 9, 1]
    assert found == [row[:length] for row, length in zip(free, lengths, strict=True)]
    assert sorted(asked) == sorted(
        tuple(row[:n])
        for row, length in zip(free, lengths, strict=True)
        for n in range(1, length + 1)
    )
    assert sum(map(len, streamed)) == sum(lengths)

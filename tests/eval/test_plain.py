"""The engine's answers are those of the plain form, which reads the whole text for every token."""

import torch

from adapters import attach
from eval.engine import Engine, Request
from eval.plain import continue_row
from eval.sampling import Sampling

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13, 14], [5, 6, 20, 21], [16]]
WAYS = [{}, {"sampling": Sampling(temperature=2.0, top_k=20)}, {"beams": 3}]


def test_the_engine_gives_the_tokens_of_the_plain_form(any_tiny):
    """Greedy, drawn and by beams, with stop tokens that are met, under an adapter."""
    torch.manual_seed(0)
    attach(any_tiny, "parallel", size=4, init="bert")
    free = [
        continue_row(any_tiny, Request(ids, 8, seed=i, **way), 55)
        for way in WAYS
        for i, ids in enumerate(PROMPTS)
    ]
    stop = {free[0][3], free[5][2], free[9][4]}
    requests = [
        Request(ids, 8, stop, seed=i, entry=i, **way)
        for way in WAYS
        for i, ids in enumerate(PROMPTS)
    ]
    expected = [continue_row(any_tiny, request, 55) for request in requests]
    assert any(row != whole for row, whole in zip(expected, free, strict=True))
    found: list[list[int]] = [[] for _ in requests]
    for event in Engine(any_tiny, 7, 20, 55).run(requests):
        found[event.number] += event.tokens
    assert found == expected

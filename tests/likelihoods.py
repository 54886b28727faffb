"""Likelihoods computed from the logits of one full pass."""

import pytest
import torch

PAIRS = [
    ([5, 6, 7], [8, 9]),
    ([10], [11]),
    ([12, 13, 14, 15, 16, 17, 18], [19]),
    ([20, 21], [22, 23, 24, 25, 26, 27, 28, 29]),
    ([5, 6, 7], [40, 41, 42]),
]


def directly(logits_of, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """By a pass over the one text and log_softmax of all its logits."""
    with torch.no_grad():
        logits = logits_of(torch.tensor([context + continuation]))[
            0, len(context) - 1 : -1
        ].double()
    chosen = torch.tensor(continuation)
    return logits.log_softmax(-1).gather(-1, chosen[:, None]).sum().item(), bool(
        (logits.argmax(-1) == chosen).all()
    )


def assert_same(found, expected):
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert [logs for logs, _ in found] == pytest.approx(
        [logs for logs, _ in expected], abs=1e-4, rel=0
    )

"""The optimizer beside torch's own."""

import torch
from torch import nn

from train.optim import AdamW


def pair() -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The same parameters twice: one lies row by row, one column by column."""
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(5, 3, generator=generator), torch.randn(3, 5, generator=generator).T]
    assert values[1].stride() == (1, 5)
    copies = [torch.empty_like(value).copy_(value) for value in values]
    return [nn.Parameter(v) for v in values], [nn.Parameter(c) for c in copies]


def steps(optimizer, parameters: list[nn.Parameter], count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        for parameter in parameters:  # row by row, as an all-reduce leaves them
            parameter.grad = torch.randn(5, 3, generator=generator)
        optimizer.step()


def test_strides_do_not_matter_nor_does_a_restart():
    ours, theirs = pair()
    common = {"lr": 0.1, "betas": (0.9, 0.99), "weight_decay": 0.1}
    reference = torch.optim.AdamW(theirs, fused=False, foreach=False, **common)
    optimizer = AdamW([{"params": ours}], **common)
    steps(optimizer, ours, 3, 1)
    steps(reference, theirs, 3, 1)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    state = optimizer.state_dict()
    for moments in state["state"].values():  # as a file may hold them
        moments |= {key: moments[key].contiguous() for key in ("exp_avg", "exp_avg_sq")}
    again = AdamW([{"params": ours}], **common)
    again.load_state_dict(state)
    steps(again, ours, 3, 2)
    steps(reference, theirs, 3, 2)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)

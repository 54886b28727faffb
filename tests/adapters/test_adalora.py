"""AdaLoRA: its formula, its budget and its sensitivities."""

import pytest
import torch
from methods import IDS, randomise
from torch.utils._python_dispatch import TorchDispatchMode

from adapters import attach, parameters, remove
from adapters.attach import adapters_named
from adapters.config import resolve
from adapters.in_use import after_step, penalty
from adapters.methods.adalora import AdaLoRA


@pytest.fixture
def q(tiny):
    return tiny.blocks[0].self_attn.q_proj


X = torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(5))


def test_adalora(tiny, q):
    attach(tiny, "adalora", init_r=4, target_r=2, alpha=6, orthogonality=0.3, sites=["q", "v"])
    randomise(tiny)
    adapter = q.adapters["default"]
    scale = 6 / (4 + 1e-5)
    torch.testing.assert_close(
        q(X),
        X
        @ (q.weight + scale * adapter.lora_B @ torch.diag(adapter.lora_E[:, 0]) @ adapter.lora_A).T,
    )
    one = torch.eye(4)
    sums = [
        (A @ A.T - one).norm() + (B.T @ B - one).norm()
        for A, B in ((a.lora_A, a.lora_B) for a in adapters_named(tiny, "default").values())
    ]
    torch.testing.assert_close(penalty(tiny), 0.3 * sum(sums) / len(sums))


def test_adalora_cuts_to_its_budget_what_matters_least(tiny):
    attach(tiny, "adalora", init_r=4, target_r=2, sites=["q", "v"], warmup=0.1, final=0.3, every=5)
    adapters = list(adapters_named(tiny, "default").values())
    optimizer = torch.optim.AdamW(parameters(tiny), lr=1e-2)
    kept = []
    for step in range(1, 51):
        (tiny(IDS).square().mean()).backward()
        if step < 35:
            for adapter in adapters:
                adapter.lora_E.grad[1] *= 1e-4  # this triplet hardly matters anywhere
                adapter.lora_A.grad[1] *= 1e-4
                adapter.lora_B.grad[:, 1] *= 1e-4
        optimizer.step()
        after_step(tiny, step, 50)
        optimizer.zero_grad()
        kept.append(sum(int(adapter.kept.sum()) for adapter in adapters))
    assert kept[:5] == [24] * 5  # before the warm-up ends all are there
    assert kept == sorted(kept, reverse=True)
    assert kept[34:] == [12] * 16  # six sites of two on average, from step 35 on
    assert all(not adapter.kept[1] for adapter in adapters)
    assert all((adapter.lora_E[~adapter.kept] == 0).all() for adapter in adapters)
    assert (
        len({int(adapter.kept.sum()) for adapter in adapters}) > 1
    )  # not the same rank everywhere


@pytest.mark.parametrize("total", [1, 2, 3, 7])
def test_adalora_comes_to_its_budget_in_short_runs_and_by_part(tiny, total):
    table = {
        "x": {"preset": "adalora", "sites": ["q"], "init_r": 4, "target_r": 2},
        "y": {"preset": "adalora", "sites": ["v"], "init_r": 6, "target_r": 5},
    }
    attach(tiny, resolve(**table))
    for step in range(1, total + 1):
        tiny(IDS).square().mean().backward()
        after_step(tiny, step, total)
    left = {
        part: sum(
            int(one.kept.sum())
            for one in adapters_named(tiny, "default").values()
            if one.part == part
        )
        for part in table
    }
    assert left == {"x": 3 * 2, "y": 3 * 5}


class Counted(TorchDispatchMode):
    """Counts the operations within its block."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.count += 1
        return op(*args, **(kwargs or {}))


def test_adalora_launches_as_much_for_many_sites_as_for_few(tiny):
    """A GPU waits for launches: 672 tensors one by one took 4,032 of them to be observed."""
    counts = []
    for sites in (["q"], ["q", "o"]):
        attach(tiny, "adalora", "a", init_r=4, target_r=2, sites=sites)
        tiny(IDS).square().mean().backward()
        with Counted() as counted:
            AdaLoRA.observe(list(adapters_named(tiny, "a").values()))
        counts.append(counted.count)
        remove(tiny, "a")
    assert counts[0] == counts[1] < 20


def test_adalora_sensitivity_is_smoothed(tiny):
    attach(tiny, "adalora", init_r=2, target_r=1, sites=["q"], layers=[0], beta1=0.8, beta2=0.6)
    adapter = next(iter(adapters_named(tiny, "default").values()))
    mean = spread = torch.zeros(2, 1)
    for factor in (1.0, -3.0, 2.0):
        adapter.lora_E.data.fill_(0.5)
        adapter.lora_E.grad = torch.tensor([[factor], [2 * factor]])
        adapter.lora_A.grad = adapter.lora_B.grad = None
        adapter.observe([adapter])
        now = (0.5 * adapter.lora_E.grad).abs()
        mean = 0.8 * mean + 0.2 * now
        spread = 0.6 * spread + 0.4 * (now - mean).abs()
    torch.testing.assert_close(adapter.importance([adapter])[0], (mean * spread)[:, 0])

"""The pipeline over devices: what stages keep, compute and hand on, in which order."""

import pytest
import torch
from methods import IDS
from training_runs import examples

from adapters import attach
from data.batches import micro_batches
from model.devices import split
from train import pipeline
from train.pipeline import Work, accumulate, orders, replay, utilisation

CPU = torch.device("cpu")


# ---------------------------------------------------------------- what is kept and what is left out
def test_stages_below_the_lowest_adapter_keep_nothing_and_have_no_way_back(any_tiny, monkeypatch):
    attach(any_tiny, "series", size=4, layers=[2])
    split(any_tiny, [CPU, CPU, CPU], [1, 1, 1])
    kept = {}
    true_run = any_tiny.run

    def watched(block, x, step):  # a stage has one block
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: kept.setdefault(block.layer, []).append(t) or t, lambda t: t
        ):
            return true_run(block, x, step)

    monkeypatch.setattr(any_tiny, "run", watched)
    accumulate(any_tiny, dict(enumerate(micro_batches(examples(4), 2))), 1.0, 0)
    assert set(kept) == {2}


@pytest.mark.parametrize("every", [0, 1, 2])
def test_what_lies_below_the_lowest_adapter_is_neither_kept_nor_computed_again(any_tiny, every):
    attach(any_tiny, "series", size=4, layers=[2])
    any_tiny.checkpointing = every
    calls = [0, 0, 0]
    for number, block in enumerate(any_tiny.blocks):
        block.register_forward_pre_hook(
            lambda *_, number=number: calls.__setitem__(number, calls[number] + 1)
        )
    any_tiny(IDS).sum().backward()
    assert calls == [1, 1, 2 if every else 1]
    if not every:
        kept = []
        any_tiny.blocks[2].register_forward_pre_hook(lambda *_: before.append(len(kept)))
        before: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            any_tiny(IDS)
        assert before == [0]
        assert kept


def test_a_stage_keeps_no_more_micro_batches_than_stages_follow(any_tiny, monkeypatch):
    attach(any_tiny, "series", size=4)
    split(any_tiny, [CPU, CPU, CPU], [1, 1, 1])
    kept, most = {}, {}
    true_run = any_tiny.run

    def watched(block, x, step):
        first = block.layer  # a stage has one block
        kept[first] = kept.get(first, 0) + 1
        most[first] = max(most.get(first, 0), kept[first])
        y = true_run(block, x, step)
        y.register_hook(lambda g: kept.__setitem__(first, kept[first] - 1))
        return y

    monkeypatch.setattr(any_tiny, "run", watched)
    accumulate(any_tiny, dict(enumerate(micro_batches(examples(12), 2))), 1.0, 0)
    assert most == {0: 3, 1: 2, 2: 1}


# ---------------------------------------------------------------- the schedule
@pytest.mark.parametrize("stages", [1, 2, 3, 4])
@pytest.mark.parametrize("batches", [1, 2, 4, 8])
def test_equal_stages_work_m_of_m_plus_s_minus_1(stages, batches):
    work = orders(stages, batches)
    assert [len(order) for order in work] == [2 * batches] * stages
    assert utilisation(work, lambda one: 1.0 if one.way == "F" else 2.0) == pytest.approx(
        batches / (batches + stages - 1)
    )


def test_the_schedule_is_the_one_drawn():
    work = orders(2, 4)
    times = replay(work, lambda one: 1.0 if one.way == "F" else 2.0)
    lines = []
    for order in work:
        line = [".."] * 15
        for one in order:
            for slot in range(int(times[one][0]), int(times[one][1])):
                line[slot] = f"{one.way}{one.batch}"
        lines.append(" ".join(line).replace("..", "  ").rstrip())
    drawn = [
        line.split("    cuda:")[1][4:]
        for line in pipeline.__doc__.splitlines()
        if line.startswith("    cuda:")
    ]
    assert lines == drawn


def test_work_is_handed_out_behind_what_it_needs():
    work = orders(3, 5)
    times = replay(work, lambda one: 1.0 + 0.3 * one.stage)
    for one, (start, _) in times.items():
        needed = one.needs(3)
        assert needed is None or times[needed][1] <= start
    assert Work(0, 0, "B").needs(3) == Work(1, 0, "B")

"""--find-rate: short runs that do not know of each other, on held-out training rows."""

import json
from dataclasses import replace
from math import inf

import pytest

from experiments import find_rate as module
from experiments.find_rate import find_rate, rate_lines
from files.errors import UserError
from train.loop import NotFinite
from train.settings import settings


@pytest.fixture
def short(tmp_path):
    data = tmp_path / "sums.json"
    rows = [{"instruction": f"{n} + 4?", "output": f"It is {n + 4}."} for n in range(40)]
    data.write_text(json.dumps(rows))
    options = {"model": "pocket-llama", "data": str(data), "test_share": 0.0}
    options |= {"adapter": {"preset": "adalora", "every": 1, "warmup": 0.0, "final": 0.0}}
    s = settings(options=options)
    return replace(s, train=replace(s.train, max_steps=3, batch_size=4, micro_batch_size=4))


def test_a_trial_does_not_depend_on_those_before_it(short, monkeypatch):
    calls, train = [], module.train

    def watched(model, parameters, examples, s, **more):
        calls.append((s, examples, more["held_out"]))
        return train(model, parameters, examples, s, **more)

    monkeypatch.setattr(module, "train", watched)
    found, several = find_rate(short, factors=(0.1, 1.0, 10.0))
    together = {trial.rate: trial.loss for trial in several}
    assert {0.001, 0.01, 0.1} <= together.keys()
    best = min(together, key=together.get)
    assert found.train.learning_rate == best
    assert replace(found.train, learning_rate=0.01) == short.train
    _, alone = find_rate(short, factors=(1.0,))
    assert together[0.01] == next(trial.loss for trial in alone if trial.rate == 0.01)
    for s, examples, held_out in calls:
        assert s.max_steps == 3
        assert not {tuple(row.ids) for row in examples} & {tuple(row.ids) for row in held_out}
        assert len(held_out) == (len(examples) + len(held_out)) // 5
    marked = [line for line in rate_lines(found, several) if "taken" in line]
    assert len(marked) == 1
    assert float(marked[0].split()[0]) == best


@pytest.mark.parametrize(
    ("loss", "tried", "taken"),
    [
        (lambda rate: abs(rate - 0.01), [0.001, 0.003, 0.01, 0.03, 0.1], 0.01),
        (lambda rate: -rate, [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.9, 2.7], 2.7),
        (lambda rate: abs(rate - 0.00033), [0.00011, 0.00033, 0.001, 0.003, 0.01, 0.03, 0.1],
         0.00033),
        (lambda rate: rate if rate > 0.02 else inf, [0.001, 0.003, 0.01, 0.03, 0.1], 0.03),
    ],
)  # fmt: skip
def test_the_rates_go_on_where_the_best_is_at_an_end(short, monkeypatch, loss, tried, taken):
    monkeypatch.setattr(module, "final_loss", lambda job, rate, *rest: loss(rate))
    found, trials = find_rate(short)
    assert [trial.rate for trial in trials] == tried
    assert found.train.learning_rate == taken


def test_few_held_out_rows_are_said(short, monkeypatch):
    monkeypatch.setattr(module, "final_loss", lambda job, rate, *rest: (rate - 0.01) ** 2)
    with pytest.warns(UserWarning, match="on 8 held-out rows, of 40: its choice is little better"):
        find_rate(short)


def test_no_rate_is_taken_where_none_stays_finite(short, monkeypatch):
    def diverge(*arguments, **more):
        raise NotFinite("the gradient was not finite")

    monkeypatch.setattr(module, "train", diverge)
    with pytest.raises(UserError, match=r"no rate of 0\.001 to 0\.1 gives a finite loss"):
        find_rate(short)

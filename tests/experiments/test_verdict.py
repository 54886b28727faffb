"""When a run went wrong, from its figures."""

import random

import pytest

from eval.score import Score
from experiments.verdict import fell_clearly, rise_of, verdict


def log_of(losses, skipped=()) -> list[dict]:
    return [
        {"step": step, "loss": loss, "skipped": step in skipped}
        for step, loss in enumerate(losses, 1)
    ]


def noisy(count: int, begin: float, end: float, noise: float = 0.1, seed: int = 0) -> list[float]:
    rng = random.Random(seed)
    return [
        begin + (end - begin) * n / max(1, count - 1) + rng.gauss(0, noise) for n in range(count)
    ]


# ---------------------------------------------------------------- the loss
@pytest.mark.parametrize(
    "losses",
    [
        [],
        [2.0],
        [1.0, 1.9],
        [0.01, 0.5, 0.9],
        [3.0, 2.0, 1.0],
        noisy(10, 2.0, 1.0),
        noisy(60, 2.0, 0.3),
        noisy(40, 1.0, 1.02),
        [0.003] * 20 + [0.009] * 20,  # a rise of nothing
        [2.0] * 8 + [9.0] * 3 + [1.5] * 20,  # a peak between
    ],
    ids=str,
)
def test_a_loss_that_fell_or_wavered_did_not_rise(losses):
    assert rise_of(losses) == ""


def test_a_flat_loss_hardly_ever_rises():
    runs = [
        noisy(count, 1.0, 1.0, 0.15, seed) for count in (10, 14, 20, 60, 300) for seed in range(100)
    ]
    assert sum(bool(rise_of(losses)) for losses in runs) <= 5


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ([1.0, 1.0, 7.0, 7.0], "1.000 in the first step, 7.000 in the last 2"),  # few steps: far up
        ([1.5, 9.0], "1.500 in the first step, 9.000 in the last"),
        (noisy(10, 1.0, 2.0), "in the first 5 steps"),
        (noisy(40, 1.0, 1.5), "in the first 10 steps"),
        (
            [1.0, *[12.0] * 9, *[8.0] * 20],
            "1.000 in the first step, 8.000 in the last 10",
        ),  # spoilt from the second step on
    ],
    ids=str,
)
def test_a_loss_that_rose_is_told_with_its_figures(losses, said):
    assert said in rise_of(losses)
    found = verdict(log_of(losses), len(losses), {}, {})
    assert found.status == 1
    assert found.problems == [
        f"the loss ended above where it began: {rise_of(losses)}; lower train.learning_rate"
    ]


def test_the_step_whose_adapter_is_kept_decides():
    losses = noisy(20, 2.0, 1.0) + noisy(20, 4.0, 6.0)
    kept = verdict(log_of(losses), 20, {}, {})
    assert (kept.status, kept.problems) == (0, [])
    assert "the loss rose after step 20, whose adapter was kept" in kept.notes[0]
    assert verdict(log_of(losses), 40, {}, {}).status == 1


def test_skipped_steps_are_a_note_and_all_of_them_a_problem():
    losses = noisy(12, 2.0, 1.0)
    some = verdict(log_of([None, None, *losses], skipped=(1, 2)), 14, {}, {})
    assert (some.status, some.problems) == (0, [])
    assert some.notes == ["2 of 14 steps were skipped, as their gradients were not finite"]
    whole = verdict(
        log_of(losses, skipped=range(1, 13)), 12, {}, {}
    )  # the loss was a number, its gradient was not
    assert whole.status == 1
    assert "all 12 steps were skipped" in whole.problems[0]
    assert verdict([], 0, {}, {}).status == 0


# ---------------------------------------------------------------- accuracy
def test_accuracy_that_fell_within_chance_is_a_note_and_clearly_a_problem():
    was, near, far, more = (
        Score(60, 100, 100),
        Score(52, 100, 100),
        Score(20, 100, 100),
        Score(90, 100, 100),
    )
    assert not fell_clearly(was, near)
    assert fell_clearly(was, far)
    assert verdict([], 1, {}, {"a": far}).status == 0  # not measured before
    assert verdict([], 1, {"a": was}, {"a": was}).notes == []
    close = verdict([], 1, {"a": was}, {"a": near})
    assert (close.status, close.problems) == (0, [])
    assert close.notes == ["accuracy fell, within what chance can do: a 60.0 to 52.0%"]
    bad = verdict([], 1, {"a": was}, {"a": far})
    assert (bad.status, bad.problems, bad.notes) == (1, ["accuracy fell: a 60.0 to 20.0%"], [])
    some = verdict(
        [], 1, {"a": was, "b": was}, {"a": far, "b": more}
    )  # one was lost, the other won
    assert (some.status, some.problems) == (0, ["accuracy fell: a 60.0 to 20.0%"])
    one = {name: Score(60, 100, 100) for name in "abcdefgh"}
    lost = verdict([], 1, one, one | {"a": far})
    assert (lost.status, lost.problems) == (0, ["accuracy fell: a 60.0 to 20.0%"])
    little = verdict(
        [], 1, one, {name: Score(50, 100, 100) for name in one}
    )  # each within chance, all together not
    assert little.status == 1
    assert little.problems == ["accuracy fell: all together 60.0 to 50.0%"]


def test_small_sets_need_a_large_fall():
    assert verdict([], 1, {"a": Score(4, 4, 4)}, {"a": Score(1, 4, 4)}).status == 0
    assert verdict([], 1, {"a": Score(4, 4, 4)}, {"a": Score(0, 4, 4)}).status == 1

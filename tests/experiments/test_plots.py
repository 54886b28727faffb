"""Plots of a grid: what is drawn, where, and from which runs."""

import re
from dataclasses import replace

import pytest

from eval.score import Score, mean_score
from experiments.entries import Entry
from experiments.plots import HEIGHT, outcome, plots, positions
from experiments.table import write_table


def entry(right, seed=0, adapter="lora", sets=("gsm8k",), **values):
    scores = {name: Score(right, 100) for name in sets}
    values = {name.replace("_", ".", 1): value for name, value in values.items()}
    return Entry("llama-7b", adapter, seed, scores, {}, values=values)


def circles(svg):
    return {
        title: (float(x), float(y))
        for x, y, title in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"[^>]*><title>([^<]+)<', svg)
    }


def test_a_point_for_each_value_with_the_interval_of_its_problems():
    drawn = plots([entry(40, adapter_r=4), entry(60, adapter_r=8), entry(50, adapter_r=16)])
    assert list(drawn) == ["plot-adapter.r.svg"]
    points = circles(drawn["plot-adapter.r.svg"])
    assert list(points) == [
        "lora, r 4: 40.0 [30.6, 49.4]", "lora, r 8: 60.0 [50.6, 69.4]",
        "lora, r 16: 50.0 [40.4, 59.6]",
    ]  # fmt: skip
    (x4, y40), (x8, y60), (x16, y50) = points.values()
    assert 0 < y60 < y50 < y40 < HEIGHT
    assert y50 == pytest.approx((y40 + y60) / 2, abs=0.2)
    assert x4 < x8 < x16


def test_values_from_a_factor_of_eight_on_lie_on_a_logarithmic_scale():
    near, far = positions([1, 2, 4]), positions([1, 4, 16])
    assert near["2"] - near["1"] == pytest.approx((near["4"] - near["2"]) / 2)
    assert far["4"] - far["1"] == pytest.approx(far["16"] - far["4"])
    texts = positions([["q"], ["q", "k"], ["up"]])
    assert texts["q, k"] - texts["q"] == pytest.approx(texts["up"] - texts["q, k"])


def test_seeds_are_answers_to_the_same_problems():
    one, other = entry(40, seed=0), entry(60, seed=1)
    both = outcome([one, other], 4)
    assert (both.mean, both.seeds) == (50.0, [40.0, 60.0])
    low, high = (100 * end for end in Score(50, 100).interval)
    assert (both.low, both.high) == pytest.approx(mean_and_ends(low, high))


def mean_and_ends(low, high):
    return 50 - (high - low) / 2, 50 + (high - low) / 2


def test_an_axis_that_follows_another_has_no_plot_of_its_own():
    runs = [entry(40 + r, adapter_r=r, adapter_alpha=2.0 * r) for r in (4, 8)]
    assert list(plots(runs)) == ["plot-adapter.r.svg"]
    free = [entry(40, adapter_r=r, adapter_alpha=a) for r in (4, 8) for a in (4.0, 8.0)]
    assert list(plots(free)) == [
        "plot-adapter.r.svg", "plot-adapter.alpha.svg", "heat-adapter.r-adapter.alpha-1.svg"
    ]  # fmt: skip


def test_a_heat_map_has_the_outcome_of_both_axes_in_its_field():
    runs = [
        entry(10 * i + j, adapter_r=r, adapter_alpha=a)
        for i, r in enumerate((4, 8), 3)
        for j, a in enumerate((1.0, 2.0, 3.0), 1)
    ]
    svg = plots(runs)["heat-adapter.r-adapter.alpha-1.svg"]
    texts = re.findall(r"<text[^>]*>([^<]*)<", svg)
    cells = [text for text in texts if re.fullmatch(r"\d\d\.\d", text)]
    assert cells == ["31.0", "32.0", "33.0", "41.0", "42.0", "43.0"]
    depths = [float(depth) for depth in re.findall(r'fill-opacity="([\d.]+)"', svg)]
    assert depths == sorted(depths)
    assert depths[0] < depths[-1]


def test_series_are_kept_apart_and_other_test_sets_are_not_averaged():
    runs = [entry(40, adapter=name, adapter_r=r) for name in ("lora", "dora") for r in (4, 8)]
    assert len(circles(plots(runs)["plot-adapter.r.svg"])) == 4
    math, word = entry(40, data="math_10k"), entry(40, sets=("boolq",), data="commonsense_170k")
    assert plots([math, word]) == {}
    assert list(plots([math, replace(math, values={"data": "math_7k"})])) == ["plot-data.svg"]
    assert mean_score(math.strict)[0] == 0.4


def test_losses_are_drawn_where_no_answers_are_measured_and_pages_show_the_plots(tmp_path):
    runs = [
        Entry("llama-7b", "lora", 0, {}, {}, held_out={"before": 2, "after": loss},
              values={"adapter.r": r})
        for r, loss in ((4, 1.5), (8, 1.25))
    ]  # fmt: skip
    write_table(tmp_path, runs, None)
    svg = (tmp_path / "plot-adapter.r.svg").read_text()
    assert "held-out loss" in svg
    assert list(circles(svg)) == ["lora, r 4: 1.500 ", "lora, r 8: 1.250 "]
    assert svg.strip() in (tmp_path / "table.html").read_text()
    assert "![plot-adapter.r](plot-adapter.r.svg)" in (tmp_path / "table.md").read_text()

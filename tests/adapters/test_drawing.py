"""The drawing of a model with its adapters, and the paper's parameter counts."""

import pytest
from methods import attach_small, linear_sites

from adapters import attach, remove
from adapters.show import draw, marked_sites, trained


def test_the_drawing_marks_the_sites(any_tiny):
    attach_small(any_tiny, "mam")
    text = draw(any_tiny)
    assert marked_sites(any_tiny) == {"kv", "mlp"}
    assert "{kv}" in text
    assert "{mlp}" in text
    assert "[o]" in text
    assert "all 3" in text
    attach(
        any_tiny, "lora", name="more", r=2, sites=[linear_sites(any_tiny)[0], "head"], layers=[0, 2]
    )
    assert "outside of the blocks: head" in draw(any_tiny, "more")
    assert "0, 2" in draw(any_tiny, "more")


FORMULAS = {
    "series": "y = f(x) + s · U act(D f(x))",
    "parallel": "y = f(x) + s · U act(D x)",
    "bottleneck-input": "y = f(x + s · U act(D x))",
    "ln-tuning": "γ' · (x - mean) / std + β'",
}


@pytest.mark.parametrize("formula", FORMULAS)
def test_the_drawing_shows_the_formula_of_these_options(tiny, formula):
    if formula == "bottleneck-input":
        attach(tiny, "series", sites=["q"], reads="input", writes="input")
    else:
        attach_small(tiny, formula)
    assert [f for f in FORMULAS if FORMULAS[f] in draw(tiny)] == [formula]


TABLE_1 = ("paper-lora", "paper-series-h", "paper-series-p", "paper-parallel")
FINAL = ("final-lora", "final-series-math", "final-series", "final-parallel", "final-prefix")
# of papers: road 0.04 %, oft 17.65M, loreft 0.031 %, a LoRA of r 16 at every Linear 39,976,960
LATER = ("hira", "miss", "road", "oft", "shira", "loreft", "lora-all")
COUNTS = {  # the Params column of arXiv 2304.01933v1, and what the shares of v3 come from
    ("llama-7b", TABLE_1): (4_194_304, 201_326_592, 201_326_592, 201_326_592),
    ("bloom-7b1", TABLE_1): (3_932_160, 125_829_120, 188_743_680, 125_829_120),
    ("gptj-6b", TABLE_1): (3_670_016, 117_440_512, 176_160_768, 176_160_768),
    ("llama-7b", FINAL): (56_098_816, 134_217_728, 67_108_864, 247_463_936, 2_621_440),
    ("llama-7b", LATER): (
        *(56_098_816, 87_031_808, 2_719_744, 17_649_664, 56_098_816, 2_097_408, 39_976_960),
    ),
    ("llama-13b", FINAL): (87_818_240, 209_715_200, 104_857_600, 387_973_120, 4_096_000),
    ("bloomz-7b1", FINAL): (55_050_240, 62_914_560, 62_914_560, 314_572_800, 2_457_600),
    ("gptj-6b", FINAL): (58_720_256, 58_720_256, 58_720_256, 293_601_280, 2_293_760),
}
SHARES = {  # printed for v3's rows by later papers, percent of base and adapter
    "llama-7b": (0.826, 1.953, 0.986, 3.542, 0.039),
    "llama-13b": (0.670, 1.586, 0.799, 2.894, 0.031),
}


@pytest.mark.parametrize(("name", "presets"), COUNTS)
def test_the_papers_parameter_counts(name, presets):
    """They follow from what its code did, without weights."""
    from model.config import family_and_config, skeleton
    from model.registry import REGISTRY
    from model.show import count

    counts = []
    model = skeleton(*family_and_config(REGISTRY[name].config, "registry"))
    base = count(model)
    for preset in presets:
        attach(model, preset)
        counts.append(trained(model))
        remove(model, "default")
    assert tuple(counts) == COUNTS[name, presets]
    if presets == FINAL and name in SHARES:
        shares = [round(100 * n / (base + n), 3) for n in counts]
        assert tuple(shares) == SHARES[name]

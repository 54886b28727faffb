"""Which published rows a result can be compared with, and what differs from the others."""

import json
from dataclasses import replace

import pytest
from plans import of_layers

from adapters.config import resolve
from cli.main import main
from experiments.comparable import (
    Conditions,
    beside_published,
    compare,
    comparison_lines,
    conditions_of,
)
from experiments.published import published, tables_for
from train.settings import settings


def conditions(adapter, data="math_10k", model="llama-7b", weight=1.0, **changes):
    options = {"model": model, "data": data, "adapter": {"preset": adapter} | changes}
    return conditions_of(settings(None, None, options, [f"train.prompt_weight={weight}"]))


def comparable(*args, **kwargs):
    return {c.row.word for c in compare(conditions(*args, **kwargs)) if not c.differs}


def answers(table, counts, right=lambda n: n % 2 == 0):
    return [
        {"set": name, "index": n, "right": right(n), "paper_right": n % 2 == 0}
        for name, count in zip(table.sets, counts, strict=True)
        for n in range(count)
    ]


@pytest.mark.parametrize(
    ("preset", "data", "word"),
    [
        ("paper-lora", "math-v1", "LoRA"),
        ("paper-series-h", "math-v1", "AdapterH"),
        ("paper-series-p", "math-v1", "AdapterP"),
        ("paper-parallel", "math-v1", "Parallel"),
        ("final-lora", "math_10k", "LoRA"),
        ("final-series-math", "math_10k", "Series"),
        ("final-parallel", "commonsense_170k", "Parallel"),
        ("final-series", "commonsense_170k", "Series"),
        ("final-prefix", "commonsense_170k", "Prefix"),
    ],
)
def test_the_presets_of_the_papers_code_repeat_its_rows(preset, data, word):
    assert comparable(preset, data) == {word}


def test_options_are_compared_as_they_are_at_a_site():
    """On GPT-J this preset has only `down`, where its override makes it the published Series."""
    found = compare(Conditions("gptj-6b", "commonsense_170k", resolve("final-series-math"), 1.0))
    assert [c.row.word for c in found if not c.differs] == ["Series"]
    ours = resolve("paper-series-h", overrides={"up": {"size": 64}})
    found = compare(Conditions("llama-7b", "math-v1", ours, 1.0))
    assert [c.text for c in found if c.row.word == "AdapterH"] == [
        "published size 256 on gate, up, down; here size 256 on gate, down; size 64 on up"
    ]


def test_every_row_of_a_method_that_is_here_is_comparable_with_its_own_adapter():
    for table in published().values():
        for model in table.rows:
            for row in table.rows_of(model):
                if row.adapter and row.training.prompt_weight is not None:
                    own = Conditions(model, table.data, row.adapter, row.training.prompt_weight)
                    assert row.word in {c.row.word for c in compare(own) if not c.differs}


def test_lora_on_two_linears_is_not_the_published_lora_on_five():
    ours = conditions("lora", weight=0.0)
    texts = {c.name: c.text for c in compare(ours)}
    assert texts["llama-7b LoRA of the math table of the last version, EMNLP 2023"] == (
        "published r 32, alpha 64.0 on q, k, v, up, down, loss over prompt and response; "
        "here r 8, alpha 16.0 on q, v, loss over the response"
    )
    assert not comparable("lora", weight=0.0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"r": 16}, "published r 32 on q, k, v, up, down; here r 16 on q, k, v, up, down"),
        ({"sites": ["q", "v"]}, "published on q, k, v, up, down; here on q, v"),
        ({"layers": "last 8"}, "here on q, k, v, up, down, layers last 8"),
        ({"overrides": {r".*\.3\..*": {"r": 4}}}, r"up, down (.*\.3\..*: r 4)"),
        ({"dropout": 0.3}, ""),  # an option of the training alone
    ],
)
def test_sites_sizes_and_layers_are_compared(change, said):
    nearest = compare(conditions("final-lora", **change))[0]
    assert (nearest.text if nearest.differs else "").endswith(said)
    assert bool(nearest.differs) == bool(said)


def test_the_rows_trained_on_and_the_loss_are_compared():
    ours = conditions("final-lora")
    for changed, said in (
        (replace(ours, rows="the rows of other.jsonl"), "here the rows of other.jsonl"),
        (replace(ours, prompt_weight=0.0), "here loss over the response"),
        (replace(ours, prompt_weight=None), "here a loss weight of the prompt that is not known"),
        (replace(ours, adapter=None), "published LoRA; here no single adapter"),
    ):
        found = next(c for c in compare(changed) if c.row.word == "LoRA")
        assert said in found.text


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["only_right=true"], "the rows with right rationales"),
        (["continue_from=x"], "the rows after those of another run"),
        (["load.below=x"], "the rows, on top of other adapters"),
    ],
)
def test_what_a_run_trains_on_besides(sets, said):
    from train.settings import settings as make

    options = {} if "continue_from=x" in sets else {"adapter": {"preset": "final-lora"}}
    assert conditions_of(make(None, None, {"model": "llama-7b"} | options, sets)).rows == said


def test_figures_stand_beside_a_row_only_where_the_whole_sets_were_measured():
    table = published()["math-v1"]
    ours = conditions("paper-parallel", "math-v1")
    tables, notes = beside_published(ours, answers(table, table.problems))
    assert [row[0].text for row in tables[0].rows] == [
        "ours, strict",
        "ours, the paper's reader",
        "published, llama-7b Parallel of Table 1 of arXiv 2304.01933v1",
        "difference",
    ]
    assert tables[0].rows[3][2].text == f"{50 - 22.7:+.1f}"  # gsm8k
    # the difference is that of the paper's reader
    other, _ = beside_published(ours, answers(table, table.problems, right=lambda n: False))
    assert other[0].rows[3] == tables[0].rows[3]
    tables, notes = beside_published(ours, answers(table, [2] * 6))
    assert tables == []
    assert any("whole test sets; here MultiArith 2 of 120" in note for note in notes)
    assert beside_published(ours, answers(table, [2] * 6)[:4]) == ([], [])  # two sets of six


def test_leaking_sets_and_doubts_are_said():
    table = published()["math_10k-july"]
    _, notes = beside_published(conditions("final-lora"), answers(table, table.problems))
    assert "The training data holds problems of MultiArith, AddSub, SingleEq." in notes
    assert any("November 2023" in note for note in notes)
    assert (
        "Note: published with 3 epochs, batches of 16, learning rate 0.0003, 1 seed, answers read "
        "by the paper's code, over the full six sets; README of "
        "github.com/AGI-Edgerunners/LLM-Adapters, commit e5a66dd."
    ) in notes
    _, notes = beside_published(conditions("final-prefix"), answers(table, table.problems))
    assert any("5 epochs, batches of 8, learning rate 0.03, 1 seed" in note for note in notes)


def test_models_and_methods_without_a_row_are_told_what_there_is():
    other = comparison_lines(settings(None, None, {"model": "opt-125m", "data": "math-v1"}))
    assert other == [
        "The published rows on math-v1 (Table 1 of arXiv 2304.01933v1) are of llama-7b, "
        "bloom-7b1, gptj-6b; there is no row for opt-125m with parallel."
    ]
    options = {"model": "llama-7b", "data": "math_10k", "adapter": {"preset": "ia3"}}
    assert comparison_lines(settings(None, None, options))[-1].endswith("RoAd2. Here: ia3.")
    assert comparison_lines(settings(None, None, {"data": "wordproblems"})) == []


def test_the_papers_own_table_comes_first():
    assert [table.data for table in tables_for("math_10k")] == ["math_10k"] * 4
    assert tables_for("math_10k")[0].grid[-1] == "final-lora"


def test_plan_says_what_a_run_can_be_compared_with(capsys, monkeypatch):
    of_layers(1, monkeypatch, "llama-7b")
    words = ["plan", "--model", "llama-7b", "--adapter", "lora", "--set", "data=math_10k"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "Not comparable: llama-7b LoRA of the math table" in said
    assert "published r 32, alpha 64.0 on q, k, v, up, down" in said
    assert main([*words, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["published"]
    assert {row["comparable"] for row in rows} == {False}
    assert rows[0]["figures"]["average"] > 0

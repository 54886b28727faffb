"""Answers, verdicts and scores: the same at any batch size and order, continued where they
stopped, read by both readers.
"""

import json
from dataclasses import replace

import pytest
import torch
from scored import HOW, PIQA, answers, pocket, problems  # noqa: F401

from eval import predict as predicting
from eval.predict import judge
from eval.score import Score, clean, mean_score, scores, tables
from experiments.inspect import select
from model import UserError

WAYS = {
    "greedy": {},
    "beams": {"beams": 4},
    "drawn": {"temperature": 0.9, "top_k": 20, "top_p": 0.95, "seeds": [0, 3]},
    "likelihood": {"scoring": "likelihood"},
}


@pytest.mark.parametrize("way", WAYS)
def test_the_same_answers_at_any_batch_size_and_order(way, pocket, problems):
    if way == "likelihood":
        problems = {"piqa": PIQA, "aqua": problems["aqua"]}
    problems = {name: rows[:5] for name, rows in problems.items()}
    how = replace(HOW, **WAYS[way])
    reference = answers(pocket, problems, replace(how, batch_size=1))
    assert all(
        one["output"] == max(one["likelihoods"], key=one["likelihoods"].get)
        for one in reference
        if way == "likelihood"
    )
    assert any(one["right"] for one in reference)
    assert not all(one["right"] for one in reference)
    for size in (3, 64) if way == "greedy" else (64,):
        found = answers(pocket, problems, replace(how, batch_size=size))
        if way == "likelihood":
            for one, other in zip(found, reference, strict=True):
                assert one.pop("likelihoods") == pytest.approx(other["likelihoods"], abs=1e-4)
            assert found == [
                {key: value for key, value in one.items() if key != "likelihoods"}
                for one in reference
            ]
        else:
            assert found == reference
    turned = answers(pocket, {name: rows[::-1] for name, rows in reversed(problems.items())}, how)
    said = {(one["set"], one["instruction"], one.get("seed")): one["output"] for one in reference}
    if way != "drawn":  # the draws of a problem hang on its number
        assert {
            (one["set"], one["instruction"], one.get("seed")): one["output"] for one in turned
        } == said


def test_an_interval_is_wilsons_at_95_percent():
    assert Score(8, 10).interval == pytest.approx((0.4902, 0.9433), abs=1e-4)


def test_drawn_answers_differ_by_seed_and_repeat_with_it(pocket, problems):
    how = replace(HOW, temperature=1.5, seeds=[0, 1])
    found = answers(pocket, problems, how)
    assert len(found) == 2 * 27
    by_seed = {seed: [one["output"] for one in found if one["seed"] == seed] for seed in (0, 1)}
    assert by_seed[0] != by_seed[1]
    assert by_seed[1] == [
        one["output"] for one in answers(pocket, problems, replace(how, seeds=[1]))
    ]
    one = scores(found)["addsub"]
    assert (one.total, one.problems) == (18, 9)
    low, high = one.interval
    few, many = Score(one.right // 2, 9).interval, Score(one.right, 18).interval
    assert high - low > many[1] - many[0]  # two answers to a problem are no two problems
    assert high - low == pytest.approx(few[1] - few[0], abs=0.05)


def test_an_interrupted_evaluation_goes_on_and_ends_the_same(
    pocket, problems, tmp_path, monkeypatch
):
    journal = tmp_path / "answers.part"
    whole = answers(pocket, problems, HOW)
    asked = []  # how many answers are wanted each time

    def respond_until(count):
        def some(model, tokenizer, wanted, *how):
            asked.append(len(wanted))
            for number, answer in enumerate(respond(model, tokenizer, wanted, *how)):
                if number == count:
                    raise KeyboardInterrupt
                yield answer

        return some

    respond = predicting.generated
    monkeypatch.setattr(predicting, "generated", respond_until(16))
    with pytest.raises(KeyboardInterrupt):
        answers(pocket, problems, HOW, journal=journal)
    text = journal.read_text()
    assert text.count("\n") == 1 + 16
    numbers = [json.loads(line)["job"] for line in text.splitlines()[1:]]
    assert len(set(numbers)) == 16  # each row once, whichever was over first
    journal.write_text(text[:-7])  # a kill in the middle of a line
    monkeypatch.setattr(predicting, "generated", respond_until(None))
    # Another batch size may go on with it.
    assert answers(pocket, problems, replace(HOW, batch_size=5), journal=journal) == whole
    assert answers(pocket, problems, HOW, journal=journal) == whole
    assert asked == [27, 27 - 15, 0]


def test_answers_of_something_else_are_not_taken_over(pocket, problems, tmp_path):
    journal = tmp_path / "answers.part"
    answers(pocket, problems, HOW, journal=journal)
    from adapters import attach, parameters, remove

    attach(pocket[0], "lora", r=2)
    try:
        with pytest.raises(UserError, match="other weights"):
            answers(pocket, problems, HOW, journal=journal)
        answers(pocket, problems, HOW, journal=tmp_path / "lora.part")
        with torch.no_grad():
            parameters(pocket[0])[-1].add_(1e-3)
        with pytest.raises(
            UserError, match="other weights"
        ):  # the same adapter, trained a little further
            answers(pocket, problems, HOW, journal=tmp_path / "lora.part")
    finally:
        remove(pocket[0], "default")
    for how, tests in (
        (replace(HOW, max_new_tokens=21), problems),
        (replace(HOW, beams=2), problems),
        (HOW, {"addsub": problems["addsub"]}),
    ):
        with pytest.raises(UserError, match="made in another way"):
            answers(pocket, tests, how, journal=journal)
    few = {"addsub": problems["addsub"][:1]}
    drawn = replace(HOW, temperature=1.0, top_k=5, top_p=0.9)
    answers(pocket, few, drawn, journal=tmp_path / "drawn.part")
    for change in ({"top_k": 6}, {"top_p": 0.8}, {"temperature": 0.9}):
        with pytest.raises(UserError, match="made in another way"):
            answers(pocket, few, replace(drawn, **change), journal=tmp_path / "drawn.part")


def test_a_draw_from_the_likeliest_token_alone_is_greedy(pocket, problems):
    """eval.top_k and eval.top_p reach the sampling: without them the answers change."""
    few = {"addsub": problems["addsub"]}
    greedy, free, first, least = (
        [one["output"] for one in answers(pocket, few, replace(HOW, **more))]
        for more in (
            {},
            {"temperature": 5.0},
            {"temperature": 5.0, "top_k": 1},
            {"temperature": 5.0, "top_p": 1e-6},
        )
    )
    assert free != greedy
    assert first == least == greedy


def test_both_readers_and_what_training_saw(pocket):
    found = [
        {
            "set": "AQuA",
            "index": 0,
            "right": True,
            "paper_right": False,
            "answer": "B",
            "paper_answer": "A",
            "instruction": "a",
            "cut": True,
        },
        {
            "set": "AQuA",
            "index": 1,
            "right": True,
            "paper_right": True,
            "answer": "B",
            "paper_answer": "B",
            "instruction": "b",
            "leak": "twin",
        },
        {
            "set": "SVAMP",
            "index": 0,
            "right": False,
            "paper_right": False,
            "answer": None,
            "paper_answer": None,
            "instruction": "c",
            "leak": "near",
        },
    ]
    table = tables(found)
    assert (
        table["AQuA"]["accuracy"],
        table["AQuA"]["paper_reader"]["accuracy"],
        table["AQuA"]["clean_part"]["total"],
    ) == (1.0, 0.5, 1)
    assert (table["AQuA"]["cut_off"], table["SVAMP"]["cut_off"]) == (1, 0)
    assert [one["instruction"] for one in clean(found)] == ["a"]
    assert [one["instruction"] for one in select(found, right=False)] == ["c"]
    assert [one["instruction"] for one in select(found, right=False, mode="paper")] == ["a", "c"]
    assert [one["instruction"] for one in select(found, sets=["aqua"], readers_differ=True)] == [
        "a"
    ]
    assert [one["instruction"] for one in select(found, leaked=True)] == ["b", "c"]
    other = [{**one, "right": not one["right"]} for one in found]
    assert [one["instruction"] for one in select(found, beats=other)] == ["a", "b"]
    assert select(found, beats=found) == []  # right in both
    with pytest.raises(UserError, match="another problem"):
        select(found, beats=[{**found[0], "instruction": "x"}])
    with pytest.raises(UserError, match="did you mean 'AQuA'"):
        select(found, sets=["AQUAA"])


def test_each_reader_gives_its_own_verdict():
    runaway = (
        "The answer is 5.\n\n### Instruction:\nWhat is 2 + 2?\n\n### Response:\nThe answer is 4."
    )
    found = judge({"output": runaway, "gold": "5"}, "gsm8k")
    assert (found["answer"], found["right"]) == (5.0, True)
    assert (found["paper_answer"], found["paper_right"]) == (
        2.0,
        False,
    )  # its code read up to the second "### Response:"
    found = judge({"output": "Answer: B", "gold": "B"}, "AQuA")
    assert (found["right"], found["paper_answer"], found["paper_right"]) == (True, "A", False)


def test_the_average_is_the_plain_mean_with_an_interval():
    mean, low, high = mean_score({"a": Score(90, 100), "b": Score(100, 1000)})
    assert mean == pytest.approx(0.5)
    assert low < 0.5 < high
    widths = [(hi - lo) / 2 for lo, hi in (Score(90, 100).interval, Score(100, 1000).interval)]
    assert high - mean == pytest.approx((widths[0] ** 2 + widths[1] ** 2) ** 0.5 / 2)

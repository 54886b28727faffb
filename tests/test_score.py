"""Answers, verdicts and scores: the same at any batch size and order, continued where they
stopped, read by both readers.
"""

import json
from dataclasses import replace

import pytest
import torch

from data.prompts import template
from data.sources import load_data
from eval import predict as predicting
from eval.choices import choices, form_of, spelled_as_in
from eval.predict import judge, predict
from eval.score import Score, clean, mean_score, scores, tables
from experiments.inspect import select
from model import UserError, load_model, load_tokenizer
from train.settings import Eval

HOW = Eval(batch_size=8, max_new_tokens=20)
OPTIONS = ("solution1", "solution2")
PIQA = [
    {
        "instruction": (
            f"Please choose: which is {n}?\n\nSolution1: {n}\n\nSolution2: "
            f"{n + 1}\n\nAnswer format: solution1/solution2"
        ),
        "input": "",
        "output": f"the correct answer is {OPTIONS[n % 2]}",
        "answer": OPTIONS[n % 2],
    }
    for n in range(9)
]


@pytest.fixture(scope="module")
def pocket():
    return load_model("pocket-llama", dtype=torch.float32), load_tokenizer("pocket-llama")


@pytest.fixture(scope="module")
def problems():
    tests = load_data("wordproblems").tests
    return {name: tests[name][:9] for name in ("addsub", "gsm8k", "aqua")}


def answers(pocket, problems, how, **more):
    return predict(*pocket, problems, template=template("alpaca"), decoding=how, **more)


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
    how = replace(HOW, **WAYS[way])
    reference = answers(pocket, problems, replace(how, batch_size=1))
    assert all(
        one["output"] == max(one["likelihoods"], key=one["likelihoods"].get)
        for one in reference
        if way == "likelihood"
    )
    assert any(one["right"] for one in reference)
    assert not all(one["right"] for one in reference)
    for size in (64,) if way == "beams" else (3, 64):
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


def test_options_are_put_as_in_training_and_share_their_beginning(pocket):
    _, tokenizer = pocket
    form = template("alpaca")
    put = form_of(PIQA, "labels:solution1|solution2")
    assert put == "the correct answer is {}"
    found = choices(tokenizer, PIQA[0], form, "labels:solution1|solution2", put, "piqa")
    assert list(found) == ["solution1", "solution2"]
    contexts = {tuple(context) for context, _ in found.values()}
    assert len(contexts) == 1
    assert list(contexts.pop()) == tokenizer.encode(
        form.prompt(PIQA[0])
    )  # the options begin after the prompt, not earlier
    for label, (context, continuation) in found.items():
        assert context + continuation == tokenizer.encode(
            form.prompt(PIQA[0]) + f"the correct answer is {label}"
        )
    five = {
        **PIQA[0],
        "instruction": "Which?\n\nAnswer format: answer1/answer2/answer3/answer4/answer5",
        "output": "",
        "answer": "answer5",
    }
    assert (
        len(choices(tokenizer, five, form, "labels:answer1|answer2", put, "ARC-Easy")) == 5
    )  # the row's own options count
    assert list(
        choices(tokenizer, {"instruction": "?", "answer": "B"}, form, "letter", put, "AQuA")
    ) == list("ABCDE")
    with pytest.raises(UserError, match="no options"):
        choices(tokenizer, PIQA[0], form, "number", put, "gsm8k")
    with pytest.raises(UserError, match="two to compare"):
        choices(tokenizer, {"instruction": "?", "answer": "yes"}, form, "labels:yes", put, "mine")


def test_the_options_of_a_problem_do_not_tell_its_rationale():
    rows = [
        {"output": "Cats have fur, so the answer is yes", "answer": "yes"},
        {"output": "Stones have none, so the answer is no", "answer": "no"},
    ]
    assert (
        form_of(rows, "labels:no|yes") == "the correct answer is {}"
    )  # each row's own words would give the answer away
    assert (
        form_of(
            [{"output": "It is yes", "answer": "yes"}, {"output": "It is no", "answer": "no"}],
            "labels:no|yes",
        )
        == "It is {}"
    )
    assert (
        form_of([{"output": "{a} yes", "answer": "yes"}], "labels:no|yes").format("no") == "{a} no"
    )
    assert form_of([{"answer": "B"}], "letter") == "The answer is {}."


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


# ---------------------------------------------------------------- which options are weighed
LISTED = "Which floats?\nA) iron B) cork C) lead"


def weighed(
    tokenizer, kind: str, instruction: str, answer: str, form: str = "The answer is {}."
) -> list[str]:
    row = {"instruction": instruction, "answer": answer}
    return list(choices(tokenizer, row, template("alpaca"), kind, form, "mine"))


@pytest.mark.parametrize(("kind", "instruction", "answer", "options"), [
    ("letters:A|B|C|D", "Which floats?", "B", ["A", "B", "C", "D"]),
    ("letters:a|b|c", "Which floats?", "b", ["a", "b", "c"]),
    ("letters:A|B|C|D|E", LISTED, "B", ["A", "B", "C"]),  # the row's own
    ("letters:A|B|C|D|E", LISTED, "E", ["A", "B", "C", "D", "E"]),  # its label is not among them
    ("letter", "Which? (A) 1 (B) 2 (C) 3 (D) 4", "D", ["A", "B", "C", "D"]),
    ("letters:A|B|C|D|1|2|3|4", "Which floats?", "2", ["1", "2", "3", "4"]),
    ("letters:A|B|C|D|1|2|3|4", "Which?\n1. iron\n2. cork\n3. lead", "2", ["1", "2", "3"]),
    ("letters:A|B|C|D|1|2|3|4", "Which floats?", "C", ["A", "B", "C", "D"]),
    ("letters:(A)|(B)|(C)", "Which?\n(A) iron (B) cork", "(B)", ["(A)", "(B)"]),
    ("labels:no|yes", "Does cork float? Answer format: Yes/No", "Yes", ["Yes", "No"]),
])  # fmt: skip
def test_the_options_that_the_data_has_are_weighed(pocket, kind, instruction, answer, options):
    assert weighed(pocket[1], kind, instruction, answer) == options


def test_options_are_weighed_as_the_data_spells_them(pocket):
    rows = [
        {"instruction": "Does cork float?", "output": "", "answer": label}
        for label in ("Yes", "No")
    ]
    assert spelled_as_in(rows, "labels:no|yes") == "labels:No|Yes"
    assert spelled_as_in(rows[:1], "labels:no|yes") == "labels:No|Yes"  # as the others
    assert spelled_as_in([{"answer": "YES"}], "labels:no|yes") == "labels:NO|YES"
    assert spelled_as_in([{"answer": "yes"}], "labels:no|yes") == "labels:no|yes"
    assert spelled_as_in(rows, "letters:A|B") == "letters:A|B"
    model, tokenizer = pocket
    found = predict(
        model,
        tokenizer,
        {"cork": rows},
        template="alpaca",
        scoring="likelihood",
        reads={"cork": "labels:no|yes"},
    )
    assert [list(one["likelihoods"]) for one in found] == [["No", "Yes"]] * 2
    letters = [{"instruction": "Which?", "output": "", "answer": label} for label in ("A", "D")]
    found = predict(
        model,
        tokenizer,
        {"x": letters},
        template="alpaca",
        scoring="likelihood",
        reads={"x": "letters:A|B|C|D"},
    )
    assert [list(one["likelihoods"]) for one in found] == [list("ABCD")] * 2
    assert form_of(letters, "letters:A|B|C|D") == "The answer is {}."

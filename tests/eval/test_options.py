"""Options of a problem: how they are put, and which is the likeliest."""

import pytest
from scored import (
    PIQA,
    pocket,  # noqa: F401
)

from data.prompts import template
from eval.choices import choices, form_of, spelled_as_in
from eval.predict import predict
from model import UserError


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

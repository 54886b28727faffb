"""Labels of own data: how they are read, what does not fit, and what is said about it."""

import json

import pytest

import run as command_line
from data.sources import load_data
from eval.answers import fits, is_right
from eval.predict import judge
from experiments.measured import check_labels, reading_lines
from model import UserError


# ---------------------------------------------------------------- labels of another kind
def test_a_label_of_another_kind_is_compared_as_a_text():
    for kind, gold, output in (
        ("number", "N/A", "The answer is N/A."), ("letters:A|B", "none", "None."),
        ("labels:no|yes", "not sure", "The answer is not sure."),
        ("number:comma", "viele", "Viele"),
    ):  # fmt: skip
        assert not fits(kind, gold)
        assert judge({"output": output, "gold": gold}, kind)["right"]
        assert not judge({"output": "The answer is 3.", "gold": gold}, kind)["right"]
    assert judge({"output": "The answer is 3.", "gold": ""}, "number")["right"] is False
    with pytest.raises(UserError, match="'N/A' is not a number"):
        is_right(3.0, "N/A")
    rows = [{"instruction": "?", "answer": "N/A"}]
    check_labels({"mine": rows}, {"mine": "number"})
    with pytest.raises(UserError, match="gsm8k, problem 1: the label 'N/A' is not a number"):
        check_labels({"gsm8k": rows})


def test_a_line_says_how_answers_are_read_and_which_labels_do_not_fit():
    rows = [{"answer": label} for label in ["3", "1/2", "N/A", "", *["7"] * 40, *["?"] * 6]]
    problems = {"mine": rows, "AQuA": [{"answer": "B"}], "x": [{"answer": "a"}]}
    lines = reading_lines(problems, {"mine": "number", "x": "letters:a|b"})
    assert lines == [
        "answers are read as numbers (mine); as option letters A to E (AQuA); "
        "as option letters a, b (x)",
        "mine: 8 of 50 labels do not fit and are compared as texts: N/A (problem 3), "
        "blank (problem 4), ? (problem 45), ? (problem 46), ? (problem 47), and 3 more",
    ]
    assert reading_lines({}, {}) == []
    words = reading_lines({"a": [{"answer": "Yes"}], "b": [{"answer": "1,5"}],
        "c": [{"answer": "x y"}]},
                          {"a": "labels:no|yes", "b": "number:comma", "c": "text"})  # fmt: skip
    assert words == ["answers are read as one of the words no, yes (a); "
                     "as numbers with a decimal comma (1.234,5) (b); as texts (c)"]  # fmt: skip


@pytest.fixture
def mixed(tmp_path):
    """A file with a label that is no number among twenty."""
    rows = [{"instruction": f"Ann has {i} cups. How many?", "output": f"The answer is {i}.",
             "answer": str(i) if i != 3 else "many"} for i in range(20)]  # fmt: skip
    path = tmp_path / "cups.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_data_check_says_how_answers_are_read(mixed, capsys):
    assert command_line.main(["data", "check", str(mixed)]) == 0
    said = capsys.readouterr().out
    assert "answers are read as numbers (cups)" in said
    assert "cups: 1 of 20 labels do not fit and are compared as texts: many (problem 4)" in said


def test_a_run_and_an_evaluation_say_how_answers_are_read(mixed, tmp_path, capsys):
    few = ["--set", "eval.before=false", "--set", "eval.max_new_tokens=1", "--max-steps", "1"]
    words = ["--data", mixed, "--set", "test_share=0.8", *few, "--out", tmp_path / "run"]
    assert command_line.main([str(word) for word in words]) == 0
    said = capsys.readouterr().out
    assert "answers are read as numbers (cups)" in said
    words = ["evaluate", "--model", "pocket-llama", "--tests", mixed, "--max-new-tokens", "1"]
    assert command_line.main([str(word) for word in [*words, "--out", tmp_path / "out"]]) == 0
    said = capsys.readouterr().out
    assert "answers are read as numbers (cups)" in said
    assert "1 of 20 labels do not fit and are compared as texts: many (problem 4)" in said


def test_a_column_with_fractions_and_currency_is_right_whole(tmp_path):
    labels = ["5", "1/2", "$7", "15%", "3", "1'000", "2 1/2", "-4", "1,00,000", "five"]
    rows = [{"instruction": f"Problem {i}?", "output": f"It makes {label} pens.\n#### {label}",
             "answer": label} for i, label in enumerate(labels)]  # fmt: skip
    path = tmp_path / "mixed.json"
    path.write_text(json.dumps(rows))
    data = load_data(str(path), test_share=0.5)
    assert data.reads == {"mixed": "number"}
    for row in [*data.train, *data.tests["mixed"]]:
        assert judge({"output": row["output"], "gold": row["answer"]}, "number")["right"], row

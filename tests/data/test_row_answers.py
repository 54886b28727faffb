"""Rows of files: answers, options, and rows that are left out."""

import json

import pytest
from files_of_rows import write  # noqa: F401

from data.rows import read_rows, read_table
from data.sources import load_data
from model import UserError

TRAIN = ("instruction", "output")
TEST = ("instruction", "answer")


# ---------------------------------------------------------------- answers and options
def gsm8k(count: int) -> list[dict]:
    return [
        {"question": f"What is {n} + 1,000?", "answer": f"It is <<{n}+1000>>.\n#### {n + 1000:,}"}
        for n in range(count)
    ]


@pytest.mark.parametrize(
    "columns",
    [None, {"instruction": "question", "output": "answer"},
     {"instruction": "question", "output": "answer", "answer": "answer"}],
)  # fmt: skip
def test_the_answer_stands_behind_the_rationale(write, columns):
    path = write("a.jsonl", gsm8k(20))
    for need in (TRAIN, TEST):
        row = read_table(path, columns, need)[3]
        assert row["answer"] == "1,003"
        assert row["output"] == "It is <<3+1000>>.\n#### 1,003"
    data = load_data(str(path), columns=columns)
    assert data.reads == {"a": "number"}
    assert "answers: what comes after ####" in " ".join(data.notes)


def test_a_row_without_its_mark_has_no_answer(write):
    rows = [*gsm8k(3), {"question": "And?", "answer": "I do not know."}]
    assert [row["answer"] for row in read_table(write("a.jsonl", rows), need=TRAIN)][-1] == ""
    few = [gsm8k(1)[0], *({"question": f"q{n}", "answer": f"w{n}"} for n in range(3))]
    assert read_table(write("a.jsonl", few), need=TRAIN)[0]["answer"].endswith("#### 1,000")


def test_long_answers_that_are_also_the_output_are_not_compared(write):
    rows = [{"question": f"q{n}", "answer": f"This is the long answer {n}."} for n in range(30)]
    data = load_data(str(write("a.jsonl", rows)))
    assert (len(data.held_out), data.tests) == (3, {})
    short = [{"question": f"q{n}", "answer": str(n)} for n in range(30)]
    data = load_data(str(write("b.jsonl", short)))
    assert (data.held_out, {name: len(test) for name, test in data.tests.items()}) == ([], {"b": 3})


@pytest.mark.parametrize(
    ("options", "answers", "lines"),
    [
        (["A)1", "B)2"], ["A", "B"], ["A)1", "B)2"]),
        (["(a) one", "(b) two"], ["a", "b"], ["(a) one", "(b) two"]),
        (["one", "two"], ["A", "B"], ["A) one", "B) two"]),
        (["one", "two"], ["a", "b"], ["a) one", "b) two"]),
        (["one", "two"], [0, 1], ["0) one", "1) two"]),
        (["one", "two"], [1, 2], ["1) one", "2) two"]),
        ({"text": ["one", "two"], "label": ["1", "2"]}, ["1", "2"], ["1) one", "2) two"]),
    ],
)
def test_options_are_lines_of_the_prompt(write, options, answers, lines):
    rows = [{"question": "Which?", "choices": options, "answer": answer} for answer in answers]
    for row in read_table(write("a.jsonl", rows), need=TEST):
        assert row["instruction"].split("\n") == ["Which?", *lines]


def test_options_as_the_input(write):
    path = write("a.jsonl", [{"q": "Which?", "o": ["A)1", "B)2"], "r": "A"}])
    columns = {"instruction": "q", "input": "o", "output": "r"}
    assert read_table(path, columns, TRAIN)[0]["input"] == "A)1\nB)2"


# ---------------------------------------------------------------- rows that cannot be used
def test_rows_that_cannot_be_used_are_left_out_and_named(write):
    good = [{"instruction": f"a{n}", "output": "b"} for n in range(30)]
    bad = [{"instruction": "a", "output": " "}, {"instruction": None, "output": "b"}, 5]
    path = write("a.jsonl", [*good, *bad, {"instruction": "x", "output": []}])
    data = load_data(str(path), test_share=0.0)
    assert len(data.train) == 30
    assert data.left_out == [
        "a.jsonl, line 31: output is missing or empty",
        "a.jsonl, line 32: instruction is missing or empty",
        "a.jsonl, line 33: is a int, not an object",
        "a.jsonl, line 34: output is a list, not a text",
    ]
    (note,) = data.notes
    assert note.startswith("a.jsonl: 4 of 34 rows cannot be used and are left out: line 31: ")
    assert note.endswith("line 33: is a int, not an object; ...")
    with pytest.raises(UserError, match=r"4 of 34 rows cannot be used.*\(--strict-rows\)"):
        load_data(str(path), strict_rows=True)
    with pytest.raises(UserError, match="3 of 3 rows cannot be used"):
        load_data(str(write("b.jsonl", bad)))


def test_rows_without_answers_are_held_out_for_the_loss(write):
    rows = [{"instruction": f"a{n}", "output": "b"} for n in range(40)]
    data = load_data(str(write("a.jsonl", rows)))
    assert (len(data.train), len(data.held_out), data.tests) == (36, 4, {})
    assert not {row["instruction"] for row in data.train} & {
        row["instruction"] for row in data.held_out
    }
    half = [row | ({"answer": "7"} if n % 4 else {}) for n, row in enumerate(rows)]
    data = load_data(str(write("b.jsonl", half)))
    assert (len(data.tests["b"]), data.held_out) == (3, [])
    assert load_data(str(write("a.jsonl", rows)), test_share=0.0).held_out == []


def test_rows_of_a_list_on_one_line_are_counted(write):
    path = write("a.json", json.dumps([{"instruction": "a", "output": "b"}, {"instruction": "c"}]))
    assert read_rows(path, need=TRAIN).left_out == ["row 2: output is missing or empty"]


def test_quotes_of_csv_with_blanks_and_of_tsv(write):
    rows = read_table(write("a.csv", 'instruction, output\n"a, b", "c ""d"""\n'), need=TRAIN)
    assert (rows[0]["instruction"], rows[0]["output"]) == ("a, b", 'c "d"')
    rows = read_table(write("a.tsv", 'instruction\toutput\nsay "hi"\t"so" he said\n'), need=TRAIN)
    assert (rows[0]["instruction"], rows[0]["output"]) == ('say "hi"', '"so" he said')
    rows = read_table(write("a.tsv", 'instruction\toutput\na\t"b\tc"\n'), need=TRAIN)
    assert rows[0]["output"] == "b\tc"


def test_answers_that_are_not_measured_are_said(write):
    rows = [
        {"instruction": f"a{n}", "output": "b", "answer": "7" if n % 4 else ""} for n in range(40)
    ]
    assert "10 of 40 rows have no answer" in " ".join(load_data(str(write("a.jsonl", rows))).notes)
    few = [row | {"answer": "" if n % 4 else "7"} for n, row in enumerate(rows)]
    assert "only 10 of 40 rows have an answer" in " ".join(
        load_data(str(write("b.jsonl", few))).notes
    )
    assert "too few rows to hold out 10%" in " ".join(
        load_data(str(write("c.jsonl", rows[:3]))).notes
    )


def test_options_by_their_labels(write):
    """{"A": text, "B": text}, as MedQA has them; Arrow fills up labels that a row lacks."""
    rows = [{"question": "Which one melts?", "options": {"A": "ice", "B": "fire", "C": "air"},
             "answer": "A"},
            {"question": "Which one burns?", "options": {"A": "rock", "B": "wood", "C": None},
             "answer": "B"}]  # fmt: skip
    first, second = read_table(write("a.jsonl", rows), need=TEST)
    assert first["instruction"] == "Which one melts?\nA) ice\nB) fire\nC) air"
    assert second["instruction"] == "Which one burns?\nA) rock\nB) wood"
    for options in ({}, {"A": 5}, {"the first of all": "x"}, {"A)": "x"}, {"A": None}):
        bad = write("b.jsonl", [rows[0] | {"options": options}])
        with pytest.raises(UserError, match="has options that are no list of texts"):
            read_table(bad, need=TEST)

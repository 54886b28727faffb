"""Rows of files in the forms that people publish: which column is which field, and what is said."""

import json

import pytest

from data.rows import read_rows, read_table
from data.sources import load_data
from model import UserError

TRAIN = ("instruction", "output")
TEST = ("instruction", "answer")


@pytest.fixture
def write(tmp_path):
    def make(name: str, content) -> str:
        path = tmp_path / name
        if not isinstance(content, str):
            content = "\n".join(map(json.dumps, content))
        path.write_text(content)
        return path

    return make


def only(table) -> dict:
    """The one row of a table, without what is empty."""
    (row,) = table.rows
    return {field: value for field, value in row.items() if value}


# ---------------------------------------------------------------- columns by their names
@pytest.mark.parametrize(
    ("entry", "row"),
    [
        ({"question": "a", "response": "b"}, {"instruction": "a", "output": "b"}),
        ({"prompt": "a", "completion": "b"}, {"instruction": "a", "output": "b"}),
        ({"query": "a", "response": "b"}, {"instruction": "a", "output": "b"}),
        ({"problem": "a", "solution": "b", "answer": "4"},
         {"instruction": "a", "output": "b", "answer": "4"}),
        ({"instruction": "a", "context": "c", "response": "b"},
         {"instruction": "a", "input": "c", "output": "b"}),
        ({"input": "a", "output": "b"}, {"instruction": "a", "output": "b"}),
        ({"instruction": "", "input": "a", "output": "b"}, {"instruction": "a", "output": "b"}),
        ({"Instruction": "a", "OUTPUT": "b"}, {"instruction": "a", "output": "b"}),
        ({"instruction": "a", "output": 7, "input": 0.5},
         {"instruction": "a", "output": "7", "input": "0.5"}),
        ({"question": "a", "answer": "b"}, {"instruction": "a", "output": "b", "answer": "b"}),
        ({"system_prompt": "s", "question": "a", "response": "b"},
         {"instruction": "a", "output": "b",
          "history": [{"role": "system", "content": "s"}]}),
        ({"prompt": [{"role": "user", "content": "a"}],
          "completion": [{"role": "assistant", "content": "b"}]},
         {"instruction": "a", "output": "b"}),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}],
          "system": "s"},
         {"instruction": "a", "output": "b",
          "history": [{"role": "system", "content": "s"}]}),
        ({"prompt": "p", "messages": [{"role": "user", "content": "a"},
                                      {"role": "assistant", "content": "b"}]},
         {"instruction": "a", "output": "b"}),
        ({"text": "all of it", "label": 1}, {"output": "all of it"}),
        ({"instruction": "a", "output": "b", "text": "both"}, {"instruction": "a", "output": "b"}),
    ],
)  # fmt: skip
def test_columns_are_found_by_their_names(write, entry, row):
    assert only(read_rows(write("a.jsonl", [entry]), need=TRAIN)) == row


def test_a_prompt_of_messages_has_no_loss_on_its_own_turns(write):
    ask = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    for completion in ("d", [{"role": "assistant", "content": "d"}]):
        entry = {"prompt": ask, "completion": completion}
        row = only(read_rows(write("a.jsonl", [entry]), need=TRAIN))
        assert (row["instruction"], row["output"]) == ("c", "d")
        assert row["history"] == [ask[0], ask[1] | {"weight": 0}]


def test_what_was_guessed_and_what_is_not_used_is_said(write):
    entry = {"id": 1, "question": "a", "response": "b", "category": "x"}
    assert read_rows(write("a.jsonl", [entry]), need=TRAIN).notes == [
        "columns: instruction from 'question', output from 'response'",
        "columns not used: 'id', 'category'",
    ]
    plain = {"instruction": "a", "input": "", "output": "b"}
    assert read_rows(write("a.jsonl", [plain]), need=TRAIN).notes == []


def test_a_column_named_for_one_field_fills_no_other(write):
    path = write("a.jsonl", [{"question": "a", "answer": "Because.", "correct": "B"}])
    columns = {"instruction": "question", "output": "answer"}
    assert only(read_rows(path, columns, TRAIN)) == {
        "instruction": "a", "output": "Because.", "answer": "B",
    }  # fmt: skip
    path = write("a.jsonl", [{"question": "a", "answer": "Because."}])
    assert only(read_rows(path, columns, TRAIN)) == {"instruction": "a", "output": "Because."}


def test_columns_that_do_not_go_together(write):
    path = write("a.jsonl", [{"q": "a", "r": "b", "talk": []}])
    with pytest.raises(UserError, match="read as chat, which has messages, system"):
        read_rows(path, {"messages": "talk", "output": "r"}, TRAIN)
    with pytest.raises(UserError, match="unknown field of --columns 'inputs'"):
        read_rows(path, {"inputs": "q"}, TRAIN)
    with pytest.raises(UserError, match="name it with --columns instruction=COLUMN"):
        read_rows(path, need=TRAIN)


def test_csv_headers_with_blanks_and_other_delimiters(write):
    row = {"instruction": "a", "input": "b", "output": "c, d"}
    for name, text in (
        ("a.csv", 'instruction, input , output\na,b,"c, d"\n'),
        ("a.csv", "instruction;input;output\na;b;c, d\n"),
        ("a.tsv", "instruction\tinput\toutput\na\tb\tc, d\n"),
    ):
        assert only(read_rows(write(name, text), need=TRAIN)) == row


# ---------------------------------------------------------------- files
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("lines.json", '{"instruction": "a", "output": "b"}\n{"instruction": "c", "output": "d"}'),
        ("list.jsonl", '[\n{"instruction": "a", "output": "b"},\n'
                       '{"instruction": "c", "output": "d"}]'),
        ("flat.jsonl", '[{"instruction": "a", "output": "b"}, {"instruction": "c", "output": "d"}]'),
        ("wrapped.json", '{"data": [{"instruction": "a", "output": "b"},\n'
                         ' {"instruction": "c", "output": "d"}]}'),
    ],
)  # fmt: skip
def test_json_under_the_other_name(write, name, text):
    rows = read_table(write(name, text), need=TRAIN)
    assert [(row["instruction"], row["output"]) for row in rows] == [("a", "b"), ("c", "d")]


def test_a_text_file_is_one_text(write):
    table = read_rows(write("a.txt", "One.\n\nTwo é.\n"), need=TRAIN)
    assert table.is_text
    assert table.rows[0]["output"] == "One.\n\nTwo é.\n"
    with pytest.raises(UserError, match="holds plain text, without answers"):
        read_rows(write("a.txt", "One."), need=TEST)
    with pytest.raises(UserError, match="text is missing or empty"):
        read_rows(write("a.txt", " \n"), need=TRAIN)


@pytest.mark.parametrize(
    ("entry", "use"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "instruction=prompt,output=chosen"),
        ({"question": "a", "chosen": "b", "rejected": "c"}, "instruction=question,output=chosen"),
        ({"chosen": "a b", "rejected": "a c"}, "text=chosen"),
        ({"prompt": "a", "chosen": [{"role": "user", "content": "a"},
                                    {"role": "assistant", "content": "b"}],
          "rejected": []}, "messages=chosen"),
        ({"prompt": "a", "completion": "b", "label": True},
         "instruction=prompt,output=completion"),
    ],
)  # fmt: skip
def test_preference_data_says_what_can_be_used(write, entry, use):
    path = write("a.jsonl", [entry])
    with pytest.raises(UserError, match=f"--columns {use}$"):
        read_rows(path, need=TRAIN)
    columns = dict(pair.split("=") for pair in use.split(","))
    assert len(read_rows(path, columns, TRAIN).rows) == 1  # and that does it


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

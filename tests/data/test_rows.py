"""Rows of files in the forms that people publish: which column is which field, and what is said."""

import pytest
from files_of_rows import write  # noqa: F401

from data.rows import read_rows, read_table
from model import UserError

TRAIN = ("instruction", "output")
TEST = ("instruction", "answer")


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
        ("flat.jsonl", ('[{"instruction": "a", "output": "b"}, {"instruction": "c", "output": '
'"d"}]')),
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

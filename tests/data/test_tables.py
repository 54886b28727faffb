"""Rows from JSON, JSONL, CSV and parquet: what is read, and every row that cannot be, by file,
line and field.
"""

import json
import sys

import pytest
from files_of_rows import BOTH, read, said  # noqa: F401

from cli.options import parse_columns
from data.rows import read_table
from model import UserError

ROW = {"instruction": "Add 1 and 2.", "input": "", "output": "", "answer": "3"}


# ---------------------------------------------------------------- what is read
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", '[{"instruction": "Add 1 and 2.", "answer": "3"}]'),
        (
            "a.JSON",
            ' \n[ {"answer": 3, "other": [1], "input": null,\n "instruction": "Add 1 and 2."}\n]\n',
        ),
        ("a.jsonl", '\n{"instruction": "Add 1 and 2.", "answer": 3}\r\n\n'),
        ("a.csv", "answer,instruction\n3,Add 1 and 2.\n"),
        ("a.csv", '\r\n"answer","instruction","more"\r\n3,"Add 1 and 2.",x\r\n\r\n'),
        ("a.csv", "answer,instruction\r3,Add 1 and 2."),  # as old spreadsheets end lines
        (
            "a.json",
            b'\xef\xbb\xbf[{"instruction": "Add 1 and 2.", "answer": "3"}]',
        ),  # a byte order mark
        ("a.csv", b"\xef\xbb\xbfinstruction,answer\nAdd 1 and 2.,3\n"),
    ],
)
def test_one_row_in_many_forms(read, name, content):
    assert read(name, content) == [ROW]


def test_cells_keep_quotes_commas_and_line_ends(read):
    content = 'instruction,output\n"He said ""2, 3"".\r\nHow many?\u2028",\n x\u2028y\x0cz ,"\nb"\n'
    rows = read("a.csv", content, need=("instruction",))
    assert [(row["instruction"], row["output"]) for row in rows] == [
        ('He said "2, 3".\r\nHow many?\u2028', ""),
        (" x\u2028y\x0cz ", "\nb"),
    ]


def test_lines_of_jsonl_end_at_line_feeds_alone(read):
    assert (
        read("a.jsonl", json.dumps(ROW | {"instruction": "a\u2028b\x85c"}, ensure_ascii=False))[0][
            "instruction"
        ]
        == "a\u2028b\x85c"
    )


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (3, "3"),
        (3.0, "3.0"),
        (-0.5, "-0.5"),
        (True, "true"),
        (False, "false"),
        ("  C ", "  C "),
        (10**400, "1" + 400 * "0"),
        (1e300, "1e+300"),
    ],
)
def test_answers_may_be_numbers_and_truth_values(read, answer, text):
    assert read("a.json", json.dumps([{"instruction": "a", "answer": answer}]))[0]["answer"] == text


def test_rows_stay_in_order_and_twins_stay(read):
    rows = [ROW | {"instruction": text} for text in "cabca"]
    assert (
        read("a.json", json.dumps(rows))
        == read("a.jsonl", "\n".join(map(json.dumps, rows)))
        == rows
    )


def test_columns_of_another_name(read, said):
    content = "asked,label,answer\nAdd 1 and 2.,3,no\n"
    assert read("a.csv", content, {"instruction": "asked", "answer": "label"}) == [ROW]
    assert (
        "has no column 'instruction', it has 'asked', 'label', 'answer': name "
        "it with --columns instruction=COLUMN"
    ) in said("a.csv", content)
    assert "has no column 'text'" in said(
        "a.csv", content, {"instruction": "asked", "input": "text"}
    )  # named, so it must be there
    assert "line 2: label is missing or empty" in said(
        "a.csv", "question,label\na,\n", {"instruction": "question", "answer": "label"}
    )
    with pytest.raises(
        UserError, match="field of --columns 'instructions'; did you mean 'instruction'"
    ):
        read("a.csv", content, {"instructions": "question"})


def test_a_field_of_columns_that_is_named_twice():
    assert parse_columns("instruction=q, input=q") == {"instruction": "q", "input": "q"}
    with pytest.raises(UserError, match=r"names the field output twice: give it one column$"):
        parse_columns("output=a,instruction=q, output =b")


def test_one_giant_line(read):
    rows = [ROW | {"instruction": f"{i} " + 200 * "x"} for i in range(20_000)]
    assert read("a.json", json.dumps(rows)) == rows
    assert (
        read("b.jsonl", json.dumps(ROW | {"instruction": "y" * 5_000_000}))[0]["instruction"]
        == "y" * 5_000_000
    )


# ---------------------------------------------------------------- parquet
def write_parquet(path, columns: dict):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    path.parent.mkdir(exist_ok=True)
    write_table(arrow.table(columns), path)
    return path


def test_parquet(tmp_path):
    path = write_parquet(
        tmp_path / "split=train" / "a.parquet",
        {"question": ["Add 1 and 2.", "b"], "answer": [3, 4], "more": [[1], [2]]},
    )
    assert read_table(path, {"instruction": "question"}, BOTH) == [
        ROW,
        ROW | {"instruction": "b", "answer": "4"},
    ]


def test_parquet_without_its_package(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match="need the package pyarrow: pip install pyarrow"):
        read_table(tmp_path / "a.parquet")

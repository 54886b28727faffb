"""Rows from JSON, JSONL, CSV and parquet: what is read, and every row that cannot be, by file, line and field."""

import json
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cli.options import columns_of
from data.rows import NAMED as SAID
from data.rows import read_table
from data.tables import ENDINGS
from model import UserError

BOTH = ("instruction", "answer")
ROW = {"instruction": "Add 1 and 2.", "input": "", "output": "", "answer": "3"}


@pytest.fixture
def read(tmp_path):
    """read(name, content, ...): the rows of a file with this content."""

    def write_and_read(name: str, content: str | bytes, columns=None, need=BOTH) -> list[dict]:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return read_table(path, columns, need)

    write_and_read.folder = tmp_path
    return write_and_read


@pytest.fixture
def said(read):
    """said(name, content, ...): the one line that such a file ends in."""

    def fail(*arguments, **named) -> str:
        with pytest.raises(UserError) as error:
            read(*arguments, **named)
        assert "\n" not in str(error.value)
        assert str(read.folder / arguments[0]) in str(error.value)
        return str(error.value)

    return fail


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
        "has no column 'instruction', it has 'asked', 'label', 'answer': name it with --columns instruction=COLUMN"
        in said("a.csv", content)
    )
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
    assert columns_of("instruction=q, input=q") == {"instruction": "q", "input": "q"}
    with pytest.raises(UserError, match=r"names the field output twice: give it one column$"):
        columns_of("output=a,instruction=q, output =b")


def test_one_giant_line(read):
    rows = [ROW | {"instruction": f"{i} " + 200 * "x"} for i in range(20_000)]
    assert read("a.json", json.dumps(rows)) == rows
    assert (
        read("b.jsonl", json.dumps(ROW | {"instruction": "y" * 5_000_000}))[0]["instruction"]
        == "y" * 5_000_000
    )


# ---------------------------------------------------------------- every bad row at once
def test_bad_rows_of_json_by_their_own_lines(said):
    rows = [
        ROW,
        {"instruction": "two\nlines"},
        5,
        None,
        ROW | {"answer": float("nan"), "input": {}},
        ROW | {"instruction": ["a"]},
    ]
    assert said("a.json", json.dumps(rows, indent=2)).partition(": ")[2] == (
        "5 of 6 rows cannot be used: line 8: answer is missing or empty; line 11: is a int, not an object; line 12: is a NoneType, not an object; "
        "line 13: input is a dict, not a text, answer is nan, no number to compare with; line 19: instruction is a list, not a text"
    )


def test_bad_rows_of_jsonl(said):
    lines = [
        json.dumps(ROW),
        "",
        '{"instruction": "a"',
        '{"instruction": " ", "answer": Infinity}',
        "[1]",
        '{"answer": 1, "answer": 2, "instruction": "a"}',
        "null",
    ]
    assert said("a.jsonl", "\n".join(lines)).partition(": ")[2] == (
        "5 of 6 rows cannot be used: line 3: cannot be read; line 4: instruction is missing or empty, answer is inf, no number to compare with; "
        "line 5: is a list, not an object; line 6: cannot be read; line 7: is a NoneType, not an object"
    )


def test_bad_rows_of_csv_behind_cells_of_several_lines(said):
    content = 'instruction,answer\n"one\ntwo\nthree",1\n\n"four\nfive",\nsix\nseven,7,8\n'
    assert said("a.csv", content).partition(": ")[2] == (
        "3 of 4 rows cannot be used: line 6: answer is missing or empty; line 8: answer is missing or empty, has 1 cells for 2 columns; "
        "line 9: has 3 cells for 2 columns"
    )


def test_no_more_bad_rows_are_named_than_one_reads(said):
    line = said("a.jsonl", "{}x\n" * (SAID + 3))
    assert line.count("cannot be read") == SAID
    assert line.endswith("; and 3 more")


def test_half_a_surrogate_pair(said, read):
    assert "line 1: instruction holds half a surrogate pair" in said(
        "a.json", '[{"instruction": "a\\ud83d", "answer": 1}]'
    )
    assert (
        read("a.json", '[{"instruction": "\\ud83d\\ude00", "answer": 1}]')[0]["instruction"]
        == "\U0001f600"
    )


# ---------------------------------------------------------------- files that cannot be read as a whole
@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.json", "", "is not a JSON list of rows"),
        ("a.jsonl", " \n\n", "holds no rows"),
        ("a.csv", "", "holds no rows"),
        ("a.csv", "instruction,answer\n", "holds no rows"),
        ("a.json", "[]", "holds no rows"),
        ("a.json", "5", "one object a line, call it .jsonl"),
        ("a.json", "[[1, 2], [3]]", "line 1: is a list, not an object; line 1: is a list"),
        ("a.json", '[\n{"instruction": "a", "answer": 1},\n{"instruction": "b", "ans', "line 3: cannot be read as JSON"),
        ("a.json", '[\n{"instruction": "a", "answer": 1}', "line 2: the list is not closed"),
        ("a.json", '[{"instruction": "a", "answer": 1} {}]', "a comma is missing"),
        ("a.json", '[{"instruction": "a", "answer": 1}] []', "has text after the end"),
        ("a.json", '[{"instruction": "a", "answer": 1, "answer": 2}]', "a key is there twice"),
        ("a.jsonl", "[" * 100_000, "line 1: cannot be read"),
        ("a.json", "[" * 100_000, "cannot be read as JSON"),
        ("a.json", '[{"instruction": "a", "answer": ' + "9" * 5000 + "}]", "cannot be read as JSON"),
        ("a.json", b'[{"instruction": "\xff", "answer": 1}]', "can't decode byte 0xff"),
        ("a.csv", "instruction,answer\nß,1\n".encode("latin-1"), "can't decode byte 0xdf"),
        ("a.csv", "instruction,answer\na,1\n\"b,2\nc,3\n", "line 3: cannot be read as CSV"),  # a quote that is not closed
        ("a.csv", "answer,instruction,answer\n1,a,2\n", "two columns of the same name: 'answer'"),
        ("a.md", "[]", "not from .md"),
        ("a.txt", "[]", "holds plain text, without answers"),
        ("a", "[]", "files without an ending"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_read(said, name, content, why):
    assert why in said(name, content)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_that_is_not_there_and_a_folder(tmp_path, ending):
    if ending == ".parquet":
        pytest.importorskip("pyarrow")
    with pytest.raises(UserError, match="does not exist"):
        read_table(tmp_path / f"a{ending}")
    (tmp_path / f"b{ending}").mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        read_table(tmp_path / f"b{ending}")


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


def test_bad_rows_of_parquet(tmp_path):
    path = write_parquet(
        tmp_path / "a.parquet",
        {
            "instruction": ["a", None, "c"],
            "answer": [1.0, 2.0, float("nan")],
            "input": [[1], None, None],
        },
    )
    with pytest.raises(UserError) as error:
        read_table(path, need=BOTH)
    assert str(error.value).partition(": ")[2] == (
        "3 of 3 rows cannot be used: row 1: input is a list, not a text; row 2: instruction is missing or empty; "
        "row 3: answer is nan, no number to compare with"
    )
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match="cannot be read as parquet"):
        read_table(path)


def test_parquet_without_its_package(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match="need the package pyarrow: pip install pyarrow"):
        read_table(tmp_path / "a.parquet")


# ---------------------------------------------------------------- anything at all
PIECES = st.sampled_from([
    b"[", b"]", b"{", b"}", b",", b":", b'"', b"\n", b"\r", b" ", b'"instruction"', b"instruction", b"answer", b'"answer"', b'"a"', b"1", b"NaN",
    b"null", b"-", b"\\u", b"\\ud800", b"\xef\xbb\xbf", b"\xff", b"\0", b"PAR1", b'{"instruction":"a","answer":1}', b"instruction,answer\na,1\n", b"1e999",
])  # fmt: skip


@pytest.mark.parametrize("ending", ENDINGS)
def test_any_bytes_give_rows_or_one_line(tmp_path, ending):
    if ending == ".parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / f"a{ending}"

    @settings(
        max_examples=150,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
        derandomize=True,
    )
    @given(st.one_of(st.binary(max_size=200), st.lists(PIECES, max_size=25).map(b"".join)))
    def check(content):
        path.write_bytes(content)
        try:
            rows = read_table(path, need=BOTH)
        except UserError as error:
            assert len(str(error).splitlines()) == 1, str(error)  # noqa: PT017
            return
        assert rows
        for row in rows:
            assert list(row) == ["instruction", "input", "output", "answer"]
            assert all(isinstance(text, str) for text in row.values())
            assert row["instruction"].strip()
            assert row["answer"].strip()
            json.dumps(row).encode()

    check()


def test_a_parquet_file_with_any_byte_changed(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", {"instruction": ["a", "b"], "answer": ["1", "2"]})
    whole = path.read_bytes()

    @settings(max_examples=150, deadline=None, derandomize=True)
    @given(st.integers(0, len(whole) - 1), st.integers(0, 255))
    def check(at, byte):
        path.write_bytes(whole[:at] + bytes([byte]) + whole[at + 1 :])
        try:
            read_table(path, need=BOTH)
        except UserError as error:
            assert len(str(error).splitlines()) == 1, str(error)  # noqa: PT017

    check()

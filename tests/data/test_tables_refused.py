"""Rows and files that cannot be read, by file, line and field."""

import json

import pytest
from files_of_rows import BOTH, read, said  # noqa: F401
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.rows import NAMED as SAID
from data.rows import read_table
from data.tables import ENDINGS
from model import UserError

ROW = {"instruction": "Add 1 and 2.", "input": "", "output": "", "answer": "3"}


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
        "5 of 6 rows cannot be used: line 8: answer is missing or empty; line "
        "11: is a int, not an object; line 12: is a NoneType, not an object; "
        "line 13: input is a dict, not a text, answer is nan, no number to "
        "compare with; line 19: instruction is a list, not a text"
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
        "5 of 6 rows cannot be used: line 3: cannot be read; line 4: "
        "instruction is missing or empty, answer is inf, no number to compare "
        "with; "
        "line 5: is a list, not an object; line 6: cannot be read; line 7: is "
        "a NoneType, not an object"
    )


def test_bad_rows_of_csv_behind_cells_of_several_lines(said):
    content = 'instruction,answer\n"one\ntwo\nthree",1\n\n"four\nfive",\nsix\nseven,7,8\n'
    assert said("a.csv", content).partition(": ")[2] == (
        "3 of 4 rows cannot be used: line 6: answer is missing or empty; line "
        "8: answer is missing or empty, has 1 cells for 2 columns; "
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


# ------------------------------------------------------------- files that cannot be read as a whole
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
        ("a.json", '[\n{"instruction": "a", "answer": 1},\n{"instruction": "b", "ans',
            "line 3: cannot be read as JSON"),
        ("a.json", '[\n{"instruction": "a", "answer": 1}', "line 2: the list is not closed"),
        ("a.json", '[{"instruction": "a", "answer": 1} {}]', "a comma is missing"),
        ("a.json", '[{"instruction": "a", "answer": 1}] []', "has text after the end"),
        ("a.json", '[{"instruction": "a", "answer": 1, "answer": 2}]', "a key is there twice"),
        ("a.jsonl", "[" * 100_000, "line 1: cannot be read"),
        ("a.json", "[" * 100_000, "cannot be read as JSON"),
        ("a.json", '[{"instruction": "a", "answer": ' + "9" * 5000 + "}]",
            "cannot be read as JSON"),
        ("a.json", b'[{"instruction": "\xff", "answer": 1}]', "can't decode byte 0xff"),
        ("a.csv", "instruction,answer\nß,1\n".encode("latin-1"), "can't decode byte 0xdf"),
        # a quote that is not closed
        ("a.csv", "instruction,answer\na,1\n\"b,2\nc,3\n", "line 3: cannot be read as CSV"),
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
    with pytest.raises(UserError, match=r"cannot be read|is not a file"):
        read_table(tmp_path / f"b{ending}")


# ---------------------------------------------------------------- parquet
def write_parquet(path, columns: dict):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    path.parent.mkdir(exist_ok=True)
    write_table(arrow.table(columns), path)
    return path


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
        "3 of 3 rows cannot be used: row 1: input is a list, not a text; row "
        "2: instruction is missing or empty; "
        "row 3: answer is nan, no number to compare with"
    )
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match="cannot be read as parquet"):
        read_table(path)


# ---------------------------------------------------------------- anything at all
PIECES = st.sampled_from([
    b"[", b"]", b"{", b"}", b",", b":", b'"', b"\n", b"\r", b" ", b'"instruction"',
    b"instruction", b"answer", b'"answer"', b'"a"', b"1", b"NaN",
    b"null", b"-", b"\\u", b"\\ud800", b"\xef\xbb\xbf", b"\xff", b"\0", b"PAR1",
    b'{"instruction":"a","answer":1}', b"instruction,answer\na,1\n", b"1e999",
])  # fmt: skip


@pytest.mark.parametrize("ending", ENDINGS)
def test_any_bytes_give_rows_or_one_line(tmp_path, ending):
    if ending == ".parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / f"a{ending}"

    @settings(
        max_examples=60,
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

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(st.integers(0, len(whole) - 1), st.integers(0, 255))
    def check(at, byte):
        path.write_bytes(whole[:at] + bytes([byte]) + whole[at + 1 :])
        try:
            read_table(path, need=BOTH)
        except UserError as error:
            assert len(str(error).splitlines()) == 1, str(error)  # noqa: PT017

    check()

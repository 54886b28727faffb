"""Parquet files that expand a thousandfold."""

import pytest

from data import parquet
from data.rows import read_rows
from files.errors import UserError

pyarrow = pytest.importorskip("pyarrow")


def written(path, text: str, count: int):
    """A file of `count` rows of the same text, which is stored once."""
    from pyarrow.parquet import write_table

    column = pyarrow.DictionaryArray.from_arrays(
        pyarrow.array([0] * count, pyarrow.int8()), pyarrow.array([text])
    )
    write_table(pyarrow.table({"instruction": column, "output": ["1"] * count}), path)
    return path


def test_rows_come_in_portions_and_whole(tmp_path):
    path = written(tmp_path / "a.parquet", "What?", 2 * parquet.AT_ONCE + 1)
    assert len(read_rows(path).rows) == 2 * parquet.AT_ONCE + 1


@pytest.mark.parametrize(("text", "count"), [("x" * 1000, 5000), ("x", 2000)])
def test_a_file_that_expands_is_refused(tmp_path, monkeypatch, text, count):
    monkeypatch.setattr(parquet, "MOST", 100_000)
    with pytest.raises(UserError, match="bytes and expands to too many rows"):
        read_rows(written(tmp_path / "a.parquet", text, count))


def test_a_portion_needs_no_more_than_its_memory(tmp_path):
    path = written(tmp_path / "a.parquet", "x" * 5_000_000, 256)
    with pytest.raises(UserError, match=r"needs more than 1024 MB|takes longer|makes .* bytes"):
        read_rows(path)


def test_all_portions_together_are_bounded(tmp_path, monkeypatch):
    path = written(tmp_path / "a.parquet", "x", 600)
    parquet.begin([str(path), str(path)])
    assert len(parquet.more(None)) == parquet.AT_ONCE
    parquet.budget.spent = 99.0
    with pytest.raises(UserError, match="reading its rows: longer than 10 s in all"):
        parquet.more(None)

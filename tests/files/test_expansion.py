"""Small texts of many values, pipes in place of files, and lists of a million names."""

import json
import os

import pytest

from adapters.formats import stored
from adapters.formats.stored import check_names
from adapters.parts import layer_numbers
from data.options import first_label, options_of
from data.rows import read_rows
from data.tables import entries
from files import reading
from files.errors import UserError
from files.reading import read_json
from model.tokenizer_json import FileTokenizer


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", "[" + "[]," * 200 + "0]"),
        ("a.json", "[" + "{}," * 200 + "0]"),
        ("a.jsonl", '{"a": [' + "[]," * 200 + "0]}"),
        ("a.jsonl", "\n" * 500 + "{}"),
        ("a.csv", "a,b\n" + "1111,2222\n" * 200),
        ("a.tsv", "a\tb\n" + "\t\n" * 200),
    ],
)
def test_a_text_of_many_values(tmp_path, monkeypatch, name, text):
    (tmp_path / name).write_text(text)
    list(entries(tmp_path / name))  # as short as this it may be what it likes
    monkeypatch.setattr(reading, "MOST", 1000)
    with pytest.raises(UserError, match=f"{name} has .* and expands to too many values"):
        list(entries(tmp_path / name))
    (tmp_path / "b.json").write_text(json.dumps([{"instruction": "What?", "output": "x"}] * 999))
    assert len(list(entries(tmp_path / "b.json"))) == 999


def test_files_of_a_model_are_no_larger_in_memory(tmp_path, monkeypatch):
    (tmp_path / "tokenizer.json").write_text('{"a": [' + "[]," * 100 + "0]}")
    monkeypatch.setattr(reading, "MOST", 1000)
    for read in (lambda: read_json(tmp_path / "tokenizer.json"),
                 lambda: FileTokenizer(tmp_path, set(), {})):  # fmt: skip
        with pytest.raises(UserError, match="expands to too many values"):
            read()


@pytest.mark.parametrize("name", ["a.json", "a.csv", "a.txt", "a.parquet"])
def test_a_pipe_is_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=f"{name} is not a file"):
        read_rows(tmp_path / name)
    if name == "a.json":
        with pytest.raises(UserError, match=f"{name} is not a file"):
            read_json(tmp_path / name)


def test_a_configuration_names_no_more_than_a_model_has(monkeypatch):
    monkeypatch.setattr(stored, "NAMES", 3)
    monkeypatch.setattr(stored, "NUMBERS", 99)
    check_names({"a": ["x"] * 3, "tokens": list(range(99)), "b": {"c": {"d": 1}}}, "a.json")
    for table in ({"a": ["x"] * 4}, {"b": {"a": dict.fromkeys("wxyz")}}, {"a": [{}, {}, {}, []]}):
        with pytest.raises(UserError, match="json: 'a' has 4 entries, too many for a model"):
            check_names(table, "a.json")
    with pytest.raises(UserError, match="json: 'tokens' has 100 entries"):
        check_names({"tokens": list(range(100))}, "a.json")


def test_layers_of_more_digits_than_python_reads():
    with pytest.raises(UserError, match='should be "all"'):
        layer_numbers("first " + "9" * 5000, 4)


def test_options_without_end():
    columns = {"options": "options", "answer": "answer"}
    row = {"options": ["x", "y"], "answer": "9" * 5000}  # more digits than Python reads
    assert first_label([row], columns)[0] == "A"
    assert first_label([row | {"answer": "0"}], columns)[0] == "0"
    assert len(options_of(["x"] * 1000, "A")) == 1000
    with pytest.raises(ValueError, match="has 1,001 options, too many"):
        options_of(["x"] * 1001, "A")

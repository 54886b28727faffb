"""Rows from a file: JSON, JSONL, CSV or parquet, in Alpaca form or with its columns named. Every bad row is said, all of them at once."""

import csv
import io
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

from model.errors import UserError, unknown
from model.files import distinct

FIELDS = ("instruction", "input", "output", "answer")
ENDINGS = (".json", ".jsonl", ".csv", ".parquet")
SAID = 50  # bad rows that one error names
BROKEN = object()  # stands for a line that cannot be read
SPACE = re.compile(r"[ \t\r\n]*")  # of JSON
DECODER = json.JSONDecoder(object_pairs_hook=distinct)


def read_table(path: Path, columns: dict[str, str] | None = None, need: tuple[str, ...] = ("instruction",)) -> list[dict]:
    """The rows {instruction, input, output, answer} of a file, all texts, "" where the file has nothing.

    columns: field -> the file's own name for it; fields in `need` must hold a text. Raises UserError naming file, line and field of every bad row.
    """
    columns = columns or {}
    for field in columns:
        if field not in FIELDS:
            raise unknown("field of --columns", field, FIELDS)
    numbered = list(entries(path))
    if not numbered:
        raise UserError(f"{path} holds no rows")
    where = "row" if path.suffix.lower() == ".parquet" else "line"
    there = {key: None for _, entry in numbered if isinstance(entry, dict) for key in entry if isinstance(key, str)}
    for field in FIELDS:
        name = columns.get(field, field)
        if there and name not in there and (field in need or field in columns):
            raise UserError(f"{path} has no column {name!r}, it has {', '.join(map(repr, list(there)[:12])) or 'none'}: "
                            f"name it with --columns {field}=COLUMN")
    rows, wrong = [], []
    for line, entry in numbered:
        if not isinstance(entry, dict):
            wrong.append(f"{where} {line}: {'cannot be read' if entry is BROKEN else f'is a {type(entry).__name__}, not an object'}")
            continue
        row, faults = {}, []
        for field in FIELDS:
            text, fault = text_of(entry.get(columns.get(field, field)), field)
            row[field] = text
            if not fault and field in need and not text.strip():
                fault = "is missing or empty"
            if fault:
                faults.append(f"{columns.get(field, field)} {fault}")
        if None in entry:
            faults.append(f"has {entry[None]}")
        if faults:
            wrong.append(f"{where} {line}: {', '.join(faults)}")
        rows.append(row)
    if wrong:
        more = f"; and {len(wrong) - SAID} more" if len(wrong) > SAID else ""
        raise UserError(f"{path}: {len(wrong)} of {len(numbered)} rows cannot be used: {'; '.join(wrong[:SAID])}{more}")
    return rows


def text_of(value, field: str) -> tuple[str, str]:
    """(a cell as a text, what is wrong with it, or ""). Answers may be numbers or truth values; other fields are texts."""
    if value is None:
        return "", ""
    if isinstance(value, str):
        return value, "holds half a surrogate pair" if re.search("[\ud800-\udfff]", value) else ""
    if field == "answer" and isinstance(value, bool):
        return str(value).lower(), ""
    if field == "answer" and isinstance(value, int | float):
        return (str(value), "") if isinstance(value, int) or math.isfinite(value) else ("", f"is {value}, no number to compare with")
    return "", f"is a {type(value).__name__}, not a text"


def entries(path: Path) -> Iterator[tuple[int, object]]:
    """(line, entry) of a file by its ending; BROKEN for a line that cannot be read. Raises UserError for a file that cannot be read as a whole."""
    if path.suffix.lower() not in ENDINGS:
        raise UserError(f"{path}: data is read from {', '.join(ENDINGS)} files, not from {path.suffix or 'files without an ending'}")
    if path.suffix.lower() == ".parquet":
        yield from parquet(path)
        return
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if path.suffix.lower() == ".csv":
        yield from comma_separated(path, text)
    elif path.suffix.lower() == ".jsonl":
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                yield number, parsed(line)
    else:
        yield from listed(path, text)


def parsed(text: str):
    try:
        return json.loads(text, object_pairs_hook=distinct)
    except (ValueError, RecursionError):
        return BROKEN


def listed(path: Path, text: str) -> Iterator[tuple[int, object]]:
    """The elements of a JSON list, each with the line it begins in."""
    at = SPACE.match(text).end()
    if text[at : at + 1] != "[":
        raise UserError(f"{path} is no JSON list of rows (for one object a line, call it .jsonl)")
    at, line, counted = SPACE.match(text, at + 1).end(), 1, 0
    while text[at : at + 1] != "]":
        line, counted = line + text.count("\n", counted, at), at
        try:
            entry, at = DECODER.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {line}: cannot be read as JSON: {str(error)[:150]}") from None
        yield line, entry
        at = SPACE.match(text, at).end()
        if text[at : at + 1] == ",":
            at = SPACE.match(text, at + 1).end()
        elif text[at : at + 1] != "]":
            raise UserError(f"{path}, line {line}: the list is not closed behind this row, or a comma is missing")
    if text[at + 1 :].strip():
        raise UserError(f"{path} goes on behind the end of its list")


def comma_separated(path: Path, text: str) -> Iterator[tuple[int, object]]:
    """The rows of a CSV file by the names in its first line; under None: what is wrong with the count of cells."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    names: list[str] = []
    line = 1
    try:
        for cells in reader:
            twice = [name for name in cells if cells.count(name) > 1] if not names else []
            if twice:
                raise UserError(f"{path} has two columns of the same name: {twice[0]!r:.100}")
            if names and cells:
                fault = {} if len(cells) == len(names) else {None: f"{len(cells)} cells for {len(names)} columns"}
                yield line, dict(zip(names, cells, strict=False)) | fault
            names = names or cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}, line {line}: cannot be read as CSV: {error}") from None


def parquet(path: Path) -> Iterator[tuple[int, object]]:
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UserError(f"{path}: parquet files need the package pyarrow: pip install pyarrow") from None
    try:
        with ParquetFile(path) as file:
            rows = file.read().to_pylist()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise UserError(f"{path} cannot be read as parquet: {str(error).partition(chr(10))[0]:.200}") from None
    yield from enumerate(rows, start=1)

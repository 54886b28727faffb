"""The entries of a data file: JSON, JSON lines, CSV, TSV, parquet or plain text."""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from data.parquet import rows as parquet_rows
from files.errors import UserError
from files.reading import JSON_SIGNS, check_expansion, read_file, reject_duplicate_keys

ENDINGS = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".txt")
BROKEN = object()  # an entry that cannot be read
ROW_SIGNS = {"\n": 300, "\r": 300, ",": 60, ";": 60, "\t": 60}  # bytes of rows and cells, a sign
SPACE = re.compile(r"[ \t\r\n]*")  # of JSON
DECODER = json.JSONDecoder(object_pairs_hook=reject_duplicate_keys)


def entries(path: Path) -> Iterator[tuple[str, object]]:
    """(where it stands, such as "line 3"; the entry) for every entry of a file.

    The ending of the name decides how the file is read; JSON lines in a .json file and a JSON list
    in a .jsonl file are recognised. An entry that cannot be read is BROKEN. A .txt file is one
    entry {"text": ...}. Raises UserError for a file that cannot be read as a whole.
    """
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        named = path.suffix or "files without an ending"
        raise UserError(f"{path}: data is read from {', '.join(ENDINGS)} files, not from {named}")
    if ending == ".parquet":
        yield from parquet(path)
        return
    text = read_text(path)
    if ending != ".txt":
        check_expansion(path, text, JSON_SIGNS if ending in (".json", ".jsonl") else ROW_SIGNS)
    first = text[SPACE.match(text).end() :][:1]
    if ending == ".txt":
        yield "line 1", {"text": text}
    elif ending in (".csv", ".tsv"):
        yield from comma_separated(path, text, "\t" if ending == ".tsv" else delimiter_of(text))
    elif ending == ".jsonl" and not (first == "[" and is_list_of_rows(text)):
        yield from json_lines(text)
    elif ending == ".json" and first == "{":
        yield from json_objects(path, text)
    else:
        yield from json_list(path, text, SPACE.match(text).end())


def read_text(path: Path) -> str:
    try:
        return read_file(path).decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except UserError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        utf8 = "; save it as UTF-8" * isinstance(error, UnicodeDecodeError)
        raise UserError(f"{path} cannot be read: {error}{utf8}") from None


def parse_json(text: str):
    """The JSON value of a text, or BROKEN."""
    try:
        return json.loads(text, object_pairs_hook=reject_duplicate_keys)
    except (ValueError, RecursionError):
        return BROKEN


def json_lines(text: str) -> Iterator[tuple[str, object]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"line {number}", parse_json(line)


def is_list_of_rows(text: str) -> bool:
    """Whether a text that begins with [ is one JSON list, and not a list on each line."""
    line = parse_json(text.lstrip().partition("\n")[0])
    holds_rows = isinstance(line, list) and any(isinstance(entry, dict) for entry in line)
    return line is BROKEN or holds_rows


def json_objects(path: Path, text: str) -> Iterator[tuple[str, object]]:
    """A .json file that begins with an object: JSON lines, or an object with one list of rows."""
    whole = parse_json(text)
    if whole is BROKEN:
        yield from json_lines(text)
        return
    lists = [value for value in whole.values() if isinstance(value, list) and value]
    if len(lists) == 1 and all(isinstance(entry, dict) for entry in lists[0]) and len(whole) == 1:
        yield from ((f"row {number}", entry) for number, entry in enumerate(lists[0], start=1))
    else:
        yield "line 1", whole


def json_list(path: Path, text: str, at: int) -> Iterator[tuple[str, object]]:
    """The elements of a JSON list that begins at this character, each with its first line, or
    with its number where the list is on one line."""
    if text[at : at + 1] != "[":
        raise UserError(
            f"{path} is not a JSON list of rows (for one object a line, call it .jsonl)"
        )
    several_on_one_line = "\n" not in text.strip() and text.count("}", at) > 1
    at, line, counted, number = SPACE.match(text, at + 1).end(), 1, 0, 0
    while text[at : at + 1] != "]":
        line, counted = line + text.count("\n", counted, at), at
        try:
            entry, at = DECODER.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            reason = str(error)[:150]
            raise UserError(f"{path}, line {line}: cannot be read as JSON: {reason}") from None
        number += 1
        yield f"row {number}" if several_on_one_line else f"line {line}", entry
        at = SPACE.match(text, at).end()
        if text[at : at + 1] == ",":
            at = SPACE.match(text, at + 1).end()
        elif text[at : at + 1] != "]":
            raise UserError(
                f"{path}, line {line}: the list is not closed after this row, or a comma is missing"
            )
    if text[at + 1 :].strip():
        raise UserError(f"{path} has text after the end of its list")


def delimiter_of(text: str) -> str:
    """What separates the cells of a CSV file: a comma, or a semicolon or tab if its header has no
    comma."""
    header = text.lstrip("\r\n").partition("\n")[0]
    return next((sign for sign in (",", ";", "\t") if sign in header), ",")


def comma_separated(path: Path, text: str, delimiter: str) -> Iterator[tuple[str, object]]:
    """The rows of a CSV file by the names in its first line, without the spaces around names.

    A row with too few or too many cells has the fault under the key None.
    """
    options: dict = {"delimiter": delimiter, "strict": True}
    header = text.lstrip("\r\n").partition("\n")[0]
    options["skipinitialspace"] = f"{delimiter} " in header  # a, "b": else the quotes are text
    if delimiter == "\t" and not is_quoted(text, options):
        options["quoting"] = csv.QUOTE_NONE
    reader = csv.reader(io.StringIO(text, newline=""), **options)
    names: list[str] = []
    line = 1
    try:
        for cells in reader:
            if not names:
                names = [cell.strip() for cell in cells]
                if twice := [name for name, count in Counter(names).items() if count > 1]:
                    raise UserError(f"{path} has two columns of the same name: {twice[0]!r:.100}")
            elif cells:
                row: dict = dict(zip(names, cells, strict=False))
                if len(cells) != len(names):
                    row[None] = f"has {len(cells)} cells for {len(names)} columns"
                yield f"line {line}", row
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}, line {line}: cannot be read as CSV: {error}") from None


def is_quoted(text: str, options: dict) -> bool:
    """Whether quotation marks can be read as those around cells; in published TSV they are text."""
    try:
        for _ in csv.reader(io.StringIO(text, newline=""), **options):
            pass
    except csv.Error:
        return False
    return True


def parquet(path: Path) -> Iterator[tuple[str, object]]:
    if find_spec("pyarrow") is None:
        raise UserError(f"{path}: parquet files need the package pyarrow: pip install pyarrow")
    if not path.exists():
        raise UserError(f"{path} does not exist")
    yield from ((f"row {number}", row) for number, row in enumerate(parquet_rows(path), start=1))

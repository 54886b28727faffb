"""Rows {instruction, input, output, answer} from a data file, in the forms that people publish.

Besides the four texts a row may hold `history` (the messages before the instruction, see
data/conversations.py). docs/own-data.md lists the forms.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data.columns import FIELDS, NAMES, Layout, is_chat, layout_of
from data.conversations import Unusable, conversation_row, history_of, message_of, row_of
from data.options import first_label, options_of
from data.tables import BROKEN, entries
from files.errors import UserError

NAMED = 50  # rows that an error names


@dataclass(frozen=True)
class Table:
    """The rows of a file that can be used.

    left_out: where and why, for each of the `total` entries that cannot be used. notes: how the
    columns were read. is_text: the rows are plain text, in `output`, without a prompt.
    answer_is_output: one column is both, and not in the form of GSM8K.
    """

    rows: list[dict]
    left_out: list[str]
    notes: list[str]
    total: int
    is_text: bool = False
    answer_is_output: bool = False


def read_table(
    path: Path, columns: dict[str, str] | None = None, need: Sequence[str] = ("instruction",)
) -> list[dict]:
    """The rows of a file in which every row can be used.

    Raises UserError that names every row that cannot.
    """
    table = read_rows(path, columns, need)
    if table.left_out:
        raise UserError(unusable(path, table))
    return table.rows


def unusable(path: Path, table: Table) -> str:
    """The rows that cannot be used, in one line."""
    more = f"; and {len(table.left_out) - NAMED} more" if len(table.left_out) > NAMED else ""
    named = "; ".join(table.left_out[:NAMED])
    return f"{path}: {len(table.left_out)} of {table.total} rows cannot be used: {named}{more}"


def read_rows(
    path: Path, columns: dict[str, str] | None = None, need: Sequence[str] = ("instruction",)
) -> Table:
    """The rows of a file, all texts, "" where the file has nothing.

    columns: field -> the file's own name for it; without it the names of data/columns.py are
    found. need: fields that must hold a text. Raises UserError for a file that cannot be read,
    or holds no row that can be used.
    """
    listed = list(entries(path))
    if not listed:
        raise UserError(f"{path} holds no rows")
    first: dict = {}
    for _, entry in listed:
        for name, value in entry.items() if isinstance(entry, dict) else ():
            if isinstance(name, str) and first.get(name) in (None, "", []):
                first[name] = value
    layout = Layout("rows", {}, [])
    if first:
        layout = layout_of(path, first, list(first), columns or {}, need)
    if "answer" in need and layout.form != "rows":
        what = "conversations" if layout.form == "chat" else "plain text"
        raise UserError(f"{path} holds {what}, without answers that could be measured")
    label, said = first_label([entry for _, entry in listed], layout.columns)
    forms = {"rows": partial(instruction_row, label=label), "chat": chat_row, "text": text_row}
    read = forms[layout.form]
    results = [(where, *result(read, entry, layout)) for where, entry in listed]
    final = split_final_answers([row for _, row, _ in results if row])
    needed = need if layout.form == "rows" else ("output",)
    rows, left_out = [], []
    for where, row, faults in results:
        for field in needed if row else ():
            if field not in faults and not row[field].strip():
                if layout.form == "rows":
                    faults[field] = "is missing or empty"
                elif layout.form == "text":
                    faults[""] = f"{layout.columns['text']} is missing or empty"
                else:
                    faults[""] = "the last assistant turn is empty"
        if faults:
            left_out.append(f"{where}: {fault_text(faults, layout.columns)}")
        else:
            rows.append(row)
    answer = layout.columns.get("answer")
    shared = answer is not None and answer == layout.columns.get("output")
    table = Table(
        rows, left_out, [*layout.notes(), *said, *final], len(listed),
        is_text=layout.form == "text", answer_is_output=shared and not final,
    )  # fmt: skip
    if not rows:
        raise UserError(unusable(path, table))
    return table


def fault_text(faults: dict[str, str], columns: dict[str, str]) -> str:
    """What is wrong with a row, by field ("" for the row as a whole, said last)."""
    named = [field for field in NAMES if field in faults]
    parts = [f"{columns.get(field, field)} {faults[field]}" for field in named]
    return ", ".join([*parts, *filter(None, [faults.get("")])])


def result(read, entry, layout: Layout) -> tuple[dict | None, dict[str, str]]:
    """(the row of an entry or None, field -> what is wrong with it)."""
    if entry is BROKEN:
        return None, {"": "cannot be read"}
    if not isinstance(entry, dict):
        return None, {"": f"is a {type(entry).__name__}, not an object"}
    try:
        row, faults = read(entry, layout.columns)
    except Unusable as error:
        return None, {"": str(error)}
    return row, faults | ({"": entry[None]} if None in entry else {})


def cell(entry: dict, columns: dict[str, str], field: str):
    """What an entry holds for a field; None where the file has no column for it."""
    return entry.get(columns[field]) if field in columns else None


def texts_of(
    entry: dict, columns: dict[str, str], fields: Sequence[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """(field -> text, field -> what is wrong with it) of these fields of an entry."""
    texts, faults = {}, {}
    for field in fields:
        texts[field], fault = text_of(cell(entry, columns, field), field)
        if fault:
            faults[field] = fault
    return texts, faults


def chat_row(entry: dict, columns: dict[str, str]) -> tuple[dict, dict[str, str]]:
    texts, faults = texts_of(entry, columns, ("system",))
    value = cell(entry, columns, "messages")
    if value is None:
        raise Unusable(f"{columns['messages']} is missing or empty")
    return conversation_row(value, texts["system"]), faults


def text_row(entry: dict, columns: dict[str, str]) -> tuple[dict, dict[str, str]]:
    texts, faults = texts_of(entry, columns, ("text",))
    if "text" in faults:
        raise Unusable(f"{columns['text']} {faults['text']}")
    return {"instruction": "", "input": "", "output": texts["text"], "answer": ""}, {}


def instruction_row(
    entry: dict, columns: dict[str, str], label: str
) -> tuple[dict, dict[str, str]]:
    """An Alpaca row under any names, with system and earlier turns, or prompt and completion.

    label: of the first option, where a row has options without labels.
    """
    asked = cell(entry, columns, "instruction")
    if isinstance(asked, list) and asked and is_chat(asked):
        return prompt_row(asked, cell(entry, columns, "output")), {}
    texts, faults = texts_of(entry, columns, (*FIELDS, "system"))
    row = {field: texts[field] for field in FIELDS}
    if not row["instruction"].strip() and row["input"].strip():
        row["instruction"], row["input"] = row["input"], ""
    if "options" in columns:
        options = options_of(cell(entry, columns, "options"), label)
        row["instruction"] = "\n".join([row["instruction"], *options])
    history = history_of(cell(entry, columns, "history"))
    if texts["system"].strip():
        history.insert(0, {"role": "system", "content": texts["system"]})
    return row | ({"history": history} if history else {}), faults


def prompt_row(asked: list, replied) -> dict:
    """A prompt of messages and a completion of messages or of text (TRL's form)."""
    messages = [message_of(message) for message in asked]
    if isinstance(replied, str):
        replied = [{"role": "assistant", "content": replied}]
    if not isinstance(replied, list):
        raise Unusable("has a prompt of messages without a completion")
    earlier = [one | {"weight": 0} if one["role"] == "assistant" else one for one in messages]
    return row_of([*earlier, *map(message_of, replied)])


def text_of(value, field: str) -> tuple[str, str]:
    """(a cell as a text, what is wrong with it or ""). Numbers and truth values are written out;
    a list of texts is an input of several lines."""
    if value is None:
        return "", ""
    if isinstance(value, str):
        fault = "holds half a surrogate pair" if re.search("[\ud800-\udfff]", value) else ""
        return value, fault
    if isinstance(value, bool):
        return str(value).lower(), ""
    if isinstance(value, int | float):
        finite = isinstance(value, int) or math.isfinite(value)
        return (str(value), "") if finite else ("", f"is {value}, no number to compare with")
    lines = field == "input" and isinstance(value, list)
    if lines and all(isinstance(line, str) for line in value):
        return "\n".join(value), ""
    return "", f"is a {type(value).__name__}, not a text"


def split_final_answers(rows: list[dict]) -> list[str]:
    """Take the answer from after the #### that ends a rationale, as GSM8K has it.

    Happens in place where most rows have that form, in their answer or, without answers, in their
    output. Returns what is to be said of it.
    """
    for field in ("answer", "output"):
        filled = [row for row in rows if row[field].strip()]
        final = [final_answer(row[field]) for row in filled]
        if field == "output" and any(row["answer"].strip() for row in rows):
            return []
        if filled and sum(map(bool, final)) > len(filled) / 2:
            for row, answer in zip(filled, final, strict=True):
                if field == "answer" and not row["output"].strip():
                    row["output"] = row["answer"]
                row["answer"] = answer
            return [f"answers: what comes after #### at the end of {field}"]
    return []


def final_answer(text: str) -> str:
    """What comes after #### in the last line of a text, else ""."""
    last_line = text.rstrip().rpartition("\n")[2]
    return last_line.rpartition("####")[2].strip() if "####" in last_line else ""

"""Which column of a file is which field of a row."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from files.errors import UserError, unknown

FIELDS = ("instruction", "input", "output", "answer")  # of every row
NAMES = {  # field -> the column names that stand for it; of several that are there, the first
    "messages": ("messages", "conversations", "conversation"),
    "text": ("text",),
    "instruction": ("instruction", "question", "prompt", "query", "problem"),
    "input": ("input", "context"),
    "output": ("output", "response", "completion", "solution", "rationale"),
    "answer": ("answer", "correct"),
    "system": ("system", "system_prompt"),
    "history": ("history",),
    "options": ("options", "choices"),
}
OF_A_ROW = (*FIELDS, "system", "history", "options")


@dataclass(frozen=True)
class Layout:
    """How the columns of one file are read.

    form: "rows" (instruction, input, output ...), "chat" (messages) or "text" (no prompt).
    """

    form: str
    columns: dict[str, str]  # field -> column
    unused: list[str]

    def notes(self) -> list[str]:
        """What a user should know: columns read under another name, columns not used."""
        renamed = [f"{key} from {name!r}" for key, name in self.columns.items() if name != key]
        lines = [f"columns: {', '.join(renamed)}"] if renamed else []
        if self.unused:
            more = f" and {len(self.unused) - 8} more" if len(self.unused) > 8 else ""
            lines.append(f"columns not used: {', '.join(map(repr, self.unused[:8]))}{more}")
        return lines


def layout_of(
    path: Path, first: dict, names: Sequence[str], given: dict[str, str], need: Sequence[str]
) -> Layout:
    """The layout of a file with columns `names`.

    first: column -> its first value that is not empty. given: field -> column, as the user says.
    need: the fields that must be there in a file of rows. Raises UserError for a column that is
    missing, an unknown field, and preference pairs.
    """
    for field in given:
        if field not in NAMES:
            raise unknown("field of --columns", field, NAMES)
    columns = {field: present(path, field, name, names) for field, name in given.items()}
    if not given:
        refuse_preferences(path, first, names)
    form = form_of(first, names, columns)
    fields = {"rows": OF_A_ROW, "chat": ("messages", "system"), "text": ("text",)}[form]
    for field in columns:
        if field not in fields:
            raise UserError(
                f"--columns {field}={columns[field]}: {path} is read as {form}, "
                f"which has {', '.join(fields)}"
            )
    for field in fields:
        if field not in columns:
            name = find(field, names, columns.values())
            if name is not None:
                columns[field] = name
    if form == "rows":
        complete_rows(path, names, columns, need)
    used = set(columns.values())
    return Layout(form, columns, [name for name in names if name not in used])


def form_of(first: dict, names: Sequence[str], given: dict[str, str]) -> str:
    """How a file is read: as the user's columns say, else by the columns that are there."""
    if "messages" in given:
        return "chat"
    if "text" in given:
        return "text"
    if given:
        return "rows"
    chat = find("messages", names, ())
    if chat is not None and is_chat(first.get(chat)):
        return "chat"
    asks = find("instruction", names, ()) or find("input", names, ())
    replies = find("output", names, ()) or find("answer", names, ())
    return "text" if find("text", names, ()) and not (asks and replies) else "rows"


def complete_rows(path: Path, names: Sequence[str], columns: dict, need: Sequence[str]) -> None:
    """Fill what files leave to be understood: an input without an instruction is the instruction,
    an answer without an output is the output. Raises UserError for a field that is missing."""
    if "instruction" not in columns and "input" in columns:
        columns["instruction"] = columns.pop("input")
    if "output" in need and "output" not in columns and "answer" in columns:
        columns["output"] = columns["answer"]
    if "answer" in need and "answer" not in columns and "output" in columns:
        columns["answer"] = columns["output"]
    for field in need:
        if field not in columns:
            present(path, field, field, names)


def find(field: str, names: Sequence[str], taken) -> str | None:
    """The column that holds a field, in any case of letters; None where there is none."""
    by_lower = {name.lower(): name for name in reversed(names) if name not in taken}
    return next((by_lower[name] for name in NAMES[field] if name in by_lower), None)


def present(path: Path, field: str, name: str, names: Sequence[str]) -> str:
    """The name of a column that must be there. Raises UserError where it is missing."""
    if name in names:
        return name
    there = ", ".join(map(repr, list(names)[:12])) or "none"
    raise UserError(
        f"{path} has no column {name!r}, it has {there}: name it with --columns {field}=COLUMN"
    )


def is_chat(value) -> bool:
    """Whether a value is a list of messages, as such or as JSON text."""
    if isinstance(value, str):
        return value.lstrip().startswith("[{")
    return isinstance(value, list) and all(isinstance(message, dict) for message in value)


def refuse_preferences(path: Path, first: dict, names: Sequence[str]) -> None:
    """Raise UserError for preference data, saying what of it can be trained on."""
    lower = {name.lower(): name for name in names}
    ask = find("instruction", names, ())
    if {"chosen", "rejected"} <= lower.keys():
        chosen = lower["chosen"]
        if is_chat(first.get(chosen)):
            use = f"messages={chosen}"
        else:
            use = f"instruction={ask},output={chosen}" if ask else f"text={chosen}"
        raise UserError(
            f"{path} holds preference pairs (chosen, rejected), which are not trained on as pairs; "
            f"to train on the chosen answers alone: --columns {use}"
        )
    label = lower.get("label")
    if {"prompt", "completion"} <= lower.keys() and isinstance(first.get(label), bool):
        raise UserError(
            f"{path} holds completions labelled good or bad (column {label!r}): keep the good ones "
            "in a file without that column, or use all of them with "
            f"--columns instruction={lower['prompt']},output={lower['completion']}"
        )

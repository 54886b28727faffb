"""A user's own files as one data set: what is trained on, and what is held out to measure."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data.answer_kinds import kind_of_answers
from data.rows import Table, read_rows, unusable
from data.split import random_split, without_same
from files.errors import UserError

TEST_SHARE = 0.1  # of a user's rows, held out to measure on
NEED = {"train": ("instruction", "output"), "test": ("instruction", "answer")}  # filled fields


@dataclass(frozen=True)
class Data:
    """Rows {instruction, input, output, answer}; `tests` by set name, the main one first."""

    name: str
    train: list[dict]
    tests: dict[str, list[dict]]
    reads: dict[str, str] = field(default_factory=dict)  # set -> kind of its answers, if own data
    from_forms: bool = False  # made from the same sentence forms: alike, but never the same
    held_out: list[dict] = field(default_factory=list)  # rows without answers: loss is measured
    is_own: bool = False  # a file of the user's or a data set of the hub
    is_text: bool = False  # plain text: no prompt, loss on all of it
    notes: list[str] = field(default_factory=list)  # how the files were read
    left_out: list[str] = field(default_factory=list)  # rows that cannot be used, and why

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self.train).encode()).hexdigest()[:16]


@dataclass
class Reader:
    """Reads the files of one data set; keeps what is to be said of them and the rows left out."""

    columns: dict[str, str]
    strict: bool = False
    notes: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def read(self, path: Path, need: Sequence[str]) -> Table:
        """The rows of a file. Raises UserError, with `strict` also for a row left out."""
        table = read_rows(path, self.columns, need)
        if table.left_out and self.strict:
            raise UserError(f"{unusable(path, table)} (--strict-rows)")
        for note in table.notes:
            if f"{path.name}: {note}" not in self.notes:
                self.notes.append(f"{path.name}: {note}")
        if table.left_out:
            self.left_out += [f"{path.name}, {why}" for why in table.left_out]
            more = "; ..." if len(table.left_out) > 3 else ""
            self.notes.append(
                f"{path.name}: {len(table.left_out):,} of {table.total:,} rows cannot be used and "
                f"are left out: {'; '.join(table.left_out[:3])}{more}"
            )
        return table


def own_data(
    name: str, files: dict[str, list[Path]], seed: int, reader: Reader, share: float
) -> Data:
    """Data of a user's files.

    What is measured: the test split where there is one, else a share of the training rows: their
    answers where most rows have one that can be compared, else the loss on them.
    """
    title, say = Path(name).stem, reader.notes.append
    table = read_split(files.get("train", []), reader, NEED["train"])
    train, is_text = table.rows, table.is_text
    if table.answer_is_output and kind_of_answers(row["answer"] for row in train) == "text":
        train = [row | {"answer": ""} for row in train]  # too long to be compared word for word
    test, held_out = [], []
    for split in ("test", "validation"):
        if files.get(split) and not (test or held_out):
            try:
                test = read_split(files[split], reader, NEED["test"]).rows
            except UserError as no_answers:
                if is_text or not train:
                    raise
                try:
                    held_out = read_split(files[split], reader, NEED["train"]).rows
                except UserError:
                    raise no_answers from None
    if not (test or held_out or is_text) and train and share > 0:
        labelled = [row for row in train if row["answer"].strip()]
        total = len(train)
        if len(labelled) * 2 >= total:
            rest = [row for row in train if not row["answer"].strip()]
            labelled, test = random_split(labelled, share, seed)
            fresh = without_same(rest, test)
            train = labelled + fresh
            if rest:
                say(f"{len(rest):,} of {total:,} rows have no answer and are only trained on")
            if len(fresh) < len(rest):
                asked = len(rest) - len(fresh)
                say(f"{asked:,} of these ask what a held-out row asks and are left out")
        else:
            train, held_out = random_split(train, share, seed)
            if labelled:
                some = f"only {len(labelled):,} of {total:,} rows have an answer"
                say(f"{some}: the loss is measured, not answers")
        if not (test or held_out):
            say(f"too few rows to hold out {100 * share:g}%: nothing is measured")
        if not train:
            raise UserError(
                f"test_share = {share} leaves no row of {name} to train on (rows that ask the "
                "same, whatever the system message, are held out together): 0 trains on all"
            )
    kind = kind_of_answers(row["answer"] for row in [*train, *test] if row["answer"].strip())
    return Data(
        name, train, {title: test} if test else {}, {title: kind} if test else {},
        held_out=held_out, is_own=True, is_text=is_text,
    )  # fmt: skip


def read_split(files: list[Path], reader: Reader, need: Sequence[str]) -> Table:
    """The files of one split as one table. Raises UserError."""
    tables = [reader.read(path, need) for path in files]
    kinds = {table.is_text for table in tables}
    if len(kinds) > 1:
        raise UserError(f"{files[0].parent} mixes plain text with rows that have a prompt")
    rows, total = [row for table in tables for row in table.rows], sum(t.total for t in tables)
    shared = bool(tables) and all(table.answer_is_output for table in tables)
    return Table(rows, [], [], total, is_text=kinds == {True}, answer_is_output=shared)

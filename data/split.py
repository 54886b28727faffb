"""Train and test: the paper's own split, byte for byte, and seeded splits of other data."""

import json
import random
from pathlib import Path

from data.leakage import questions, words
from files.errors import UserError

# data set -> its file under dataset/, in the order the paper's script went through them
MATH_SETS = {
    name: f"{name}/{name.lower()}_1.json"
    for name in ("AddSub", "MultiArith", "SingleEq", "AQuA", "gsm8k", "SVAMP")
}


def paper_split(folder: str | Path) -> dict[str, tuple[list[dict], list[dict]] | list[dict]]:
    """The v1 split of LLM-Adapters: {"AddSub": (train rows, test rows), ..., "union": train rows}.

    folder: holds dataset/ as the paper's repository does. Rows are {instruction, input, output,
    answer}. 80% of each set are for training; `random.seed(2023)` is called once, as the repository
    did, and the union is shuffled: the md5 of json.dumps(union, indent=4) is
    4a8f89d116cec1b31c1a9353bd4d1538.
    Raises UserError for missing or malformed files.
    """
    rng = random.Random(2023)  # the sequence of random.seed(2023), not the global generator
    split: dict = {}
    union: list[dict] = []
    for name in MATH_SETS:
        rows = paper_rows(folder, name)
        rng.shuffle(rows)
        cut = int(0.8 * len(rows))
        split[name] = (rows[:cut], rows[cut:])
        union += rows[:cut]
    rng.shuffle(union)
    split["union"] = union
    return split


def paper_rows(folder: str | Path, name: str) -> list[dict]:
    """The rows of one of the six math sets in file order; the output is the rationale.

    Raises UserError.
    """
    path = Path(folder) / "dataset" / MATH_SETS[name]
    items = read_rows(path)
    # the labels as the original set has them, as strings
    labels = read_rows(path.with_name("AddSub.json")) if name == "AddSub" else None
    try:
        answers = [item["answer"] for item in items]
        answers = answers if labels is None else [item["lSolutions"][0] for item in labels]
        rows = [
            {"instruction": item["question"], "input": "", "output": item["chain-of-thought"]}
            | {"answer": str(answer)}
            for item, answer in zip(items, answers, strict=True)
        ]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        why = f"{type(error).__name__}: {error}"
        raise UserError(f"{path} is not the paper's file ({why})") from None
    for number, row in enumerate(rows, start=1):
        for key, what in (("instruction", "question"), ("output", "rationale")):
            if not isinstance(row[key], str):
                raise UserError(f"{path}, item {number}: the {what} is not a text")
    return rows


def random_split(rows: list[dict], share: float, seed: int) -> tuple[list[dict], list[dict]]:
    """(train, test) rows: `share` of them test, drawn by the seed.

    Rows that ask the same stay on one side (`same_questions`), so that no question is in both. Of
    these, more than the share stay in training where there are fewer of another question.
    """
    together: dict[int, list[dict]] = {}
    for row, first in zip(rows, same_questions(rows), strict=True):
        together.setdefault(first, []).append(row)
    keys = list(together)
    random.Random(f"split {seed}").shuffle(keys)
    wanted = round(share * len(rows))
    largest = max(wanted, min(map(len, together.values()), default=0))
    train, test = [], []
    for key in keys:
        is_test = len(test) < wanted and len(together[key]) <= largest
        (test if is_test else train).extend(together[key])
    return train, test


def same_questions(rows: list[dict]) -> list[int]:
    """For each row the number of the first row that it asks the same as, itself or through others.

    Two rows ask the same where they are twins (data/leakage.py), or where one is a question that
    the other answers in an earlier turn.
    """
    first = list(range(len(rows)))

    def root(number: int) -> int:
        while first[number] != number:
            first[number] = first[first[number]]
            number = first[number]
        return number

    def join(one: int, other: int) -> None:
        low, high = sorted((root(one), root(other)))
        first[high] = low

    holders: dict[str | tuple[str, ...], int] = {}
    for number, row in enumerate(rows):
        nothing = tuple(message["content"] for message in row.get("history", ()))
        join(number, holders.setdefault(words(row) or nothing, number))
    for number, row in enumerate(rows):
        for question in questions(row) if row.get("history") else ():
            if question in holders:
                join(number, holders[question])
    return [root(number) for number in range(len(rows))]


def without_same(rows: list[dict], others: list[dict]) -> list[dict]:
    """The rows that ask the same as none of the others, as `same_questions` says."""
    asked = {words(row) for row in others}
    answered = {question for row in others for question in questions(row)}
    return [row for row in rows if words(row) not in answered and asked.isdisjoint(questions(row))]


def read_rows(path: Path) -> list[dict]:
    """A JSON list of objects. Raises UserError naming the file."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing: --data-dir should name the folder that holds dataset/"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from None
    if (
        not isinstance(rows, list)
        or len(rows) < 2
        or not all(isinstance(row, dict) for row in rows)
    ):
        raise UserError(f"{path} is not a list of two or more JSON objects")
    return rows

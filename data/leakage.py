"""Which test problems were seen in training: word for word, or nearly so.

twin   the same words and signs of arithmetic in the same order; case and punctuation aside
near   at least 60% of the three-word runs of both texts are in both (Jaccard, Broder 1997)
"""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass

# "3 + 4" is not "3 - 4", but "a well-known" is "a well known"
WORD = re.compile(r"[^\W_]+|[+=<>^]|(?<!\*)[*/](?=\s*\d)|(?<![^\W\d_])-(?=\s*\d)")
NEAR = 0.6
COMMON = 0.02  # runs in more than this share of the test problems are not compared
SEARCHED = 3  # words that a problem needs to be searched in plain text: fewer are there by chance
EARLIER = 20  # times the length of a chat that is compared as what precedes its turns
SEEN = 0.5  # a test set with more than this share of twins in training is training data


@dataclass(frozen=True)
class Leak:
    """Test problems that training saw: number -> ("twin" or "near", number of the training row)."""

    total: int
    found: dict[int, tuple[str, int]]

    def count(self, kind: str) -> int:
        return sum(one == kind for one, _ in self.found.values())

    def table(self) -> dict:
        pairs = sorted(self.found.items())
        found = [{"test": number, "train": row, "kind": kind} for number, (kind, row) in pairs]
        counts = {"twins": self.count("twin"), "near": self.count("near")}
        return {"total": self.total, **counts, "found": found}


def leakage(
    train: list[dict], tests: dict[str, list[dict]], near: bool = True, is_text: bool = False
) -> dict[str, Leak]:
    """The Leak of each test set.

    near: False looks for twins alone (for problems that are all made from the same forms).
    is_text: the training rows are plain text, in which each problem is searched word for word; no
    near twins are looked for.
    """
    problems = {words(row) for rows in tests.values() for row in rows}
    seen = in_texts(problems, train) if is_text else in_rows(problems, train)
    near = near and not is_text
    found: dict[str, dict[int, tuple[str, int]]] = {name: {} for name in tests}
    open_: list[tuple[str, int, list[str]]] = []
    for name, rows in tests.items():
        for number, one in enumerate(rows):
            text = words(one)
            if text in seen:
                found[name][number] = ("twin", seen[text])
            elif near:
                open_.append((name, number, runs(text)))
    for place, row in nearest([grams for *_, grams in open_], train).items():
        name, number, _ = open_[place]
        found[name][number] = ("near", row)
    return {name: Leak(len(rows), found[name]) for name, rows in tests.items()}


def in_rows(problems: set[str], train: list[dict]) -> dict[str, int]:
    """Words of a problem -> the first training row that asks it."""
    seen: dict[str, int] = {}
    for number, row in enumerate(train):
        for text in questions(row):
            if text in problems:
                seen.setdefault(text, number)
    return seen


def in_texts(problems: set[str], train: list[dict]) -> dict[str, int]:
    """Words of a problem of at least SEARCHED words -> the first plain text that holds them as a
    run of words."""
    tree: dict = {}  # word -> what follows it; "" -> the problem that ends there
    for problem in problems:
        parts = problem.split()
        node = tree
        for part in parts if len(parts) >= SEARCHED else ():
            node = node.setdefault(part, {})
        if node is not tree:
            node[""] = problem
    seen: dict[str, int] = {}
    for number, row in enumerate(train if tree else []):
        parts = words({"instruction": row["output"]}).split()
        for start in range(len(parts)):
            node, end = tree, start
            while end < len(parts) and (node := node.get(parts[end])):
                end += 1
                if "" in node:
                    seen.setdefault(node[""], number)
    return seen


def nearest(problems: list[list[str]], train: list[dict]) -> dict[int, int]:
    """Number of a problem -> the training row most like it, where that is at least NEAR."""
    often = Counter(run for grams in problems for run in set(grams))
    common = {run for run, count in often.items() if count > max(10, COMMON * len(problems))}
    own = [set(grams) - common for grams in problems]
    holders = defaultdict(list)
    for place, grams in enumerate(own):
        for run in grams:
            holders[run].append(place)
    best: dict[int, tuple[float, int]] = {}
    for row, one in enumerate(train if problems else []):
        for text in questions(one):
            grams = set(runs(text)) - common
            shared = Counter(place for run in grams for place in holders.get(run, ()))
            for place, count in shared.items():
                alike = count / (len(grams) + len(own[place]) - count)
                if alike >= NEAR and alike > best.get(place, (0.0, 0))[0]:
                    best[place] = (alike, row)
    return {place: row for place, (_, row) in best.items()}


def words(row: dict) -> str:
    """Instruction and input of a row, and what a chat has before them but system messages:
    words and signs of arithmetic alone; where there is none of these, all signs."""
    before = [one for one in row.get("history", ()) if one["role"] != "system"]
    earlier = " ".join(message["content"] for message in before)
    text = f"{earlier} {row['instruction']} {row.get('input') or ''}".lower().replace("\u2212", "-")
    return " ".join(WORD.findall(text) or text.split())


def questions(row: dict) -> list[str]:
    """The words of everything that a row to train on answers: of the row, and in a chat of each
    user turn, by itself and with what precedes it.

    What precedes a turn is left out once it adds up to EARLIER times the chat, after 40 messages
    or more: a chat of a hundred thousand would take hours.
    """
    history = row.get("history", ())
    texts = [words(row)]
    lengths = [1 + len(message["content"]) for message in history]
    before, left = 0, EARLIER * sum(lengths)
    for place, message in enumerate(history):
        if message["role"] == "user":
            turn = {"instruction": message["content"]}
            texts.append(words(turn))
            left -= before
            if left >= 0:
                texts.append(words(turn | {"history": history[:place]}))
        before += lengths[place]
    if history:
        texts.append(words({"instruction": row["instruction"], "input": row.get("input")}))
    return [text for text in dict.fromkeys(texts) if text]


def runs(text: str) -> list[str]:
    parts = text.split()
    return [" ".join(parts[i : i + 3]) for i in range(max(1, len(parts) - 2))]


def seen_sets(leaks: dict[str, Leak]) -> list[str]:
    """The test sets that are training data: more than half of their problems have a twin there."""
    return [name for name, leak in leaks.items() if leak.count("twin") > SEEN * leak.total]

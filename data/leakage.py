"""Which test problems were seen in training: word for word, or nearly so.

    twin   the same words and signs of arithmetic in the same order, whatever the case, spacing and punctuation
    near   at least 60 % of the three-word runs of the two texts together are in both (Jaccard, Broder 1997)
"""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass

WORD = re.compile(r"[^\W_]+|[+=<>^]|(?<!\*)[*/](?=\s*\d)|(?<![^\W\d_])-(?=\s*\d)")  # "3 + 4" is not "3 - 4", but "a well-known" is "a well known"
NEAR = 0.6
COMMON = 0.02  # runs that more than this share of the test problems have ("choose the correct answer") say nothing
SEEN = 0.5  # a test set with more than this share of twins in training is training data


@dataclass(frozen=True)
class Leak:
    """For each test problem that training saw: its number -> ("twin" or "near", the number of the training row)."""

    total: int
    found: dict[int, tuple[str, int]]

    def count(self, kind: str) -> int:
        return sum(one == kind for one, _ in self.found.values())

    def table(self) -> dict:
        found = [{"test": number, "train": row, "kind": kind} for number, (kind, row) in sorted(self.found.items())]
        return {"total": self.total, "twins": self.count("twin"), "near": self.count("near"), "found": found}


def leakage(train: list[dict], tests: dict[str, list[dict]], near: bool = True) -> dict[str, Leak]:
    """The Leak of each test set; near=False looks for twins alone (for problems that are all made from the same forms)."""
    seen: dict[str, int] = {}
    for row, one in enumerate(train):
        seen.setdefault(words(one), row)
    found: dict[tuple[str, int], tuple[str, int]] = {}
    open_: list[tuple[str, int, list[str]]] = []
    for name, rows in tests.items():
        for number, one in enumerate(rows):
            text = words(one)
            if text in seen:
                found[name, number] = ("twin", seen[text])
            elif near:
                open_.append((name, number, runs(text)))
    for place, row in nearest([grams for *_, grams in open_], train).items():
        name, number, _ = open_[place]
        found[name, number] = ("near", row)
    return {name: Leak(len(rows), {number: what for (one, number), what in found.items() if one == name}) for name, rows in tests.items()}


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
        grams = set(runs(words(one))) - common
        shared = Counter(place for run in grams for place in holders.get(run, ()))
        for place, count in shared.items():
            alike = count / (len(grams) + len(own[place]) - count)
            if alike >= NEAR and alike > best.get(place, (0.0, 0))[0]:
                best[place] = (alike, row)
    return {place: row for place, (_, row) in best.items()}


def words(row: dict) -> str:
    """Instruction and input of a row, and what a chat has in front of them: words and signs of arithmetic alone."""
    earlier = " ".join(message["content"] for message in row.get("history", ()) if message["role"] != "system")
    return " ".join(WORD.findall(f"{earlier} {row['instruction']} {row.get('input') or ''}".lower().replace("\u2212", "-")))


def runs(text: str) -> list[str]:
    parts = text.split()
    return [" ".join(parts[i : i + 3]) for i in range(max(1, len(parts) - 2))]


def seen_sets(leaks: dict[str, Leak]) -> list[str]:
    """The test sets that are training data: more than half of their problems have a twin there."""
    return [name for name, leak in leaks.items() if leak.total and leak.count("twin") > SEEN * leak.total]

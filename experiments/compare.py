"""compare: which of several runs differ on the same problems, by how much, and in what."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np

from eval.answers import MODES
from eval.table import Cell, Table
from experiments.axes import value_text
from experiments.same_problems import (
    Run,
    Shares,
    check_same_problems,
    differing_settings,
    leaked_in,
    names_of,
    read_run,
    right_shares,
)
from experiments.statistics import LEVEL, Difference, holm, paired
from files.errors import UserError, unknown

ALL = "all problems"


@dataclass(frozen=True)
class Pair:
    """Two runs on one test set, or on all problems."""

    first: str
    second: str
    tests: str
    accuracy: tuple[float, float]
    only: tuple[int, int]  # problems that only one of them has right (or has right more often)
    difference: Difference
    p_holm: float  # over all pairs; of single sets over all pairs and sets

    @property
    def differ(self) -> bool:
        return self.p_holm < LEVEL

    def facts(self) -> dict:
        """For programs."""
        return asdict(self) | {"differ": self.differ}


@dataclass(frozen=True)
class Comparison:
    """What `compare` found."""

    runs: list[Run]
    pairs: list[Pair]  # on all problems, then on each test set
    differing: dict[str, list]  # setting -> its value in each run

    def tables(self) -> list[tuple[str, Table]]:
        """(title, table): pairs on all problems, on each set, settings that differ, cost."""
        whole = [pair for pair in self.pairs if pair.tests == ALL]
        by_set = [pair for pair in self.pairs if pair.tests != ALL]
        names = tuple(run.name for run in self.runs)
        rows = [
            [key, *(value_text(one) if one != "" else "-" for one in values)]
            for key, values in self.differing.items()
        ]
        found = [
            ("All problems", pair_table(whole)),
            ("By test set", pair_table(by_set)),
            ("What differs in the settings", Table(("setting", *names), rows, names=1)),
            ("Cost", cost_table(self.runs)),
        ]
        return [(title, table) for title, table in found if table.rows]

    def facts(self) -> dict:
        """For programs."""
        cost = {run.name: cost_of(run) for run in self.runs}
        pairs = [pair.facts() for pair in self.pairs]
        return {"pairs": pairs, "settings": self.differing, "cost": cost}

    def lines(self) -> list[str]:
        """One sentence on each pair."""
        return [sentence(pair) for pair in self.pairs if pair.tests == ALL]


def compare(paths: Sequence[Path], reader: str = "strict", clean: bool = False) -> Comparison:
    """Every two of these runs, evaluations or predictions.jsonl on the problems of all of them.

    reader: whose verdict counts; clean: without problems that the training of any run has seen.
    Raises UserError where the runs were not measured on the same problems.
    """
    if len(paths) < 2:
        raise UserError("compare takes two runs or more")
    if reader not in MODES:
        raise unknown("reader", reader, MODES)
    runs = [read_run(path, name) for path, name in zip(paths, names_of(paths), strict=True)]
    for first, second in pairwise(runs):
        check_same_problems(first, second)
    leaked = leaked_in(runs) if clean else set()
    shares = {run.name: right_shares(run.predictions, reader, leaked) for run in runs}
    return Comparison(runs, pairs_of(shares), differing_settings(runs))


def pairs_of(shares: dict[str, Shares]) -> list[Pair]:
    """Every pair on all problems, and on each test set where there are several."""
    sets = list(next(iter(shares.values())))
    pairs = []
    for of in ([ALL], sets if len(sets) > 1 else []):
        compared = []
        for first, second in combinations(shares, 2):
            for name in of:
                a, b = (
                    np.concatenate(list(shares[run].values())) if name == ALL else shares[run][name]
                    for run in (first, second)
                )
                only = int((a > b).sum()), int((a < b).sum())
                accuracy = float(a.mean()), float(b.mean())
                compared.append((first, second, name, accuracy, only, paired(a, b)))
        adjusted = holm([difference.p for *_, difference in compared])
        pairs += [Pair(*one, p) for one, p in zip(compared, adjusted, strict=True)]
    return pairs


# ---------------------------------------------------------------- showing
def pair_table(pairs: Sequence[Pair]) -> Table:
    heads = ("first", "second", "test set", "first", "second", "first - second, points")
    rows = []
    for pair in pairs:
        shares = (f"{100 * share:.1f}%" for share in pair.accuracy)
        only = f"{pair.only[0]} / {pair.only[1]}"
        found = difference_cell(pair.difference), only, *verdict_cells(pair)
        rows.append([pair.first, pair.second, pair.tests, *shares, *found])
    return Table((*heads, "only first / second right", "p", "p (Holm)", ""), rows, names=3)


def difference_cell(d: Difference) -> Cell:
    return Cell(f"{100 * d.mean:+.1f}", f"[{100 * d.low:+.1f}, {100 * d.high:+.1f}]")


def verdict_cells(pair) -> tuple[str, str, str]:
    """p, Holm's p, and whether the two differ; pair: a Pair or a PairVerdict."""
    end = "differ" if pair.differ else "not told apart"
    return p_text(pair.difference.p), p_text(pair.p_holm), end


def p_text(p: float) -> str:
    return "<0.0001" if p < 1e-4 else f"{p:.2g}"


def sentence(pair: Pair) -> str:
    """ "a - b: +3.2 points [+1.0, +5.4], p 0.003: they differ."""
    cell = difference_cell(pair.difference)
    end = "these two trained models differ" if pair.differ else "not told apart by these problems"
    return f"{pair.first} - {pair.second}: {cell} points, p {p_text(pair.p_holm)}: {end}"


def cost_of(run: Run) -> dict:
    keys = ("trainable_parameters", "peak_memory_bytes", "seconds")
    return {key: value for key in keys if (value := getattr(run.result, key, 0))}


def cost_table(runs: Sequence[Run]) -> Table:
    """Trained parameters, peak memory and seconds, where result.json has them."""
    rows = []
    for run in runs:
        cost = cost_of(run)
        memory = cost.get("peak_memory_bytes")
        cells = [
            f"{cost['trainable_parameters']:,}" if "trainable_parameters" in cost else "-",
            f"{memory / 1e6:,.0f} MB" if memory else "-",
            f"{cost['seconds']:,}" if "seconds" in cost else "-",
        ]
        rows.append([run.name, *cells])
    return Table(("run", "trained parameters", "peak memory", "seconds"), rows)


def as_text(comparison: Comparison) -> str:
    parts = [f"{title}\n" + "\n".join(t.to_text()) for title, t in comparison.tables()]
    return "\n\n".join([*parts, "\n".join(comparison.lines())])


def as_markdown(comparison: Comparison) -> str:
    parts = [f"## {title}\n\n{t.to_markdown()}" for title, t in comparison.tables()]
    return "\n".join([*parts, *(f"- {line}" for line in comparison.lines())])


def as_json(comparison: Comparison) -> str:
    return json.dumps(comparison.facts(), indent=2, default=str)

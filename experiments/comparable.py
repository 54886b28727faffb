"""Whether a result can be compared with a published row, and if not, what differs.

A row stands beside a result only where model, data, adapter (method, sites, sizes), the loss
weight of the prompt and the test sets are the same.
"""

import importlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from adapters.config import AdapterConfig, Part
from eval.score import Score, scores
from eval.table import Table
from experiments.published import Figures, Row, figures_table, percents, tables_for
from model.config import MODEL_TYPES
from model.registry import REGISTRY
from train.settings import Settings

MOST = 3  # rows whose differences are told


@dataclass(frozen=True)
class Conditions:
    """What a result was obtained with, as far as published rows are compared with it."""

    model: str
    data: str
    adapter: AdapterConfig | None  # None: the base alone, or several adapters
    prompt_weight: float | None  # None: not known
    rows: str = ""  # what was trained on, if not the rows of `data` and no others

    @property
    def trained_on(self) -> str:
        """The data, if an adapter was trained on it and no other."""
        return self.data if self.adapter and not self.rows else ""


def conditions_of(s: Settings) -> Conditions:
    """The conditions of a run with these settings."""
    rows = "the rows with right rationales" if s.only_right else ""
    if s.continue_from:
        rows = "the rows after those of another run"
    if s.load:
        rows = "the rows, on top of other adapters"
    if s.teacher:
        rows = "another adapter's distributions on the rows"
    return Conditions(s.model, s.data, s.adapter, s.train.prompt_weight, rows)


@dataclass(frozen=True)
class Compared:
    """A published row of the same model, and what differs: (published, here) pairs.

    same: it is of the same method.
    """

    row: Row
    differs: list[tuple[str, str]]
    same: bool

    @property
    def name(self) -> str:
        return f"{self.row.model} {self.row.word} of {self.row.table.title}"

    @property
    def text(self) -> str:
        """What differs: "published r 32 on q, v; here r 8 on q, v"."""
        theirs, here = (", ".join(filter(None, side)) for side in zip(*self.differs, strict=True))
        return f"published {theirs}; here {here}"

    def facts(self) -> dict:
        """For JSON."""
        return {
            "row": self.name,
            "sets": list(self.row.table.sets),
            "figures": self.row.figures,
            "comparable": not self.differs,
            "differs": self.text if self.differs else "",
        }


def compare(ours: Conditions, measured: dict[str, Score] | None = None) -> list[Compared]:
    """Every published row of this model and data: those of the same method first, the one with
    the fewest differences before the others.

    measured: the scores of the result; None: nothing is measured yet, so that test sets are not
    compared.
    """
    found = []
    for table in tables_for(ours.data):
        tests = []
        if measured is not None:
            if not set(table.sets) <= measured.keys():
                continue
            missing = table.missing(measured)
            tests = [("whole test sets", missing)] if missing else []
        for row in table.rows_of(ours.model):
            same = bool(row.adapter and ours.adapter and row.adapter.kind == ours.adapter.kind)
            found.append(Compared(row, [*differences(row, ours), *tests], same))
    return sorted(found, key=lambda compared: (not compared.same, len(compared.differs)))


def differences(row: Row, ours: Conditions) -> list[tuple[str, str]]:
    """What differs in adapter, rows and loss, as (published, here)."""
    found = adapter_differences(row, ours)
    if ours.rows:
        found.append(("all rows of the data", ours.rows))
    theirs = row.training.prompt_weight
    if ours.adapter and (theirs is None or theirs != ours.prompt_weight):
        found.append((loss_over(theirs), loss_over(ours.prompt_weight)))
    if row.training.reader != "paper":
        found.append(("a reader of answers that is not known", "the paper's"))
    return found


def loss_over(prompt_weight: float | None) -> str:
    known = {None: "a loss weight of the prompt that is not known", 0: "loss over the response"}
    known[1] = "loss over prompt and response"
    return known.get(prompt_weight, f"loss weight {prompt_weight} for the prompt")


def adapter_differences(row: Row, ours: Conditions) -> list[tuple[str, str]]:
    theirs, here = row.adapter, ours.adapter
    if here is None:
        return [(row.word, "no single adapter")]
    if theirs is None:
        return [(f"{row.word}, whose sites and sizes its table does not say", here.kind)]
    if theirs.kind != here.kind or theirs.parts.keys() != here.parts.keys():
        return [(theirs.kind, here.kind)]
    family = MODEL_TYPES[REGISTRY[row.model].config["model_type"]]
    theirs, here = theirs.on(family), here.on(family)
    known = importlib.import_module(f"model.{family}").SITES
    pairs = (part_texts(theirs.parts[name], here.parts[name], known) for name in theirs.parts)
    return [pair for pair in pairs if pair]


def part_texts(theirs: Part, here: Part, known: Collection[str]) -> tuple[str, str] | None:
    """What differs in size or place: ("r 32 on q, k, v", "r 8 on q, v"); None: nothing.

    known: the names of the family's sites.
    """
    at = [options_by_site(part) for part in (theirs, here)]
    rest = [{k: o for k, o in p.overrides.items() if k not in known} for p in (theirs, here)]
    if at[0] == at[1] and theirs.layers == here.layers and rest[0] == rest[1]:
        return None
    common = at[0].keys() & at[1].keys()
    sizes = [
        name
        for name in dict.fromkeys(name for sites in at for of in sites.values() for name in of)
        if any(at[0][site][name] != at[1][site][name] for site in common)
        or (
            not common
            and {of[name] for of in at[0].values()} != {of[name] for of in at[1].values()}
        )
    ]

    def text(part: Part, by_site: dict, patterns: dict) -> str:
        groups: dict[str, list[str]] = {}  # values -> the sites that have them
        for site, of in by_site.items():
            groups.setdefault(", ".join(f"{name} {of[name]}" for name in sizes), []).append(site)
        sites = "; ".join(f"{values} on {', '.join(on)}".strip() for values, on in groups.items())
        for pattern, options in patterns.items():
            sites += f" ({pattern}: {', '.join(f'{k} {v}' for k, v in options.items())})"
        return sites + ("" if part.layers == "all" else f", layers {part.layers}")

    return text(theirs, at[0], rest[0]), text(here, at[1], rest[1])


def options_by_site(part: Part) -> dict[str, dict]:
    """Site -> its options that change what is computed, with the part's overrides of that site."""
    names = [f.name for f in fields(part.options) if not f.metadata.get("training")]
    return {
        site: {
            name: part.overrides.get(site, {}).get(name, getattr(part.options, name))
            for name in names
        }
        for site in part.sites
    }


def beside_published(ours: Conditions, predictions: list[dict]) -> tuple[list[Table], list[str]]:
    """(tables of our figures above comparable published ones, notes on all others)."""
    strict, paper = scores(predictions), scores(predictions, "paper_right")
    found = compare(ours, strict)
    tables = []
    for compared in found:
        if compared.differs:
            continue
        row, sets = compared.row, compared.row.table.sets
        here, keys = percents(paper, sets), row.figures.keys()
        rows: dict[str, Figures] = {
            "ours, strict": {key: percents(strict, sets)[key] for key in keys},
            "ours, the paper's reader": {key: here[key] for key in keys},
            f"published, {compared.name}": row.figures,
            "difference": {key: here[key] - value for key, value in row.figures.items()},
        }
        tables.append(figures_table("", rows))
    measured = [table for table in tables_for(ours.data) if set(table.sets) <= strict.keys()]
    if not measured:
        return [], []
    fewer = measured[0].missing(strict)
    note = f"Ours are of fewer problems, so that no difference is given: {fewer}."
    return tables, [*comparison_notes(ours, found), *([note] if fewer else [])]


def comparison_lines(s: Settings) -> list[str]:
    """Which published rows a run with these settings can be compared with, before it is run."""
    ours = conditions_of(s)
    return comparison_notes(ours, compare(ours))


def comparison_notes(ours: Conditions, found: Sequence[Compared]) -> list[str]:
    """Which published rows the result can be compared with and why not with the others."""
    if not tables_for(ours.data):
        return []
    if not found:
        preset = ours.adapter and (ours.adapter.preset or ours.adapter.kind)
        which = f"with {preset}" if preset else "without an adapter"
        titles = "; ".join(table.title for table in tables_for(ours.data))
        models = dict.fromkeys(name for table in tables_for(ours.data) for name in table.rows)
        return [
            f"The published rows on {ours.data} ({titles}) are of {', '.join(models)}; there is "
            f"no row for {Path(ours.model).name} {which}."
        ]
    notes = []
    for compared in found:
        if not compared.differs:
            notes.append(f"Comparable: {compared.name}.")
            notes += [f"Note: {text}." for text in compared.row.notes()]
            if leaks := compared.row.table.leaks:
                notes.append(f"The training data holds problems of {', '.join(leaks)}.")
    others = [c for c in found if c.differs and c.same]
    notes += [f"Not comparable: {c.name}: {c.text}." for c in others[:MOST]]
    if words := dict.fromkeys(c.row.word for c in found if not c.same):
        model, what = Path(ours.model).name, ours.adapter.kind if ours.adapter else "no adapter"
        notes.append(f"{model} has published rows of {'; '.join(words)}. Here: {what}.")
    return notes

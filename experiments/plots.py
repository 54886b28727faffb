"""Plots of a grid as SVG: accuracy against an axis with 95% intervals, a heat map of two axes.

Each is a file that can be looked at alone, light and dark, and stands in table.html too.
"""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.score import Score, mean_score
from experiments.axes import short, value_text, values_text
from experiments.curves import ticks
from experiments.entries import Entry, axes_of

WIDTH, HEIGHT = 720, 300  # of the field with its labels, in px; the key is below
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 28, 44  # around the field
COLOURS = ("#0969da", "#bc4c00", "#1a7f37", "#8250df", "#cf222e", "#9a6700")
STYLE = """<style>.plot { --text: #1f2328; --soft: #59636e; --line: #d8dee4;
  font: 13px system-ui, sans-serif } .plot text { fill: var(--text) }
  .plot .soft { fill: var(--soft) } .plot .grid { stroke: var(--line) }
  @media (prefers-color-scheme: dark) { .plot { --text: #e6edf3; --soft: #9198a1;
  --line: #3d444d } }</style>"""


@dataclass(frozen=True)
class Outcome:
    """What runs that differ in their seed alone reached."""

    value: object  # of the axis
    mean: float  # accuracy in percent, or nats a token
    low: float  # 95% interval over the problems; the mean itself where there is none
    high: float
    seeds: list[float]  # each seed's own

    @property
    def interval(self) -> str:
        return f"[{self.low:.1f}, {self.high:.1f}]" if self.low < self.high else ""

    def __str__(self) -> str:
        return f"{self.mean:.1f}" if self.interval else f"{self.mean:.3f}"


def outcome(runs: Sequence[Entry], value: object) -> Outcome | None:
    """The mean of the seeds, over the same problems; None where the runs measured nothing."""
    if all(run.strict for run in runs):
        seeds = [100 * mean_score(run.strict)[0] for run in runs]
        pooled = {name: pool([run.strict[name] for run in runs]) for name in runs[0].strict}
        mean, low, high = (100 * figure for figure in mean_score(pooled))
        return Outcome(value, mean, low, high, seeds)
    losses = [run.held_out["after"] for run in runs if "after" in run.held_out]
    if not losses:
        return None
    mean = sum(losses) / len(losses)
    return Outcome(value, mean, mean, mean, losses)


def pool(scores: Sequence[Score]) -> Score:
    """Several seeds' answers to the same problems as one score, with the interval of so many
    problems."""
    problems = scores[0].problems or scores[0].total
    return Score(sum(s.right for s in scores), sum(s.total for s in scores), problems)


def plots(entries: Sequence[Entry]) -> dict[str, str]:
    """Name of a file -> SVG: one plot for each axis that is varied alone, and a heat map of the
    first two."""
    runs = [e for e in entries if e.adapter]
    axes = [path for path in axes_of(runs) if len({value_text(v) for v in column(runs, path)}) > 1]
    free = [path for n, path in enumerate(axes) if not any(tied(runs, path, a) for a in axes[:n])]
    drawn = {f"plot-{path}.svg": line_plot(runs, path, axes) for path in free}
    if len(free) > 1:
        first, second = free[:2]
        for n, (series, group) in enumerate(grouped(runs, {first, second}, axes).items(), 1):
            drawn[f"heat-{first}-{second}-{n}.svg"] = heat_map(group, first, second, series)
    return {name: svg for name, svg in drawn.items() if svg}


def column(runs: Sequence[Entry], path: str) -> list:
    """The values of an axis, each once, in the grid's order."""
    values = {value_text(run.values[path]): run.values[path] for run in runs if path in run.values}
    return list(values.values())


def tied(runs: Sequence[Entry], path: str, to: str) -> bool:
    """Whether an axis follows another, as alpha = 2 r does: one value of it for each of the other's
    and for each model and adapter."""
    both = [run for run in runs if path in run.values and to in run.values]
    seen = {
        (run.model, run.adapter, *(value_text(run.values[axis]) for axis in (to, path)))
        for run in both
    }
    return bool(both) and len({key[:-1] for key in seen}) == len(seen)


def grouped(runs: Sequence[Entry], free: set[str], axes: Sequence[str]) -> dict[str, list[Entry]]:
    """The runs by all that is not one of the free axes or tied to them: series -> runs."""
    kept = [a for a in axes if a not in free and not any(tied(runs, a, path) for path in free)]
    models = {run.model for run in runs}
    groups: dict[str, list[Entry]] = {}
    for run in runs:
        if free <= run.values.keys():
            rest = values_text({a: run.values[a] for a in kept if a in run.values})
            model = Path(run.model).name if len(models) > 1 else ""
            groups.setdefault(", ".join(filter(None, (model, run.adapter, rest))), []).append(run)
    return groups


def outcomes(runs: Sequence[Entry], path: str) -> list[Outcome]:
    """What each value of an axis gave, in the grid's order."""
    found = []
    for value in column(runs, path):
        same = [run for run in runs if value_text(run.values[path]) == value_text(value)]
        found.append(outcome(same, value))
    return [one for one in found if one]


def line_plot(runs: Sequence[Entry], path: str, axes: Sequence[str]) -> str:
    """Accuracy (or held-out loss) against an axis; "" where its runs measured different sets."""
    groups = {name: outcomes(group, path) for name, group in grouped(runs, {path}, axes).items()}
    groups = {name: points for name, points in groups.items() if len(points) > 1}
    sets = {tuple(run.strict) for run in runs if path in run.values}
    if not groups or (path == "data" and len(sets) > 1):
        return ""
    values = column(runs, path)
    x = positions(values)
    ends = [end for points in groups.values() for p in points for end in (p.low, p.high, *p.seeds)]
    y, marks = heights(min(ends), max(ends))
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = [
        f'<path class="grid" d="M{LEFT} {y(m):.1f}H{right}"/>'
        f'<text class="soft" x="{LEFT - 8}" y="{y(m) + 4:.1f}" text-anchor="end">{m:g}</text>'
        for m in marks
    ]
    last = -math.inf
    for value in sorted(values, key=lambda value: x[value_text(value)]):
        text = value_text(value)
        if x[text] - last >= 8 * min(len(text), 9):
            parts.append(label(x[text], bottom + 18, text, "middle"))
            last = x[text]
    parts.append(label((LEFT + right) / 2, bottom + 36, short(path), "middle", "soft"))
    what = "accuracy in percent" if all(run.strict for run in runs) else "held-out loss"
    parts.append(label(LEFT, 14, what, css="soft"))
    numeric = all(is_number(value) for value in values)
    for n, (name, points) in enumerate(groups.items()):
        colour, shift = COLOURS[n % len(COLOURS)], 5 * (n - (len(groups) - 1) / 2)
        dash = ' stroke-dasharray="5 3"' if n >= len(COLOURS) else ""
        points = sorted(points, key=lambda p: x[value_text(p.value)])
        at = [(x[value_text(p.value)] + shift, p) for p in points]
        if numeric:
            line = "L".join(f"{px:.1f} {y(p.mean):.1f}" for px, p in at)
            parts.append(
                f'<path d="M{line}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>'
            )
        for px, p in at:
            parts.append(f'<path d="M{px:.1f} {y(p.low):.1f}V{y(p.high):.1f}" stroke="{colour}"/>')
            told = f"{name}, {short(path)} {value_text(p.value)}: {p} {p.interval}"
            parts.append(
                f'<circle cx="{px:.1f}" cy="{y(p.mean):.1f}" r="4" fill="{colour}">'
                f"<title>{html.escape(told)}</title></circle>"
            )
            if len(p.seeds) > 1:
                dot = f'<circle cx="{px + 7:.1f}" r="1.7" fill="{colour}" '
                parts += [f'{dot}cy="{y(seed):.1f}"/>' for seed in p.seeds]
        row = HEIGHT + 6 + 20 * n
        parts.append(f'<path d="M{LEFT} {row}h22" stroke="{colour}" stroke-width="3"{dash}/>')
        parts.append(label(LEFT + 30, row + 4, name))
    return svg(HEIGHT + 12 + 20 * len(groups), f"{what} against {path}", parts)


def heat_map(runs: Sequence[Entry], first: str, second: str, series: str) -> str:
    """A field of the outcomes of two axes: rows are the first axis's, columns the second's."""
    rows, columns = column(runs, first), column(runs, second)
    table = {
        (value_text(one), value_text(two)): outcome(same, two)
        for one in rows
        for two in columns
        if (same := [r for r in runs if (r.values[first], r.values[second]) == (one, two)])
    }
    means = [cell.mean for cell in table.values() if cell]
    if len(rows) < 2 or len(columns) < 2 or not means:
        return ""
    low, high = min(means), max(means)
    side = 10 + 7.5 * min(24, max(len(value_text(one)) for one in rows))
    wide, tall = (WIDTH - RIGHT - LEFT - side) / len(columns), 46
    parts = [label(LEFT, 16, f"{series}: rows {short(first)}, columns {short(second)}")]
    for i, one in enumerate(rows):
        top = 46 + i * tall
        parts.append(label(LEFT + side - 10, top + tall / 2 + 4, value_text(one), "end"))
        for j, two in enumerate(columns):
            cell = table.get((value_text(one), value_text(two)))
            if not cell:
                continue
            left, share = LEFT + side + j * wide, (cell.mean - low) / ((high - low) or 1)
            parts.append(
                f'<rect x="{left:.1f}" y="{top}" width="{wide - 3:.1f}" height="{tall - 3}" '
                f'rx="4" fill="{COLOURS[0]}" fill-opacity="{0.08 + 0.5 * share:.2f}"/>'
            )
            middle = left + wide / 2
            parts.append(label(middle, top + 20, str(cell), "middle"))
            parts.append(label(middle, top + 36, cell.interval, "middle", "soft"))
    for j, two in enumerate(columns):
        parts.append(label(LEFT + side + (j + 0.5) * wide, 38, value_text(two), "middle", "soft"))
    return svg(56 + tall * len(rows), f"{first} and {second}, {series}", parts)


def is_number(value: object) -> bool:
    return type(value) in (int, float)


def positions(values: Sequence) -> dict[str, float]:
    """Where each value of an axis lies: by its size, on a logarithmic scale from a factor of 8 on,
    or one beside the other where they are not numbers."""
    order: Sequence[float] = range(len(values))
    if all(is_number(value) for value in values):
        order = values
        if min(values) > 0 and max(values) >= 8 * min(values):
            order = [math.log(value) for value in values]
    low, high = min(order), max(order)
    left, wide = LEFT + 40, WIDTH - RIGHT - LEFT - 80
    return {
        value_text(value): left + wide * (place - low) / ((high - low) or 1)
        for value, place in zip(values, order, strict=True)
    }


def heights(low: float, high: float):
    """(value -> its height in the field, the values that are marked)."""
    marks = ticks(low, high, False)
    low, high = min(low, marks[0]), max(high, marks[-1])
    field = HEIGHT - BOTTOM - TOP
    return (lambda value: TOP + field * (high - value) / ((high - low) or 1)), marks


def label(x: float, y: float, text: str, anchor: str = "start", css: str = "") -> str:
    css = f' class="{css}"' if css else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{css}>{html.escape(text)}</text>'


def svg(height: float, title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" viewBox="0 0 {WIDTH} {height:.0f}" '
        f'role="img" aria-label="{html.escape(title)}">{STYLE}{"".join(parts)}</svg>\n'
    )

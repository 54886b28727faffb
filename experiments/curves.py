"""The log of a run and its loss curve: an SVG whose lines scale and whose labels do not."""

import html
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from files.reading import json_lines

WIDTH, HEIGHT = 1000, 300  # of the drawing; CSS stretches it
Point = tuple[float, float]  # step, value


def read_log(path: Path) -> list[dict]:
    """The entries of log.jsonl by step; of a step that a resumed run repeated, the later one.

    A line that a kill or a failing disk left without an entry is passed over (`missing_steps`).
    """
    entries = {entry["step"]: entry for entry in json_lines(path) if is_entry(entry)}
    return [entries[step] for step in sorted(entries)]


def is_entry(entry: dict) -> bool:
    """Whether a line of a log is what the training loop writes."""

    def is_figure(value: object) -> bool:
        return value is None or (type(value) in (int, float) and math.isfinite(value))

    return (
        type(entry.get("step")) is int
        and is_figure(entry.get("loss", ""))
        and all(is_figure(entry.get(key)) for key in ("learning_rate", "validation_loss"))
        and type(entry.get("skipped", False)) is bool
    )


def missing_steps(entries: Sequence[dict], steps: int) -> str:
    """How many of the steps 1 to `steps` a log has no entry of, in words; "" where it has all."""
    missing = steps - sum(1 <= entry["step"] <= steps for entry in entries)
    return f"log.jsonl has no entry of {missing:,} of {steps:,} steps" * (missing > 0)


def first_and_last(path: Path, steps: int) -> tuple[float, float] | None:
    """The mean loss of the first and of the last steps of a log, ten each or half of a shorter run.

    None, with a warning, where the log lacks some of the steps 1 to `steps`.
    """
    entries = read_log(path)
    if missing := missing_steps(entries, steps):
        warnings.warn(f"{path.parent}: {missing}: its loss is left out", stacklevel=2)
        return None
    losses = [entry["loss"] for entry in entries if entry["loss"] is not None]
    part = max(1, min(10, len(losses) // 2))
    return (fmean(losses[:part]), fmean(losses[-part:])) if losses else None


def smooth(values: Sequence[float], reach: int) -> list[float]:
    """The mean of each value and up to `reach` neighbours on either side."""
    return [fmean(values[max(0, i - reach) : i + reach + 1]) for i in range(len(values))]


def loss_chart(entries: Sequence[dict]) -> str:
    """HTML: loss by step, as it was and smoothed, the validation loss where there is some, and the
    learning rate below. Logarithmic, unless the losses are near each other."""
    used = [e for e in entries if e["loss"] is not None and math.isfinite(e["loss"])]
    if not used:
        return "<p>No step had a finite loss.</p>"
    steps, losses = [e["step"] for e in used], [e["loss"] for e in used]
    reach = len(losses) // 30
    lines = [("raw", "loss of a step", list(zip(steps, losses, strict=True)))]
    if reach:
        mean = list(zip(steps, smooth(losses, reach), strict=True))
        lines.append(("smooth", f"mean of {2 * reach + 1} steps", mean))
    validated = [e for e in entries if e.get("validation_loss") is not None]
    checks = [(e["step"], e["validation_loss"]) for e in validated]
    if checks:
        lines.append(("checked", "on validation rows", checks))
    values = [value for _, _, points in lines for _, value in points if value > 0] or [1.0]
    low, high = min(values), max(values)
    logarithmic = high > 3 * low
    marks = ticks(low, high, logarithmic)
    low, high = min(low, marks[0]), max(high, marks[-1])
    scale = math.log if logarithmic else float
    bottom, top = scale(low), scale(high) if high > low else scale(low) + 1
    first, last = steps[0], max(steps[-1], steps[0] + 1)

    def x(step: float) -> float:
        return WIDTH * (step - first) / (last - first)

    def y(value: float) -> float:
        return HEIGHT * (top - scale(max(value, low))) / (top - bottom)

    grid = "".join(f'<path class="grid" d="M0 {y(mark):.0f}H{WIDTH}"/>' for mark in marks)
    drawn = "".join(f'<path class="{css}" d="{path(p, x, y)}"/>' for css, _, p in lines)
    dots = "".join(f'<path class="dot" d="M{x(s):.0f} {y(v):.0f}h0"/>' for s, v in checks)
    labels = "".join(
        f'<span style="top:{100 * y(mark) / HEIGHT:.1f}%">{mark:g}</span>' for mark in marks
    )
    key = "".join(
        f'<span><i class="{css}"></i>{html.escape(name)}</span>' for css, name, _ in lines
    )
    rates = [(e["step"], e.get("learning_rate") or 0.0) for e in used]
    most = max(rate for _, rate in rates) or 1.0
    rate = path(rates, x, lambda value: 100 - 100 * value / most)
    svg = '<svg preserveAspectRatio="none" role="img"'
    whole = f'viewBox="0 0 {WIDTH} {HEIGHT}" aria-label="training loss by step"'
    below = f'viewBox="0 0 {WIDTH} 100" class="rate" aria-label="learning rate by step"'
    return f"""<div class="key">{key}</div>
<div class="chart"><div class="axis">{labels}</div>
{svg} {whole}>{grid}{drawn}{dots}</svg>
<div class="steps"><span>step {first:,}</span><span>{last:,}</span></div>
{svg} {below}><path d="{rate}"/></svg>
<div class="steps"><span>learning rate, highest {most:.2g}</span></div></div>"""


def path(points: Sequence[Point], x, y) -> str:
    return "M" + "L".join(f"{x(step):.0f} {y(value):.0f}" for step, value in points)


def ticks(low: float, high: float, logarithmic: bool) -> list[float]:
    """Three to six round numbers that the axis from low to high is labelled with."""
    if logarithmic:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for factors in ((1, 2, 5), (1, 3), (1,)):
            marks = [f * 10.0**power for power in powers for f in factors]
            inside = [mark for mark in marks if 0.8 * low <= mark <= 1.25 * high]
            if len(inside) <= 6:
                break
        return inside[:: math.ceil(len(inside) / 6)]
    rough = (high - low) / 4 or max(abs(low), 1e-9)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(f * power for f in (1, 2, 5, 10) if f * power >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(step * n, 12) for n in range(first, last + 1)]

"""The log of a run and its loss curve: an SVG whose lines scale and whose labels do not."""

import html
import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

WIDTH, HEIGHT = 1000, 300  # of the drawing; CSS stretches it
Point = tuple[float, float]  # step, value


def read_log(path: Path) -> list[dict]:
    """The entries of log.jsonl by step; of a step that a resumed run repeated, the later one."""
    entries = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:  # cut short by a kill
            continue
        entries[entry["step"]] = entry
    return [entries[step] for step in sorted(entries)]


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
    rates = [(e["step"], e["learning_rate"]) for e in used]
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

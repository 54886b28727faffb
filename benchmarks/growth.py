"""How time and memory grow: series of sizes, and the exponents of a fit, ours and the peer's."""

import math
from collections.abc import Iterator, Sequence

from benchmarks.compare import Context, measured, same_loss
from benchmarks.machine import machine
from benchmarks.peer import missing
from benchmarks.report import Report, is_wanted, megabytes, ratio, seconds
from benchmarks.work import options
from experiments.base import DTYPES
from files.errors import UserError, unknown
from model.config import describe

SERIES = {  # name -> (work, the option that grows, its values, the others)
    "length": ("step", "tokens", (128, 256, 512, 1024, 2048, 4096), {"rows": 1}),
    "batch": ("step", "rows", (1, 2, 4, 8, 16), {"tokens": 64}),
    "layers": ("step", "layers", (2, 4, 8, 16), {"rows": 1, "tokens": 128}),
    "adapters": ("step", "adapters", (1, 2, 4, 8), {"rows": 1, "tokens": 128}),
    "rows": ("epoch", "rows", (32, 64, 128, 256), {"tokens": 32, "layers": 2}),
}
TINY = {"length": (16, 32), "batch": (1, 2), "layers": (1, 2), "adapters": (1, 2), "rows": (4, 8)}
HEADS = ("size", "ours", "peer", "peer / ours", "memory ours", "memory peer", "ours / peer")


def growth_lines(
    model: str, only: str, out: str, repeats: int, dtype: str, smoke: bool
) -> Iterator[str]:
    """A LoRA step of one micro-batch (an epoch for `rows`) at each size, in fresh processes.

    Memory is that above the loaded model. The weights are random, of the model's shape. Raises
    UserError, also when the two sides do not have the same loss.
    """
    if dtype not in DTYPES:
        raise UserError(f"--dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    names = [name for name in SERIES if is_wanted(name, only)]
    if not names:
        raise unknown("series", only, SERIES)
    model = "pocket-llama" if smoke else model
    facts = machine() | {"model": model, "dtype": dtype}
    report = Report("How time and memory grow", out, facts, HEADS, cells)
    yield report.machine_line()
    if without := missing():
        report.note(without)
    context = Context(model, repeats=1 if smoke else repeats, peer=not without, smoke=smoke)
    for name in names:
        points = []
        for value in values_of(name, model, smoke):
            points.append(point(name, value, dtype, context))
            yield report.add(points[-1])
        for row in fits(name, points):
            yield report.add(row)
    report.note("memory: MB above the loaded model; x^a: least squares of the logarithms")
    report.note("last two: the exponent between the two largest sizes")
    report.plot(draw)
    yield from report.lines()


def values_of(name: str, model: str, smoke: bool) -> Sequence[int]:
    """The sizes of a series: layers not above those of the model, and all of them at last."""
    values = TINY[name] if smoke else SERIES[name][2]
    if name != "layers":
        return values
    most = describe(model)[1].shape.layers
    return (*(value for value in values if value < most), most)


def point(name: str, value: int, dtype: str, context: Context) -> dict:
    work, grows, _, others = SERIES[name]
    o = options(model=context.model, random=True, dtype=dtype) | others | {grows: value}
    o["micro"] = 4 if work == "epoch" else o["rows"]
    found = measured(work, o, context)
    same_loss(found, "bfloat16" if dtype != "float32" else dtype)
    row = {"series": name, "size": value}
    for side, runs in found.items():
        above = max(runs.peak - runs.loaded, 0)
        facts = {"seconds": runs.seconds, "memory": above, "loss": runs.facts["loss"]}
        row[side.removesuffix(" dynamic")] = facts
    return row


def fits(name: str, points: list[dict]) -> list[dict]:
    """Two rows: the exponents over all sizes, and between the last two."""
    rows = []
    for label, some in ((f"exponent of {name}", points), (f"{name}, last two", points[-2:])):
        row = {"series": name, "fit": label}
        for side in ("ours", "peer"):
            if side in points[0]:
                sizes = [p["size"] for p in some]
                row[side] = {
                    key: exponent(sizes, [p[side][key] for p in some])
                    for key in ("seconds", "memory")
                }
        rows.append(row)
    return rows


def exponent(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """a of y = b x^a, by least squares of the logarithms; None where a y is 0."""
    if min(ys) <= 0:
        return None
    xs, ys = [math.log(x) for x in xs], [math.log(y) for y in ys]
    middle_x, middle_y = sum(xs) / len(xs), sum(ys) / len(ys)
    above = sum((x - middle_x) * (y - middle_y) for x, y in zip(xs, ys, strict=True))
    return above / sum((x - middle_x) ** 2 for x in xs)


def cells(row: dict) -> list[str]:
    ours, peer = row["ours"], row.get("peer", {})
    if "fit" in row:
        figures = [ours["seconds"], peer.get("seconds"), None]
        figures += [ours["memory"], peer.get("memory"), None]
        return [row["fit"], *(ratio(figure) for figure in figures)]
    times, memory = ours["seconds"], ours["memory"]
    return [
        f"{row['series']} {row['size']}",
        f"{seconds(times)} s",
        f"{seconds(peer['seconds'])} s" if peer else "-",
        ratio(peer["seconds"] / times if peer else None),
        megabytes(memory),
        megabytes(peer.get("memory")),
        ratio(memory / peer["memory"] if peer and peer["memory"] else None),
    ]


def draw(figure, rows: list[dict]) -> None:
    """Seconds and memory of each series, both axes logarithmic."""
    points = [row for row in rows if "size" in row]
    names = list(dict.fromkeys(row["series"] for row in points))
    figure.set_size_inches(2.6 * len(names) + 1, 5)
    grid = figure.subplots(2, len(names), squeeze=False)
    for column, name in enumerate(names):
        mine = [row for row in points if row["series"] == name]
        for line, key in enumerate(("seconds", "memory")):
            axes = grid[line][column]
            for side in ("ours", "peer"):
                if side in mine[0]:
                    sizes = [row["size"] for row in mine]
                    figures = [row[side][key] / (1e6 if line else 1) for row in mine]
                    axes.plot(sizes, figures, marker="o", label=side)
            if all(row["ours"][key] > 0 for row in mine):
                axes.set_xscale("log", base=2)
                axes.set_yscale("log")
            axes.set_title(f"{name}: {'MB' if line else key}", fontsize=9)
            axes.tick_params(labelsize=7)
    grid[0][0].legend(fontsize=8)

"""Scores as lines of text: what a run came to, and beside the published figures."""

from collections.abc import Sequence
from pathlib import Path

from eval.score import Score, clean, mean_score, scores
from experiments.published import table_for

NAMES = {"gsm8k": "GSM8K", "mawps": "MAWPS"}


def score_lines(
    before: list[dict], after: list[dict], title: str, first: str = "base"
) -> list[str]:
    """A line for each test set: `first` (the base), then `title`, read strictly; its clean part, where
    training saw some of it; and as the paper's reader has it."""
    columns: list[tuple[str, dict[str, Score]]] = [(first, scores(before))] if before else []
    columns.append((title, scores(after)))
    if len(clean(after)) < len(after):
        columns.append(("clean part", scores(clean(after))))
    columns.append(("paper's reader", scores(after, "paper_right")))
    sets = list(scores(after))
    width = max(map(len, [*sets, "test set"]))
    lines = [f"{'test set':{width}}  " + "".join(f"{name:31}" for name, _ in columns).rstrip()]
    for name in sets:
        cells = [str(found[name]) if name in found else "none is clean" for _, found in columns]
        lines.append(f"{name:{width}}  " + "".join(f"{cell:31}" for cell in cells).rstrip())
    if len(sets) > 1:
        cells = [
            f"{100 * mean:5.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
            for mean, low, high in (mean_score(found) for _, found in columns)
        ]
        lines.append(f"{'average':{width}}  " + "".join(f"{cell:31}" for cell in cells).rstrip())
    cut = sum(one.get("cut", False) for one in after)
    if cut:
        lines.append(
            f"{cut} of {len(after)} answers ran out of tokens (eval.max_new_tokens) and were read as far as they went"
        )
    if too_long := sum(one.get("too_long", False) for one in after):
        lines.append(
            f"{too_long} of {len(after)} prompts are longer than the model's positions and count as wrong"
        )
    return lines


def published_lines(data: str, model: str, adapter: str, predictions: list[dict]) -> list[str]:
    """Our row in the order of the published table for this data, with the table's own rows below; nothing where there is none.

    A difference is given where the model and adapter are in the table and all of its problems were answered once, by generating.
    """
    table = table_for(data)
    found = scores(predictions)
    if table is None or not set(table.sets) <= found.keys():
        return []
    paper = scores(predictions, "paper_right")
    ours = {
        "ours, strict": percents(found, table.sets),
        "ours, the paper's reader": percents(paper, table.sets),
    }
    own, word, name = table.row(model, adapter), table.presets.get(adapter), Path(model).name
    if own:
        rows = {f"published, {name} {word}": own}
    elif name in table.rows:
        rows = {
            f"published, {name} {one}": dict(zip((*table.sets, "average"), row, strict=True))
            for one, row in table.rows[name].items()
        }
    else:
        rows = {
            f"published, {one} {word}": row
            for one in table.rows
            if (row := table.row(one, adapter))
        }
    if not own:
        rows[f"published, {table.teacher[0]}"] = dict(
            zip((*table.sets, "average"), table.teacher[1], strict=True)
        )
    partial = table.missing(found)
    if own and not partial:
        rows["difference"] = {one: ours["ours, the paper's reader"][one] - own[one] for one in own}
    lines = {
        title: [row[one] for one in (*table.sets, "average")]
        for title, row in (ours | rows).items()
    }
    said = f"The published figures are {table.about}."
    if not own:
        said += f" They have no row for {name} {'with ' + adapter if adapter else 'without an adapter'}."
    fewer = (
        [f"Ours are of fewer problems, so that no difference is given: {partial}."]
        if partial
        else []
    )
    return [*figure_lines(table.title, table.sets, lines), said, *fewer]


def figure_lines(
    title: str, sets: Sequence[str], rows: dict[str, list[float]], digits: int = 1
) -> list[str]:
    """A small table: a column for each set and their average, a line for each row."""
    width = max(map(len, [*rows, title]))
    lines = [
        f"{title:{width}}"
        + "".join(
            f"{NAMES.get(name, name):>{max(8, len(name) + 2)}}" for name in (*sets, "average")
        )
    ]
    for name, figures in rows.items():
        sign = "+" if name == "difference" else ""
        cells = [
            f"{figure:>{sign}{max(8, len(one) + 2)}.{digits}f}"
            for one, figure in zip((*sets, "average"), figures, strict=True)
        ]
        lines.append(f"{name:{width}}" + "".join(cells))
    return lines


def percents(found: dict[str, Score], sets: Sequence[str]) -> dict[str, float]:
    """Set -> percent, and their plain mean."""
    found = {name: found[name] for name in sets}
    return {name: 100 * score.accuracy for name, score in found.items()} | {
        "average": 100 * mean_score(found)[0]
    }


def history_text(entry: dict) -> str:
    """A run that trained an adapter, from what the adapter's file says of it:
    "rows.jsonl, 300 steps, seed 0, template alpaca"."""
    data = entry.get("data")
    if not isinstance(data, str) or not data:
        return "data that its file does not name"
    steps, seed, form = (entry.get(key) for key in ("steps", "seed", "template"))
    parts = [
        f"{steps:,} steps" if type(steps) is int else "",
        f"seed {seed}" if type(seed) is int else "",
        f"template {form}" if isinstance(form, str) and form else "",
        "rows with right rationales only" if entry.get("only_right") is True else "",
    ]
    return ", ".join(filter(None, [data, *parts]))


def loss_text(loss: object) -> str:
    """The held-out loss of a result.json in words, in nats per token: before and after of a run,
    or what an evaluation measured; "" where it has none."""
    figures = loss if isinstance(loss, dict) else {}
    names = {"before": " before", "after": " after", "loss": ""}
    found = [
        f"{figures[key]:.4f}{name}"
        for key, name in names.items()
        if isinstance(figures.get(key), float)
    ]
    rows = f" (rows: {figures['rows']:,})" if isinstance(figures.get("rows"), int) else ""
    return ", ".join(found) + rows * bool(found)

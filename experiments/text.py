"""The result of a run or an evaluation as lines of text."""

from eval.score import score_table
from experiments.comparable import Conditions, beside_published


def score_lines(
    before: list[dict], after: list[dict], title: str, before_title: str, ours: Conditions
) -> list[str]:
    """The table of scores, notes on answers that ran out of tokens or positions, and our figures
    beside the published ones."""
    lines = score_table(before, after, title, before_title, ours.trained_on).to_text()
    if cut := sum(prediction.get("cut", False) for prediction in after):
        lines.append(
            f"{cut} of {len(after)} answers ran out of tokens (eval.max_new_tokens) and were read "
            "as far as they went"
        )
    if too_long := sum(prediction.get("too_long", False) for prediction in after):
        lines.append(
            f"{too_long} of {len(after)} prompts are longer than the model's positions and count "
            "as wrong"
        )
    tables, notes = beside_published(ours, after)
    published = [line for table in tables for line in [*table.to_text(), ""]] + notes
    return [*lines, *([""] if published else []), *published]


def history_text(run: dict) -> str:
    """A run that trained an adapter, from the `run` section of the adapter's file:
    "rows.jsonl, 300 steps, seed 0, template alpaca"."""
    data = run.get("data")
    if not isinstance(data, str) or not data:
        return "data that its file does not name"
    steps, seed, template = (run.get(key) for key in ("steps", "seed", "template"))
    parts = [
        f"{steps:,} steps" if type(steps) is int else "",
        f"seed {seed}" if type(seed) is int else "",
        f"template {template}" if isinstance(template, str) and template else "",
        "rows with right rationales only" if run.get("only_right") is True else "",
    ]
    return ", ".join(filter(None, [data, *parts]))


def loss_text(loss: object) -> str:
    """The held_out_loss of a result.json: "3.0000 before, 2.0000 after (rows: 3)", in nats per
    token, or the one figure of an evaluation; "" where there is none."""
    figures = loss if isinstance(loss, dict) else {}
    names = {"before": " before", "after": " after", "loss": ""}
    texts = [
        f"{figures[key]:.4f}{name}"
        for key, name in names.items()
        if isinstance(figures.get(key), float)
    ]
    rows = f" (rows: {figures['rows']:,})" if isinstance(figures.get("rows"), int) else ""
    return ", ".join(texts) + rows * bool(texts)

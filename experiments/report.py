"""report.html: one self-contained page that says what was run and what came of it."""

import base64
import html
import io
import json
import random
import re
from pathlib import Path

from torch import nn

from adapters.config import AdapterConfig
from adapters.show import marked_sites
from eval.score import Score, clean, mean_score, scores
from experiments.inspect import place
from experiments.text import history_text, loss_text, published_lines
from files.writing import write_text

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 2em auto; padding: 0 1em; color: #222 }
h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin-top: 2em; border-bottom: 1px solid #ddd }
table { border-collapse: collapse; width: 100% }
td, th { padding: .35em .6em; text-align: left; vertical-align: top; border-bottom: 1px solid #eee }
td.bars { width: 30% } td.n, th.n { text-align: right; white-space: nowrap }
pre { background: #f6f6f4; padding: 1em; overflow-x: auto; font-size: 12.5px; line-height: 1.35 }
pre b { background: #ffd24d; font-weight: 600; border-radius: 2px } .right { color: #17692b } .wrong { color: #a4262c }
.bar { display: inline-block; height: .7em; background: #4472a8 } .bar.base { background: #bbb } small { color: #666 } img { max-width: 100% }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 1.5em } .item { border-left: 3px solid #ccc; padding-left: .7em;
  margin: .8em 0; white-space: pre-wrap }
.pair .item.right { border-color: #5aa469; color: inherit } .pair .item.wrong { border-color: #c9545a; color: inherit }
"""


def write_report(
    folder: Path,
    model: nn.Module,
    config: AdapterConfig,
    toml: str,
    facts: dict,
    base_predictions: list[dict],
    predictions: list[dict],
) -> None:
    """Write folder/report.html from a run's pieces and its log.jsonl."""
    after, before = scores(predictions), scores(base_predictions)
    first = next(iter(after), "")
    lead = f"{first}: {after[first]}" if first else "not measured: the data has no test set"
    if (loss := facts["held_out_loss"]) and not first:
        lead = f"held-out loss per token: {loss_text(loss)}"
    begin = "before" if facts["continued_from"] else "base"
    if before:
        lead = f"{first}: {100 * before[first].accuracy:.1f} % before, {100 * after[first].accuracy:.1f} % after"
    said = {place(p): p["output"] for p in base_predictions}
    warned = (
        f'<p class="wrong"><b>Trained on the test set: {esc(", ".join(facts["trained_on_test"]))}.</b></p>'
        if facts["trained_on_test"]
        else ""
    )
    measured = (
        f"""<h2>Accuracy</h2>{accuracy_table(base_predictions, predictions, begin)}
<p><small>Answers {esc(facts["decoding"])}; in brackets the 95 % interval (Wilson). Read strictly: what a text says its answer is; beside it as
the paper's code read it. Clean part: the problems of which training saw no twin, word for word or nearly so (leakage.json).</small></p>
{beside_published(facts, predictions)}"""
        if first
        else ""
    )
    shown = (
        f"""<h2>Answers on {esc(first)}</h2>
<div class="pair">{answers(predictions, first, True, said, begin)}{answers(predictions, first, False, said, begin)}</div>"""
        if first
        else ""
    )
    page = f"""<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{esc(folder.name)}</title><style>{STYLE}</style>
<h1>{esc(folder.name)}</h1>
<p><b>{esc(lead)}</b></p>{warned}{went_wrong(facts)}{continued(facts)}
<p>{facts["trainable_parameters"]:,} trained parameters beside {facts["parameters"]:,} frozen ones
({100 * facts["trainable_parameters"] / facts["parameters"]:.2f} %), {facts["steps"]:,} steps, {facts["seconds"]:,} seconds since it was last started;
{facts["skipped_steps"]} steps skipped, {facts["rows_cut_off"]} training rows cut off,
{facts["rows_left_out"]} rows left out that cannot be used{validation_text(facts["adapter_step"], facts["validation"])}.</p>
{measured}
<h2>Loss</h2><img alt="training loss by step" src="data:image/png;base64,{loss_curve(folder / "log.jsonl")}">
<h2>Where the adapter sits</h2>
<p>One block of {esc(model.config.model_type)}; marked sites hold the adapter: {esc(config.kind)} at {esc(config.place())}.</p>
<pre>{picture(model)}</pre>
{shown}
<h2>Settings</h2><p><small>run.toml; <code>python run.py --config {esc(str(folder / "run.toml"))}</code> repeats the run.</small></p><pre>{esc(toml)}</pre>
</html>"""
    write_text(folder / "report.html", page)


def went_wrong(facts: dict) -> str:
    """What went wrong in the run, and what else is to be said of it, as paragraphs."""
    problems = "".join(
        f'<p class="wrong"><b>Problem: {esc(one)}.</b></p>' for one in facts["problems"]
    )
    return problems + "".join(f"<p>Note: {esc(one)}.</p>" for one in facts["notes"])


def continued(facts: dict) -> str:
    """What the adapter was trained on before, where it was trained further."""
    if not facts["continued_from"]:
        return ""
    before = "; ".join(map(history_text, facts["history"]))
    return f"<p>Trained further from {esc(facts['continued_from'])}, which was trained on: {esc(before)}.</p>"


def validation_text(adapter_step: int, validation: dict) -> str:
    """Which step's adapter was kept, in words; nothing where nothing was validated."""
    if not validation:
        return ""
    return f"; the adapter is that of step {adapter_step}, the lowest validation loss, {validation['best_loss']:.4f}, is that of step {validation['best_step']}"


def esc(text: str) -> str:
    return html.escape(str(text))


def accuracy_table(
    base_predictions: list[dict], predictions: list[dict], begin: str = "base"
) -> str:
    """A row for each test set: base (or what `begin` calls it) and adapter read strictly, the clean
    part where training saw some of it, the paper's reader, bars."""
    before, after, paper, unseen = (
        scores(base_predictions),
        scores(predictions),
        scores(predictions, "paper_right"),
        scores(clean(predictions)),
    )
    leaky = len(clean(predictions)) < len(predictions)
    heads = [
        *([begin] if before else []),
        "with adapter",
        *(["clean part"] if leaky else []),
        "paper's reader",
        "problems",
    ]
    rows = []
    for name, score in after.items():
        cells = [interval(before[name])] if before else []
        cells.append(interval(score))
        if leaky:
            cells.append(
                f"{interval(unseen[name])} <small>of {unseen[name].total}</small>"
                if name in unseen
                else "none is clean"
            )
        cells += [f"{100 * paper[name].accuracy:.1f} %", str(score.problems)]
        bars = (
            f'<span class="bar base" style="width:{60 * before[name].accuracy:.1f}%"></span><br>'
            if before
            else ""
        )
        bars += f'<span class="bar" style="width:{60 * score.accuracy:.1f}%"></span>'
        rows.append(
            f"<tr><td>{esc(name)}</td>{''.join(f'<td class=n>{cell}</td>' for cell in cells)}<td class=bars>{bars}</td></tr>"
        )
    if len(after) > 1:
        means = [
            mean_score(found)[0]
            for found in (*([before] if before else []), after, *([unseen] if leaky else []), paper)
        ]
        rows.append(
            f"<tr><td>average</td>{''.join(f'<td class=n>{100 * mean:.1f} %</td>' for mean in means)}<td></td><td></td></tr>"
        )
    return f"<table><tr><th>test set</th>{''.join(f'<th class=n>{head}</th>' for head in heads)}<th></th></tr>{''.join(rows)}</table>"


def beside_published(facts: dict, predictions: list[dict]) -> str:
    """Our row beside those of the paper's table for this data."""
    lines = published_lines(facts["data"], facts["model"], facts["adapter"], predictions)
    return (
        f"<h2>Beside the published figures</h2><pre>{esc(chr(10).join(lines))}</pre>"
        if lines
        else ""
    )


def interval(score: Score) -> str:
    low, high = score.interval
    return f"<b>{100 * score.accuracy:.1f} %</b> <small>[{100 * low:.1f}, {100 * high:.1f}]</small>"


def read_log(path: Path) -> list[dict]:
    """The log's entries by step; a resumed run may have written a step twice, the later one counts."""
    entries = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:  # the line a kill cut short
            continue
        entries[entry["step"]] = entry
    return [entries[step] for step in sorted(entries)]


def loss_curve(log: Path) -> str:
    """The loss over steps as a PNG, base64."""
    from matplotlib.figure import Figure

    entries = [entry for entry in read_log(log) if entry["loss"] is not None]
    figure = Figure(figsize=(9, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot(
        [e["step"] for e in entries], [e["loss"] for e in entries], linewidth=1, color="#4472a8"
    )
    if validated := [e for e in entries if e.get("validation_loss") is not None]:
        points = [e["step"] for e in validated], [e["validation_loss"] for e in validated]
        axes.plot(*points, "o-", markersize=3, linewidth=1, color="#c9545a", label="validation")
        axes.legend()
    axes.set_xlabel("step")
    axes.set_ylabel("loss per response token")
    axes.set_yscale("log")
    axes.grid(alpha=0.3)
    rates = axes.twinx()
    rates.plot(
        [e["step"] for e in entries],
        [e["learning_rate"] for e in entries],
        linewidth=0.8,
        color="#bbb",
    )
    rates.set_ylabel("learning rate", color="#888")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return base64.b64encode(buffer.getvalue()).decode()


def picture(model: nn.Module) -> str:
    """The family's drawing of a block, with the sites that hold an adapter marked."""
    marked = marked_sites(model)
    return re.sub(
        r"\[(\w+)\]",
        lambda match: f"<b>[{match[1]}]</b>" if match[1] in marked else match[0],
        esc(model.picture),
    )


def answers(
    predictions: list[dict], name: str, right: bool, base: dict, begin: str = "base"
) -> str:
    """Ten predictions of one verdict, drawn with a fixed seed."""
    chosen = [p for p in predictions if p["set"] == name and p["right"] is right]
    shown = random.Random(0).sample(chosen, min(10, len(chosen)))
    word = "right" if right else "wrong"
    items = []
    for p in shown:
        was = base.get(place(p))
        base_line = f"<br><small>{begin}: {esc(was.strip())}</small>" if was is not None else ""
        items.append(
            f'<div class="item {word}">{esc(p["instruction"])}<br><span class="{word}">{esc(p["output"].strip())}</span>'
            f"<br><small>read: {esc(p['answer'])}, gold: {esc(p['gold'])}</small>{base_line}</div>"
        )
    return f"<div><h3>{len(shown)} of {len(chosen)} {word}</h3>{''.join(items)}</div>"

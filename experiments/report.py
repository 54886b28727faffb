"""report.html: one self-contained page on a run, its results and how it was made."""

import os
import platform
import random
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from adapters.config import AdapterConfig
from adapters.show import marked_sites
from eval.score import Score, clean, score_table, scores
from eval.table import Table
from experiments.comparable import Conditions, beside_published
from experiments.curves import loss_chart, read_log
from experiments.history import history_text
from experiments.inspect import place
from experiments.page import esc, explanation, page, paragraph
from files.writing import write_text
from model.language import LanguageModel

SHOWN = 5  # right and wrong answers, each


def write_report(
    folder: Path,
    model: LanguageModel,
    config: AdapterConfig,
    toml: str,
    facts: dict,
    before: list[dict],
    after: list[dict],
    conditions: Conditions,
) -> None:
    """Write folder/report.html.

    toml: the run's settings; facts: its result.json; before, after: predictions without (or with
    the adapter to continue) and with the trained adapter; conditions: what published rows are
    compared with. The curves come from folder/log.jsonl.
    """
    first = "before" if facts["continued_from"] else "base"
    name = facts["adapter"] or config.kind
    sections = [
        paragraph(f"{name} on {facts['model']}, data {facts['data']}"),
        tiles(facts, before, after),
        warnings(facts),
        accuracy(facts, before, after, first, conditions.trained_on),
        published(conditions, after),
        f"<h2>Loss</h2>{loss_chart(read_log(folder / 'log.jsonl'))}",
        paragraph("Per token with a label, in nats.", small=True),
        block(model, config, name),
        answers(before, after, first),
        made_by(folder, toml),
    ]
    write_text(folder / "report.html", page(folder.name, "\n".join(sections)))


def tiles(facts: dict, before: list[dict], after: list[dict]) -> str:
    """The main figures of the run."""
    was, now = scores(before), scores(after)
    figures = []
    if name := next(iter(now), ""):
        both = f"{percent(was[name])} → {percent(now[name])}" if was else percent(now[name])
        figures.append((both, f"{name}: accuracy" + (" before → after" if was else "")))
    elif loss := facts["held_out_loss"] or facts.get("divergence"):
        both = f"{loss['before']:.4f} → {loss['after']:.4f}"
        what = "KL to the teacher" if facts.get("divergence") else "held-out loss"
        figures.append((both, f"{what} per token before → after (rows: {loss['rows']:,})"))
    else:
        figures.append(("not measured", "the data has no test set"))
    share = 100 * facts["trainable_parameters"] / facts["parameters"]
    kept = validation_text(facts["adapter_step"], facts["validation"]).removeprefix("; ")
    figures += [
        (
            f"{facts['trainable_parameters']:,}",
            f"trained parameters beside {facts['parameters']:,} frozen ones, {share:.2f}%",
        ),
        (f"{facts['steps']:,} steps", f"in {facts['seconds']:,} seconds since it was last started"),
    ]
    boxes = "".join(
        f'<div class="tile"><b>{esc(figure)}</b><span>{esc(text)}</span></div>'
        for figure, text in figures
    )
    counts = (
        ("skipped_steps", "steps skipped"),
        ("rows_cut_off", "training rows cut off"),
        ("rows_left_out", "rows left out that cannot be used"),
    )
    texts = [f"{facts[key]:,} {text}" for key, text in counts if facts[key]]
    line = "; ".join([*texts, *([kept] if kept else [])])
    return f'<div class="tiles">{boxes}</div>' + paragraph(line, small=True)


def percent(score: Score) -> str:
    return f"{100 * score.accuracy:.1f}%"


def warnings(facts: dict) -> str:
    """What went wrong in the run, and what else to know of it."""
    alarms = [f"Problem: {problem}." for problem in facts["problems"]]
    if facts["trained_on_test"]:
        alarms.insert(0, f"Trained on the test set: {', '.join(facts['trained_on_test'])}.")
    notes = [f"Note: {note}." for note in facts["notes"]]
    if facts["continued_from"]:
        before = "; ".join(map(history_text, facts["history"]))
        notes.append(
            f"Trained further from {facts['continued_from']}, which was trained on: {before}."
        )
    boxes = [f'<div class="alarm wrong"><b>{esc(text)}</b></div>' for text in alarms]
    return "\n".join([*boxes, *(f'<div class="note">{esc(text)}</div>' for text in notes)])


def validation_text(adapter_step: int, validation: dict) -> str:
    """ "; the adapter is that of step 4, ...": which step's adapter was kept, where validated."""
    if not validation:
        return ""
    return (
        f"; the adapter is that of step {adapter_step}, the lowest validation loss, "
        f"{validation['best_loss']:.4f}, is that of step {validation['best_step']}"
    )


def accuracy(facts: dict, before: list[dict], after: list[dict], first: str, data: str) -> str:
    """The table of scores, what its sets test, and what its columns are.

    data: that the adapter was trained on, and no other.
    """
    if not after:
        return ""
    table = score_table(before, after, "with adapter", first, data)
    names = list(scores(after))
    lines = "".join(
        f"<dt>{esc(name)}</dt><dd>{esc(explanation(name, facts['data']))}</dd>" for name in names
    )
    notes = [
        f"Answers: {facts['decoding']}. In brackets the 95% interval (Wilson) and the number of "
        "answers. Read strictly: the answer that a text states; paper's reader: the same answers "
        "as the paper's code read them."
    ]
    if len(clean(after)) < len(after):
        notes.append(
            "Clean part: the problems that are not in the training rows, neither word for word nor "
            "nearly so (leakage.json)."
        )
    return (
        f"<h2>Accuracy</h2>{table.to_html()}{paragraph(' '.join(notes), small=True)}"
        f"<dl>{lines}</dl>"
    )


def published(conditions: Conditions, after: list[dict]) -> str:
    """Our figures above comparable published ones, and what differs from the other rows."""
    tables, notes = beside_published(conditions, after)
    if not notes:
        return ""
    html = "".join(table.to_html() for table in tables)
    html += "".join(paragraph(note, small=True) for note in notes)
    return f"<h2>Beside the published figures</h2>{html}"


def block(model: LanguageModel, config: AdapterConfig, name: str) -> str:
    """The family's drawing of a block, with the sites that hold an adapter marked."""
    marked = marked_sites(model)
    picture = re.sub(
        r"\[(\w+)\]",
        lambda match: f"<b>[{match[1]}]</b>" if match[1] in marked else match[0],
        esc(model.picture),
    )
    return f"""<h2>Where the adapter sits</h2>
<p>One block of {esc(model.config.model_type)}; marked sites hold the adapter: {esc(name)} at
{esc(config.place())}.</p><pre>{picture}</pre>"""


def answers(before: list[dict], after: list[dict], first: str) -> str:
    """Some wrong and some right answers on the first test set, beside those before training."""
    if not after:
        return ""
    name, was = after[0]["set"], {place(prediction): prediction for prediction in before}
    parts = []
    for right, title in ((False, "wrong"), (True, "right")):
        chosen = [p for p in after if p["set"] == name and p["right"] is right]
        shown = random.Random(0).sample(chosen, min(SHOWN, len(chosen)))
        problems = "".join(problem(p, was.get(place(p)), first) for p in shown)
        parts.append(f"<h3>{len(shown)} of {len(chosen)} {title} answers</h3>{problems}")
    return f"<h2>Answers on {esc(name)}</h2>{''.join(parts)}"


def problem(prediction: dict, before: dict | None, first: str) -> str:
    pairs = [(first, before)] if before else []
    texts = "".join(answer(title, p) for title, p in [*pairs, ("with adapter", prediction)])
    text = f"{esc(prediction['instruction'])}\n<small>label: {esc(prediction['gold'])}</small>"
    return f'<div class="problem"><p>{text}</p><div class="pair">{texts}</div></div>'


def answer(title: str, prediction: dict) -> str:
    word = "right" if prediction["right"] else "wrong"
    read = prediction["answer"]
    read = "no answer" if read is None else f"{read:g}" if isinstance(read, float) else read
    return (
        f'<div class="answer {word}"><small>{esc(title)}</small>'
        f"<p>{esc(prediction['output'].strip())}</p>"
        f'<small>read: {esc(read)}, <span class="{word}">{word}</span></small></div>'
    )


def made_by(folder: Path, toml: str) -> str:
    """How the run was made: command, environment, and, folded, all settings."""
    software = Table(("", ""), list(environment().items()), names=2)
    again = f"python run.py --config {shlex.quote(str(folder / 'run.toml'))}"
    return f"""<h2>How it was made</h2>
<p>Started by <code>{esc(shlex.join(sys.argv))}</code>;
<code>{esc(again)}</code> repeats the run.</p>
<details><summary>Environment</summary>{software.to_html()}</details>
<details><summary>Settings (run.toml)</summary><pre>{esc(toml)}</pre></details>"""


def environment() -> dict[str, str]:
    """The software and hardware of this process."""
    cards: Sequence[str] = ()
    if torch.cuda.is_available():
        cards = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    return {
        "Python": platform.python_version(),
        "PyTorch": torch.__version__,
        "CUDA": torch.version.cuda or "none",
        "GPUs": ", ".join(cards) or "none",
        "CPU": f"{platform.machine()}, {os.cpu_count()} cores",
        "threads": str(torch.get_num_threads()),
        "system": platform.platform(),
    }

"""Measure a model, with adapters or without, in a folder; an interrupted evaluation resumes."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from data.prompts import Template, stored_template
from data.sources import load_data
from eval.journal import remove_journals
from eval.room import room_lines
from eval.score import mark_leaks, predict, tables, write_predictions
from experiments.base import check_base, toy_lines
from experiments.folders import fresh_folder
from experiments.held_out import measure_loss, unseen_examples
from experiments.history import held_out_seen, history_lines, history_of, seen_in_training
from experiments.labels import check_labels, reading_lines
from experiments.loading import load_with_adapter
from experiments.run import first_items
from files.errors import UserError
from files.reading import read_json
from files.writing import held, write_text
from train.parallel import SINGLE, Processes
from train.settings import Settings, to_toml
from train.settings import settings as make_settings

STARTED, DONE, PREDICTIONS = "evaluation.json", "result.json", "predictions.jsonl"


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate`."""

    predictions: list[dict]  # as eval/score.py returns them
    template: Template
    preset: str  # name of the adapter in presets.toml; "" where unknown, or for several adapters
    notes: list[str]
    loss: dict  # {rows, loss}: nats per token on held-out rows, where the data has no answers
    is_text: bool = False  # plain text was measured, without a prompt


@dataclass(frozen=True)
class Unfinished:
    """The arguments of an evaluation that was interrupted."""

    settings: Settings
    adapters: list[Path]
    average: bool
    template_name: str | None


def evaluate(
    settings: Settings,
    adapters: Sequence[Path],
    folder: Path,
    average: bool = False,
    template_name: str | None = None,
    processes: Processes = SINGLE,
) -> Evaluation:
    """Measure the base of `settings` with these saved adapters (none: alone) on its test sets.

    Writes evaluation.json, evaluate.toml, predictions.jsonl and result.json to `folder`, and
    continues with the answers that an interrupted evaluation left there. Of several `processes`
    rank 0 writes. Raises UserError, also when another process holds the folder.
    """
    with held(folder) if processes.is_writer else nullcontext():
        return measure(
            Unfinished(settings, list(adapters), average, template_name), folder, processes
        )


def measure(job: Unfinished, folder: Path, processes: Processes) -> Evaluation:
    s = job.settings
    check_base(s)
    data = load_data(
        s.data,
        s.data_dir,
        s.seed,
        tests=s.tests,
        columns=s.columns,
        test_share=s.test_share,
        strict_rows=s.strict_rows,
    )
    tests = first_items(data.tests, s.eval.items)
    if not (tests or data.held_out or (data.is_text and s.test_share)):
        raise UserError(f"data {data.name} has no test set: choose some with --tests NAME,NAME")
    check_labels(tests, data.reads)
    model, tokenizer, prompt, runs = load_with_adapter(
        s,
        job.adapters,
        job.average,
        template_name=job.template_name,
        processes=processes,
        is_own=data.is_own,
    )
    differences = [
        *template_lines(stored_template(runs, tokenizer), prompt),
        *base_lines(runs, model.quantize),
        *(line for run in runs for line in several_lines(history_of(run))),
    ]
    too_long = room_lines(model, tokenizer, tests, prompt, s.eval)
    for line in [*toy_lines(s.model), *too_long]:
        print(line)
    leaks, leak_notes = seen_in_training(runs, tests, s.data_dir)
    leak_notes += held_out_seen(runs, data.held_out, s.data_dir)
    notes = [*data.notes, *reading_lines(tests, data.reads), *differences]
    notes += dict.fromkeys(leak_notes)
    start = {
        "adapters": [str(adapter.resolve()) for adapter in job.adapters],
        "averaged": job.average,
        "template": job.template_name,
    }
    same = {
        "base model": model.fingerprint,
        "settings": to_toml(replace(s, device="")),
        "tests": hashlib.sha256(json.dumps(tests).encode()).hexdigest(),
    }
    weights = {name: p for name, p in model.named_parameters() if ".adapters." in name}
    processes.agree(same, {"adapters": weights})
    if processes.is_writer:
        write_text(folder / STARTED, json.dumps(start, indent=2) + "\n")
        write_text(folder / "evaluate.toml", to_toml(s))
    loss = {}
    if not tests and (unseen := unseen_examples(tokenizer, data, prompt, s)):
        figure = measure_loss(model, unseen, s, tokenizer.pad_id or 0, processes)
        loss = {"rows": len(unseen), "loss": figure}
    journal = folder / f"{PREDICTIONS}.part"
    predictions = predict(
        model,
        tokenizer,
        tests,
        template=prompt,
        how=s.eval,
        reads=data.reads,
        journal=journal,
        processes=processes,
    )
    for leak in leaks:
        mark_leaks(predictions, leak)
    facts = {
        "model": s.model,
        "quantize": model.quantize,
        "data": s.data,
        "decoding": s.eval.decoding,
        **start,
        "template": prompt.name,
        "notes": [*notes, *too_long],
        "scores": tables(predictions),
        "held_out_loss": loss,
    }
    if processes.is_writer:
        write_predictions(folder / PREDICTIONS, predictions)
        write_text(folder / DONE, json.dumps(facts, indent=2) + "\n")
        remove_journals(journal)
    preset = runs[0].get("adapter") if len(runs) == 1 and not job.average else ""
    preset = preset if isinstance(preset, str) else ""
    return Evaluation(predictions, prompt, preset, notes, loss, data.is_text and not tests)


def template_lines(stored: Template | None, prompt: Template) -> list[str]:
    if stored in (None, prompt):
        return []
    return [
        f"the adapter was trained with the template {stored.name}, not with {prompt.name}: its "
        "answers may suffer"
    ]


def base_lines(runs: list[dict], quantize: str) -> list[str]:
    """A line for each way of storing the base's weights that differs from this one."""
    stored = {
        run.get("quantize", quantize)
        for run in runs
        if isinstance(run.get("quantize", quantize), str)
    }
    return [
        f"the adapter was trained on a base stored as {name or 'plain weights'}, and this one is "
        f"stored as {quantize or 'plain weights'}"
        for name in sorted(stored - {quantize})
    ]


def several_lines(history: list[dict]) -> list[str]:
    if len(history) < 2:
        return []
    return [
        f"the adapter was trained on {len(history)} sets of data, one after the other: "
        f"{'; '.join(history_lines(history))}"
    ]


def unfinished(folder: Path) -> Unfinished:
    """The interrupted evaluation in this folder. Raises UserError where there is none."""
    if (folder / DONE).is_file():
        raise UserError(f"{folder} is complete; see {folder / PREDICTIONS}")
    if not (folder / STARTED).is_file():
        raise UserError(f"{folder} holds no {STARTED}: there is no evaluation to continue")
    start = read_json(folder / STARTED)
    adapters, name = start.get("adapters"), start.get("template")
    if (
        not isinstance(adapters, list)
        or not all(isinstance(path, str) for path in adapters)
        or not isinstance(name, str | None)
    ):
        raise UserError(f"{folder / STARTED} is malformed")
    settings = make_settings(config=str(folder / "evaluate.toml"))
    return Unfinished(settings, list(map(Path, adapters)), start.get("averaged") is True, name)


def new_folder(path: Path, numbered: bool) -> Path:
    """`fresh_folder`, which names the command that resumes where an evaluation was interrupted."""
    if not numbered and (path / STARTED).is_file() and not (path / DONE).is_file():
        raise UserError(
            f"{path} holds an evaluation that was interrupted: continue it with python run.py "
            f"evaluate --resume {path}"
        )
    return fresh_folder(path, numbered)

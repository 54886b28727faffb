"""Measure a model, with adapters or without, in a folder; an interrupted evaluation resumes."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from adapters.attach import adapter_names, adapters_named
from data.prompts import Template
from data.stored_template import stored_template
from eval.journal import remove_journals
from eval.predict import predict
from eval.room import room_lines
from eval.score import mark_leaks, scores, tables, write_predictions
from experiments.base import check_base, toy_lines
from experiments.comparable import Conditions, compare
from experiments.folders import check_whole, fresh_folder, write_json
from experiments.history import held_out_seen, history_of, history_text, seen_in_training
from experiments.loading import load_with_adapter
from experiments.measured import first_problems, measure_loss, reading_lines, unseen_examples
from experiments.rows import data_of
from files.errors import UserError
from files.reading import read_json
from files.typed import from_table
from files.writing import held, write_text
from model.language import LanguageModel
from train.parallel import SINGLE, Processes
from train.settings import Settings, to_toml
from train.settings import settings as make_settings

STARTED, DONE, PREDICTIONS = "evaluation.json", "result.json", "predictions.jsonl"
SETTINGS = "evaluate.toml"


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate`."""

    predictions: list[dict]  # as eval/score.py returns them
    template: Template
    conditions: Conditions  # what published rows are compared with
    notes: list[str]
    loss: dict  # {rows, loss}: nats per token on held-out rows, where the data has no answers
    is_text: bool = False  # plain text was measured, without a prompt


@dataclass(frozen=True)
class Started:
    """evaluation.json."""

    adapters: list[str]
    averaged: bool = False
    template: str | None = None


@dataclass(frozen=True)
class Arguments:
    """What an evaluation measures."""

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
            Arguments(settings, list(adapters), average, template_name), folder, processes
        )


def measure(job: Arguments, folder: Path, processes: Processes) -> Evaluation:
    s = job.settings
    check_base(s)
    data = data_of(s)
    tests = first_problems(data, s)
    if not (tests or data.held_out or (data.is_text and s.test_share)):
        raise UserError(f"data {data.name} has no test set: choose some with --tests NAME,NAME")
    model, tokenizer, prompt, runs = load_with_adapter(
        s,
        job.adapters,
        job.average,
        template_name=job.template_name,
        processes=processes,
        is_own=data.is_own,
    )
    stored = stored_template(runs, tokenizer)
    differences = difference_lines(runs, stored, prompt, model.quantize)
    too_long = room_lines(model, tokenizer, tests, prompt, s.eval)
    for line in [*toy_lines(s.model), *too_long]:
        print(line)
    named = [s.data, *s.tests]
    leaks, leak_notes = seen_in_training(runs, tests, s.data_dir, named)
    leak_notes += held_out_seen(runs, data.held_out, s.data_dir, named)
    notes = [*data.notes, *reading_lines(tests, data.reads), *differences]
    notes += dict.fromkeys(leak_notes)
    adapters = [str(adapter.resolve()) for adapter in job.adapters]
    start = asdict(Started(adapters, job.average, job.template_name))
    same = {
        "base model": model.fingerprint,
        "settings": to_toml(replace(s, device="")),
        "tests": hashlib.sha256(json.dumps(tests).encode()).hexdigest(),
    }
    weights = {name: p for name, p in model.named_parameters() if ".adapters." in name}
    processes.agree(same, {"adapters": weights})
    if processes.is_writer:
        write_text(folder / SETTINGS, to_toml(s))
        write_json(folder / STARTED, start)  # last: it says that there is something to resume
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
        decoding=s.eval,
        reads=data.reads,
        journal=journal,
        processes=processes,
    )
    for leak in leaks:
        mark_leaks(predictions, leak)
    conditions = trained_conditions(s, model, runs)
    facts = {
        "model": s.model,
        "quantize": model.quantize,
        "data": s.data,
        "published": [c.facts() for c in compare(conditions, scores(predictions))],
        "decoding": s.eval.decoding,
        **start,
        "template": prompt.name,
        "notes": [*notes, *too_long],
        "scores": tables(predictions),
        "held_out_loss": loss,
    }
    if processes.is_writer:
        write_predictions(folder / PREDICTIONS, predictions)
        write_json(folder / DONE, facts)
        remove_journals(journal)
    return Evaluation(predictions, prompt, conditions, notes, loss, data.is_text and not tests)


def trained_conditions(s: Settings, model: LanguageModel, runs: list[dict]) -> Conditions:
    """The conditions under which the adapter on the model was trained, by its file."""
    names = adapter_names(model)
    if len(runs) != 1 or len(names) != 1:
        return Conditions(s.model, s.data, None, None)
    run, config = runs[0], next(iter(adapters_named(model, names[0]).values())).config
    weight, data = run.get("prompt_weight"), run.get("data")
    rows = "the rows with right rationales" if run.get("only_right") is True else ""
    if data != s.data:
        rows = f"the rows of {data}" if isinstance(data, str) else "rows that are not known"
    if run.get("history"):
        rows = "the rows after those of another run"
    return Conditions(s.model, s.data, config, weight if isinstance(weight, float) else None, rows)


def difference_lines(
    runs: list[dict], stored: Template | None, prompt: Template, quantize: str
) -> list[str]:
    """How the adapters' training differed from this evaluation, and what they were trained on
    where that is more than one set of data."""
    lines = []
    if stored not in (None, prompt):
        lines.append(
            f"the adapter was trained with the template {stored.name}, not with {prompt.name}: its "
            "answers may suffer"
        )
    stored_as = [run.get("quantize", quantize) for run in runs]
    for name in sorted({base for base in stored_as if isinstance(base, str)} - {quantize}):
        lines.append(
            f"the adapter was trained on a base stored as {name or 'plain weights'}, and this one "
            f"is stored as {quantize or 'plain weights'}"
        )
    for history in map(history_of, runs):
        if len(history) > 1:
            lines.append(
                f"the adapter was trained on {len(history)} sets of data, one after the other: "
                f"{'; '.join(map(history_text, history))}"
            )
    return lines


def unfinished(folder: Path) -> Arguments:
    """The interrupted evaluation in this folder. Raises UserError where there is none."""
    if (folder / DONE).is_file():
        raise UserError(f"{folder} is complete; see {folder / PREDICTIONS}")
    if not (folder / STARTED).is_file():
        raise UserError(f"{folder} holds no {STARTED}: there is no evaluation to continue")
    start = from_table(Started, read_json(folder / STARTED), str(folder / STARTED), "key")
    check_whole(folder / SETTINGS)
    settings = make_settings(config=str(folder / SETTINGS))
    return Arguments(settings, list(map(Path, start.adapters)), start.averaged, start.template)


def new_folder(path: Path, numbered: bool) -> Path:
    """`fresh_folder`, which names the command that resumes where an evaluation was interrupted."""
    if not numbered and (path / STARTED).is_file() and not (path / DONE).is_file():
        raise UserError(
            f"{path} holds an evaluation that was interrupted: continue it with python run.py "
            f"evaluate --resume {path}"
        )
    return fresh_folder(path, numbered, begun=[SETTINGS])

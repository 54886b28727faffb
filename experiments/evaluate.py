"""A model measured: with adapters or without, on any sets, in a folder of its own, to be continued when it was interrupted."""

import argparse
import hashlib
import json
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from adapters import Average, use
from adapters.attach import in_order
from adapters.several import load_any
from data.prompts import Template, stored_template, template
from data.sources import load_data
from eval.journal import remove_journals
from eval.room import room_lines
from eval.score import mark_leaks, predict, tables, write_predictions
from experiments.held_out import measure_loss, unseen_examples
from experiments.history import held_out_seen, history_lines, history_of, seen_in_training
from experiments.labels import check_labels, reading_lines
from experiments.options import MODEL_OPTIONS, given
from experiments.run import first_items, fresh_folder
from files.errors import UserError
from files.reading import read_json
from files.toml import parse_set
from files.writing import held, write_text
from train.base import check_base, load_base, load_words, toy_lines
from train.parallel import ALONE, Processes
from train.settings import Settings, settings, to_toml

STARTED, DONE, PREDICTIONS = "evaluation.json", "result.json", "predictions.jsonl"
NOT_OF_MEASURING = (
    "adapter",
    "train",
    "load",
    "continue_from",
    "only_right",
    "train_on_test",
)  # settings that change nothing then
NOT_TO_MEASURE = {
    "shard": False,
    "train": {"offload": False},
}  # what a run was trained with and measuring it has no use for


def run_settings(options: argparse.Namespace, more: dict) -> tuple[Settings, list[Path]]:
    """(settings, folders of adapters) from a run's folder and the options given beside it. Raises UserError."""
    chosen = given(options, MODEL_OPTIONS) | more
    adapters = [Path(folder) for folder in options.adapter or []]
    for adapter in adapters:
        if (adapter / "adapter").is_dir():
            raise UserError(
                f"--adapter {adapter} is the folder of a run; its adapter is {adapter / 'adapter'}"
            )
    config, recipe, sets = (getattr(options, key, None) for key in ("config", "recipe", "set"))
    for text in sets or []:
        ((key, value),) = parse_set(text).items()
        if key in NOT_OF_MEASURING or (
            key == "eval" and isinstance(value, dict) and "before" in value
        ):
            raise UserError(f"--set {text}: there is nothing to train here, {key} changes nothing")
        if key == "template":
            raise UserError(
                f"--set {text}: use --template, which counts beside what the adapter was trained with, too"
            )
    if not options.run:
        return settings(config, recipe, chosen, sets or []), adapters
    if config or recipe:
        raise UserError(
            f"the folder of a run has its own settings: give either it or --{'config' if config else 'recipe'}"
        )
    if not (Path(options.run) / "run.toml").is_file():
        raise UserError(f"{options.run} holds no run.toml: it is not the folder of a run")
    if not adapters and not (Path(options.run) / "adapter").is_dir():
        raise UserError(
            f"the run in {options.run} is not finished, it has no adapter yet: continue it with --resume {options.run}"
        )
    return settings(
        str(Path(options.run) / "run.toml"), None, NOT_TO_MEASURE | chosen, sets or []
    ), adapters or [Path(options.run) / "adapter"]


def load_with_adapter(
    made: Settings,
    adapters: list[Path],
    average: bool = False,
    words: bool = True,
    form: str | None = None,
    processes: Processes = ALONE,
    is_own: bool = False,
):
    """(model, tokenizer or None, prompt template, what the adapters' files say of their runs): the base of the settings with the adapters of these
    folders, stacked or averaged. The template is the one they were trained with, or that of the name `form`; `is_own`: it is for data or an instruction of
    the user's. Raises UserError."""
    model = load_base(made, processes)
    tokenizer = load_words(made, model) if words else None
    names = (
        ["default"]
        if len(adapters) == 1
        else [f"adapter{number}" for number in range(1, len(adapters) + 1)]
    )
    runs = [load_any(model, folder, name) for folder, name in zip(adapters, names, strict=True)]
    if average:
        if len(adapters) < 2 or in_order(model) != names:
            raise UserError("--average takes two adapters or more, each of its own folder")
        use(model, [Average(*names)])
    stored = stored_template(runs, tokenizer)
    model.eval()
    return (
        model,
        tokenizer,
        template(form, tokenizer) if form else stored or template(made.template, tokenizer, is_own),
        runs,
    )


@dataclass(frozen=True)
class Measured:
    """What came of an evaluation: predictions, the prompt template, the preset of the one adapter that was on (or ""), what else is to be said."""

    predictions: list[dict]
    template: Template
    preset: str
    said: list[str]
    loss: dict  # {rows, loss}: nats per token on held-out rows, where the data has no answers
    is_text: bool = False  # what was measured is plain text, without a prompt


def evaluate(
    made: Settings,
    adapters: list[Path],
    folder: Path,
    average: bool = False,
    form: str | None = None,
    processes: Processes = ALONE,
) -> Measured:
    """Measure in `folder`, going on with what is there, which no other process can do at the same time; of several `processes` rank 0 writes.
    Raises UserError."""
    with held(folder) if processes.is_writer else nullcontext():
        return evaluate_in(made, adapters, folder, average, form, processes)


def evaluate_in(
    made: Settings,
    adapters: list[Path],
    folder: Path,
    average: bool,
    form: str | None,
    processes: Processes,
) -> Measured:
    check_base(made)
    data = load_data(
        made.data,
        made.data_dir,
        made.seed,
        tests=made.tests,
        columns=made.columns,
        test_share=made.test_share,
        strict_rows=made.strict_rows,
    )
    tests = first_items(data.tests, made.eval.items)
    if not (tests or data.held_out or (data.is_text and made.test_share)):
        raise UserError(f"data {data.name} has no test set: choose some with --tests NAME,NAME")
    check_labels(tests, data.reads)
    model, tokenizer, prompt, runs = load_with_adapter(
        made, adapters, average, form=form, processes=processes, is_own=data.is_own
    )
    stored = stored_template(runs, tokenizer)
    said = (
        []
        if stored in (None, prompt)
        else [
            f"the adapter was trained with the template {stored.name}, not with {prompt.name}: its answers may suffer"
        ]
    )
    for before in sorted(
        {one for run in runs if isinstance(one := run.get("quantize", model.quantize), str)}
        - {model.quantize}
    ):
        said.append(
            f"the adapter was trained on a base stored as {before or 'plain weights'}, and this one is stored as {model.quantize or 'plain weights'}"
        )
    notes = [*data.notes, *reading_lines(tests, data.reads)]
    for run in runs:
        if len(history := history_of(run)) > 1:
            said.append(
                f"the adapter was trained on {len(history)} sets of data, one after the other: {'; '.join(history_lines(history))}"
            )
    too_long = room_lines(model, tokenizer, tests, prompt, made.eval)
    for line in [*toy_lines(made.model), *too_long]:
        print(line)
    leaks, more = seen_in_training(runs, tests, made.data_dir)
    more = list(dict.fromkeys([*more, *held_out_seen(runs, data.held_out, made.data_dir)]))
    start = {
        "adapters": [str(adapter.resolve()) for adapter in adapters],
        "averaged": average,
        "template": form,
    }
    same = {
        "base model": model.fingerprint,
        "settings": to_toml(replace(made, device="")),
        "tests": hashlib.sha256(json.dumps(tests).encode()).hexdigest(),
    }
    processes.agree(
        same,
        {"adapters": {name: one for name, one in model.named_parameters() if ".adapters." in name}},
    )
    if processes.is_writer:
        write_text(folder / STARTED, json.dumps(start, indent=2) + "\n")
        write_text(folder / "evaluate.toml", to_toml(made))
    journal = folder / f"{PREDICTIONS}.part"
    unseen = [] if tests else unseen_examples(tokenizer, data, prompt, made)
    loss = {}
    if unseen:
        pad_id = tokenizer.pad_id or 0
        loss = {"rows": len(unseen), "loss": measure_loss(model, unseen, made, pad_id, processes)}
    predictions = predict(
        model,
        tokenizer,
        tests,
        template=prompt,
        how=made.eval,
        reads=data.reads,
        journal=journal,
        processes=processes,
    )
    for one in leaks:
        mark_leaks(predictions, one)
    facts = {
        "model": made.model,
        "quantize": model.quantize,
        "data": made.data,
        "decoding": made.eval.decoding,
        **start,
        "template": prompt.name,
        "notes": [*notes, *said, *more, *too_long],
        "scores": tables(predictions),
        "held_out_loss": loss,
    }
    if processes.is_writer:
        write_predictions(folder / PREDICTIONS, predictions)
        write_text(folder / DONE, json.dumps(facts, indent=2) + "\n")
        remove_journals(journal)
    preset = runs[0].get("adapter", "") if len(runs) == 1 and not average else ""
    return Measured(
        predictions,
        prompt,
        preset if isinstance(preset, str) else "",
        [*notes, *said, *more],
        loss,
        data.is_text and not tests,
    )


def unfinished(folder: Path) -> tuple[Settings, list[Path], bool, str | None]:
    """What an interrupted evaluation in this folder was: its settings, adapters, whether they are averaged, the template given. Raises UserError."""
    if (folder / DONE).is_file():
        raise UserError(f"{folder} is complete; see {folder / PREDICTIONS}")
    if not (folder / STARTED).is_file():
        raise UserError(f"{folder} holds no {STARTED}: there is no evaluation to continue")
    start = read_json(folder / STARTED)
    adapters, form = start.get("adapters"), start.get("template")
    if (
        not isinstance(adapters, list)
        or not all(isinstance(path, str) for path in adapters)
        or not isinstance(form, str | None)
    ):
        raise UserError(f"{folder / STARTED} is malformed")
    return (
        settings(config=str(folder / "evaluate.toml")),
        [Path(path) for path in adapters],
        start.get("averaged") is True,
        form,
    )


def new_folder(path: Path, numbered: bool) -> Path:
    """As `fresh_folder`; an unfinished evaluation is pointed out."""
    if not numbered and (path / STARTED).is_file() and not (path / DONE).is_file():
        raise UserError(
            f"{path} holds an evaluation that was interrupted: continue it with python run.py evaluate --resume {path}"
        )
    return fresh_folder(path, numbered)

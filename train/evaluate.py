"""A model measured: with adapters or without, on any sets, in a folder of its own, to be continued when it was interrupted."""

import argparse
import json
from pathlib import Path

from adapters import Average, use
from adapters.attach import in_order
from adapters.several import load_any
from data.leakage import leakage
from data.prompts import Template, stored_template, template
from data.sources import is_here, load_data
from eval.score import check_labels, mark_leaks, predict, tables, write_predictions
from model.errors import UserError
from model.files import make_folder, read_json, write_text
from train.experiment import check_model, first_items, fresh_folder, load_base, load_words
from train.options import MODEL_OPTIONS, given
from train.settings import Settings, settings, to_toml

STARTED, DONE, PREDICTIONS = "evaluation.json", "result.json", "predictions.jsonl"


def run_settings(options: argparse.Namespace, more: dict) -> tuple[Settings, list[Path]]:
    """(settings, folders of adapters) from a run's folder and the options given beside it. Raises UserError."""
    chosen = given(options, MODEL_OPTIONS) | more
    adapters = [Path(folder) for folder in options.adapter or []]
    for adapter in adapters:
        if (adapter / "adapter").is_dir():
            raise UserError(f"--adapter {adapter} is the folder of a run; its adapter is {adapter / 'adapter'}")
    config, recipe, sets = (getattr(options, key, None) for key in ("config", "recipe", "set"))
    if not options.run:
        return settings(config, recipe, chosen, sets or []), adapters
    if config:
        raise UserError("the folder of a run has its own settings: give either it or --config")
    if not (Path(options.run) / "run.toml").is_file():
        raise UserError(f"{options.run} holds no run.toml: it is not the folder of a run")
    if not adapters and not (Path(options.run) / "adapter").is_dir():
        raise UserError(f"the run in {options.run} is not finished, it has no adapter yet: continue it with --resume {options.run}")
    return settings(str(Path(options.run) / "run.toml"), recipe, chosen, sets or []), adapters or [Path(options.run) / "adapter"]


def load_with_adapter(made: Settings, adapters: list[Path], average: bool = False, words: bool = True, form: str | None = None):
    """(model, tokenizer or None, prompt template, what the adapters' files say of their runs): the base of the settings with the adapters of these
    folders, stacked or averaged. The template is the one they were trained with, or that of the name `form`. Raises UserError."""
    model = load_base(made)
    tokenizer = load_words(made, model) if words else None
    names = ["default"] if len(adapters) == 1 else [f"adapter{number}" for number in range(1, len(adapters) + 1)]
    runs = [load_any(model, folder, name) for folder, name in zip(adapters, names, strict=True)]
    if average:
        if len(adapters) < 2 or in_order(model) != names:
            raise UserError("--average takes two adapters or more, each of its own folder")
        use(model, [Average(*names)])
    stored = stored_template(runs, tokenizer)
    model.eval()
    return model, tokenizer, template(form, tokenizer) if form else stored or template(made.template, tokenizer), runs


def evaluate(made: Settings, adapters: list[Path], folder: Path, average: bool = False, form: str | None = None) -> tuple[list[dict], Template, list[str]]:
    """Measure in `folder`, going on with what is there: (predictions, the prompt template, what else is to be said). Raises UserError."""
    check_model(made.model)
    data = load_data(made.data, made.data_dir, made.seed, tests=made.tests, columns=made.columns, test_share=made.test_share)
    tests = first_items(data.tests, made.eval.items)
    if not tests:
        raise UserError(f"data {data.name} has no test set: choose some with --tests NAME,NAME")
    check_labels(tests, data.reads)
    model, tokenizer, prompt, runs = load_with_adapter(made, adapters, average, form=form)
    said = [] if not form or not adapters or (stored := stored_template(runs, tokenizer)) in (None, prompt) else [
        f"the adapter was trained with the template {stored.name}, not with {prompt.name}: its answers may suffer"]
    make_folder(folder)
    start = {"adapters": [str(adapter.resolve()) for adapter in adapters], "averaged": average, "template": form}
    write_text(folder / STARTED, json.dumps(start, indent=2) + "\n")
    write_text(folder / "evaluate.toml", to_toml(made))
    journal = folder / f"{PREDICTIONS}.part"
    predictions = predict(model, tokenizer, tests, template=prompt, how=made.eval, reads=data.reads, journal=journal)
    said += mark_seen(predictions, runs, tests, made.data_dir)
    write_predictions(folder / PREDICTIONS, predictions)
    facts = {"model": made.model, "data": made.data, "decoding": made.eval.decoding, **start, "template": prompt.name, "notes": said,
             "scores": tables(predictions)}
    write_text(folder / DONE, json.dumps(facts, indent=2) + "\n")
    journal.unlink()
    return predictions, prompt, said


def mark_seen(predictions: list[dict], runs: list[dict], tests: dict[str, list[dict]], data_dir: str) -> list[str]:
    """Mark the problems that the adapters saw in training; what is to be said of it."""
    said = []
    for run in runs:
        name = run.get("data")
        if not isinstance(name, str) or not name:
            said.append("what an adapter was trained on is not known: whether it saw these problems could not be checked")
            continue
        if not is_here(name, data_dir):
            said.append(f"the training data {name} is not here: whether the adapter saw these problems was not checked")
            continue
        chosen = {key: run[key] for key in ("columns", "test_share") if key in run}
        data = load_data(name, data_dir if name != "wordproblems" else "", run.get("seed", 0), **chosen)
        leaks = leakage(data.train, tests, near=not data.from_forms)
        mark_leaks(predictions, leaks)
        said += [f"{one}: the adapter was trained on {leak.count('twin')} of these {leak.total} problems word for word, on {leak.count('near')} nearly so"
                 for one, leak in leaks.items() if leak.found]
    return said


def unfinished(folder: Path) -> tuple[Settings, list[Path], bool, str | None]:
    """What an interrupted evaluation in this folder was: its settings, adapters, whether they are averaged, the template given. Raises UserError."""
    if (folder / DONE).is_file():
        raise UserError(f"{folder} is complete; see {folder / PREDICTIONS}")
    if not (folder / STARTED).is_file():
        raise UserError(f"{folder} holds no {STARTED}: there is no evaluation to continue")
    start = read_json(folder / STARTED)
    if not isinstance(start.get("adapters"), list):
        raise UserError(f"{folder / STARTED} is malformed")
    return settings(config=str(folder / "evaluate.toml")), [Path(path) for path in start["adapters"]], start.get("averaged") is True, start.get("template")


def new_folder(path: Path, numbered: bool) -> Path:
    """As `fresh_folder`; an unfinished evaluation is pointed out."""
    if not numbered and (path / STARTED).is_file() and not (path / DONE).is_file():
        raise UserError(f"{path} holds an evaluation that was interrupted: continue it with python run.py evaluate --resume {path}")
    return fresh_folder(path, numbered)

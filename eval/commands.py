"""evaluate, generate, table and benchmark on the command line."""

import argparse
import json
from pathlib import Path

from model.errors import UserError, unknown
from train.commands import MODEL_OPTIONS, add_model_options, given, print_scores


def add_evaluate(parser: argparse.ArgumentParser):
    parser.add_argument("run", nargs="?", help="folder of a run: its model, adapter, data and template")
    add_model_options(parser)
    parser.add_argument("--adapter", action="append", help="folder of a saved adapter; without it the base is measured; several are stacked in this order")
    parser.add_argument("--average", action="store_true", help="average what the adapters add instead of stacking them")
    parser.add_argument("--data", help="wordproblems or math-v1")
    parser.add_argument("--data-dir", help="folder that holds the paper's dataset/")
    parser.add_argument("--items", type=int, help="the first N problems of each test set only; 0: all")
    parser.add_argument("--batch-size", type=int, help="problems answered at once; changes speed and memory only")
    parser.add_argument("--max-new-tokens", type=int, help="an answer ends here at the latest")
    parser.add_argument("--out", help="folder of the results; default RUN/evaluate or runs/evaluate-MODEL-DATA, numbered when it exists")
    return evaluate


def run_settings(options: argparse.Namespace, more: dict):
    """(settings, folders of adapters) from a run's folder and the options given beside it."""
    from train.settings import settings

    chosen = given(options, MODEL_OPTIONS) | more
    adapters = [Path(folder) for folder in options.adapter or []]
    for adapter in adapters:
        if (adapter / "adapter").is_dir():
            raise UserError(f"--adapter {adapter} is the folder of a run; its adapter is {adapter / 'adapter'}")
    if not options.run:
        return settings(options=chosen), adapters
    if not (Path(options.run) / "run.toml").is_file():
        raise UserError(f"{options.run} holds no run.toml: it is not the folder of a run")
    if not adapters and not (Path(options.run) / "adapter").is_dir():
        raise UserError(f"the run in {options.run} is not finished, it has no adapter yet: continue it with --resume {options.run}")
    return settings(config=str(Path(options.run) / "run.toml"), options=chosen), adapters or [Path(options.run) / "adapter"]


def load_with_adapter(made, adapters: list[Path], average: bool = False, words: bool = True):
    """(model, tokenizer or None, template): the base of the settings with the adapters of these folders, stacked or averaged, and the template
    that they were trained with. Raises UserError."""
    from adapters import Average, use
    from adapters.attach import in_order
    from adapters.several import load_any
    from train.experiment import load_base, load_words

    model = load_base(made)
    tokenizer = load_words(made, model) if words else None
    names = ["default"] if len(adapters) == 1 else [f"adapter{number}" for number in range(1, len(adapters) + 1)]
    runs = [load_any(model, folder, name) for folder, name in zip(adapters, names, strict=True)]
    if average:
        if len(adapters) < 2 or in_order(model) != names:
            raise UserError("--average takes two adapters or more, each of its own folder")
        use(model, [Average(*names)])
    templates = {run["template"] for run in runs if "template" in run}
    if len(templates) > 1:
        raise UserError(f"the adapters were trained with different prompt templates: {', '.join(sorted(templates))}")
    model.eval()
    return model, tokenizer, next(iter(templates), made.template)


def evaluate(options: argparse.Namespace) -> int:
    from data.sources import load_data
    from eval.score import check_labels, predict, scores, write_predictions
    from model.files import make_folder, write_text
    from train.experiment import check_model, first_items, fresh_folder, table

    more = given(options, ("data", "data_dir"))
    more["eval"] = given(options, ("items", "batch_size", "max_new_tokens"))
    made, adapters = run_settings(options, more)
    check_model(made.model)
    data = load_data(made.data, made.data_dir, made.seed)
    model, tokenizer, template = load_with_adapter(made, adapters, options.average)
    default = Path(options.run) / "evaluate" if options.run else Path("runs") / f"evaluate-{Path(made.model).name}-{made.data}"
    folder = fresh_folder(Path(options.out) if options.out else default, numbered=not options.out)
    tests = first_items(data.tests, made.eval.items)
    check_labels(tests)
    predictions = predict(model, tokenizer, tests, template=template, batch_size=made.eval.batch_size,
                          max_new_tokens=made.eval.max_new_tokens)
    make_folder(folder)
    write_predictions(folder / "predictions.jsonl", predictions)
    found = scores(predictions)
    facts = {"model": made.model, "adapters": [str(adapter) for adapter in adapters], "averaged": options.average, "data": made.data, "template": template,
             "scores": {name: table(score) for name, score in found.items()}}
    write_text(folder / "result.json", json.dumps(facts, indent=2) + "\n")
    several = "average of adapters" if options.average else "adapters" if len(adapters) > 1 else "adapter"
    said = f"{several} {', '.join(map(str, adapters))}" if adapters else "no adapter"
    print(f"\nmodel {made.model}, {said}, data {made.data}, template {template}")
    print_scores({}, found, "with adapter" if adapters else "base")
    print(f"predictions: {folder / 'predictions.jsonl'}")
    return 0


def add_generate(parser: argparse.ArgumentParser):
    parser.add_argument("run", nargs="?", help="folder of a run: its model, adapter and template")
    add_model_options(parser)
    parser.add_argument("--adapter", action="append", help="folder of a saved adapter; several are stacked in this order")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", help="text to continue as it stands")
    what.add_argument("--instruction", help="text to put into the prompt template first")
    what.add_argument("--prompt-ids", help="token ids to continue, as 5,6,7; needs no tokenizer")
    parser.add_argument("--max-new-tokens", type=int, default=64, help="stop here at the latest (64)")
    return generate


def generate(options: argparse.Namespace) -> int:
    import torch

    from data.prompts import prompt
    from eval.generate import generate as continue_greedily

    made, adapters = run_settings(options, {})
    if not 1 <= options.max_new_tokens <= 1_000_000:
        raise UserError(f"--max-new-tokens {options.max_new_tokens} should be between 1 and 1,000,000")
    if options.prompt_ids is not None:
        model, _, _ = load_with_adapter(made, adapters, words=False)
        ids = parse_ids(options.prompt_ids, model.config.vocab_size)
        new = continue_greedily(model, torch.tensor([ids], device=next(model.parameters()).device), max_new_tokens=options.max_new_tokens)[0]
        print(",".join(map(str, new)))
        return 0
    model, tokenizer, template = load_with_adapter(made, adapters)
    text = options.prompt if options.instruction is None else prompt(template, options.instruction)
    ids = tokenizer.encode(text)
    shown = ""
    new: list[int] = []

    def stream(tokens: list[int]) -> None:
        nonlocal shown
        new.extend(tokens)
        now = tokenizer.decode(new, after=ids)
        if now.startswith(shown) and not now.endswith("\ufffd"):  # a character may take several tokens
            print(now[len(shown) :], end="", flush=True)
            shown = now

    stop_ids = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    continue_greedily(model, torch.tensor([ids], device=next(model.parameters()).device), max_new_tokens=options.max_new_tokens,
                      stop_ids=stop_ids, vocab_size=tokenizer.size, stream=stream)
    print(tokenizer.decode(new, after=ids)[len(shown) :])
    return 0


def parse_ids(text: str, size: int) -> list[int]:
    """"5,6,7" -> [5, 6, 7]. Raises UserError."""

    try:
        ids = [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--prompt-ids {text!r} should be numbers with commas, like 5,6,7") from None
    if not all(0 <= token < size for token in ids):
        raise UserError(f"--prompt-ids {text!r}: the model has token ids 0 to {size - 1}")
    return ids


def add_benchmark(parser: argparse.ArgumentParser):
    parser.add_argument("--case", default="load", help="load: time and memory from the files to a model that is ready")
    parser.add_argument("--model", default="smollm2-135m", help="a known name (random weights of its shape are used) or a folder")
    parser.add_argument("--repeats", type=int, default=3, help="the least of so many runs counts (3)")
    return benchmark


def benchmark(options: argparse.Namespace) -> int:
    from eval.benchmark import CASES

    if options.case not in CASES:
        raise unknown("benchmark case", options.case, CASES)
    if options.repeats < 1:
        raise UserError(f"--repeats {options.repeats} must be at least 1")
    print(CASES[options.case](options.model, options.repeats))
    return 0


def add_table(parser: argparse.ArgumentParser):
    parser.description = "Train every adapter on every model, one resumable run after another, and write table.md and table.csv."
    parser.add_argument("--pocket", action="store_true", help="the pocket models and every preset; needs no network")
    parser.add_argument("--models", help="names with commas; default with --pocket: all pocket models")
    parser.add_argument("--adapters", help="names of presets with commas; default: all that stand alone")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of every run; may be repeated")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time (1)")
    parser.add_argument("--out", help="folder of the runs and the table; runs that are complete there are not run again; default runs/table")
    return table


def table(options: argparse.Namespace) -> int:
    from adapters.config import presets
    from adapters.config import resolve as resolve_adapter
    from eval.table import Job, markdown, row, run_jobs, write_table
    from model.registry import pocket_names
    from train.experiment import check_model
    from train.settings import settings

    if not options.pocket and not options.models:
        raise UserError("say which models: --pocket for those that come with this package, or --models NAME,NAME")
    if options.jobs < 1:
        raise UserError(f"--jobs {options.jobs} must be at least 1")
    models = options.models.split(",") if options.models else pocket_names()
    alone = [name for name, preset in presets().items() if preset.get("kind") != "fusion"]  # a fusion needs adapters to be trained before
    adapters = options.adapters.split(",") if options.adapters else alone
    for adapter in adapters:
        resolve_adapter(adapter)
    for model in models:
        check_model(model)
        settings(options={"model": model}, sets=options.set)
    folder = Path(options.out or "runs/table")
    sets = tuple(word for text in options.set for word in ("--set", text))
    jobs = [Job(model, adapter, folder / f"{Path(model).name}-{adapter}", sets) for model in models for adapter in adapters]
    print(f"{len(jobs)} runs in {folder}, {sum(job.done for job in jobs)} of them complete")
    failed = run_jobs(jobs, options.jobs)
    rows = [row(job) for job in jobs if job not in failed]
    write_table(folder, rows)
    print(f"\n{markdown(rows)}\ntable: {folder / 'table.md'}, {folder / 'table.csv'}")
    worse = [one for one in rows if not one["loss, last 10 steps"] < one["loss, first 10 steps"]]
    if worse:
        raise UserError(f"the loss did not fall in {', '.join(' '.join((one['model'], one['adapter'])) for one in worse)}")
    if failed:
        raise UserError(f"{len(failed)} of {len(jobs)} runs failed: {', '.join(job.folder.name for job in failed)}; the same command tries them again")
    return 0


COMMANDS = {"evaluate": add_evaluate, "generate": add_generate, "table": add_table, "benchmark": add_benchmark}

"""evaluate and generate on the command line."""

import argparse
import json
from pathlib import Path

from model.errors import UserError, unknown
from train.commands import MODEL_OPTIONS, add_model_options, given, print_scores


def add_evaluate(parser: argparse.ArgumentParser):
    parser.add_argument("run", nargs="?", help="folder of a run: its model, adapter, data and template")
    add_model_options(parser)
    parser.add_argument("--adapter", help="folder of a saved adapter; without it the base is measured")
    parser.add_argument("--data", help="wordproblems or math-v1")
    parser.add_argument("--data-dir", help="folder that holds the paper's dataset/")
    parser.add_argument("--items", type=int, help="the first N problems of each test set only; 0: all")
    parser.add_argument("--batch-size", type=int, help="problems answered at once; changes speed and memory only")
    parser.add_argument("--max-new-tokens", type=int, help="an answer ends here at the latest")
    parser.add_argument("--out", help="folder of the results; default RUN/evaluate or runs/evaluate-MODEL-DATA, numbered when it exists")
    return evaluate


def run_settings(options: argparse.Namespace, more: dict):
    """(settings, folder of the adapter or None) from a run's folder and the options given beside it."""
    from train.settings import settings

    chosen = given(options, MODEL_OPTIONS) | more
    adapter = Path(options.adapter) if options.adapter else None
    if adapter and (adapter / "adapter").is_dir():
        raise UserError(f"--adapter {adapter} is the folder of a run; its adapter is {adapter / 'adapter'}")
    if not options.run:
        return settings(options=chosen), adapter
    if not (Path(options.run) / "run.toml").is_file():
        raise UserError(f"{options.run} holds no run.toml: it is not the folder of a run")
    if adapter is None and not (Path(options.run) / "adapter").is_dir():
        raise UserError(f"the run in {options.run} is not finished, it has no adapter yet: continue it with --resume {options.run}")
    return settings(config=str(Path(options.run) / "run.toml"), options=chosen), adapter or Path(options.run) / "adapter"


def load_with_adapter(made, adapter: Path | None):
    """(model, tokenizer, template): the base of the settings with the adapter of a folder, and the template it was trained with."""
    from adapters import load_adapter
    from train.experiment import load_base, load_words

    model = load_base(made)
    tokenizer = load_words(made, model)
    trained = load_adapter(model, adapter) if adapter else {}
    model.eval()
    return model, tokenizer, trained.get("template", made.template)


def evaluate(options: argparse.Namespace) -> int:
    from data.sources import load_data
    from eval.score import check_labels, predict, scores, write_predictions
    from model.files import make_folder, write_text
    from train.experiment import check_model, first_items, fresh_folder, table

    more = given(options, ("data", "data_dir"))
    more["eval"] = given(options, ("items", "batch_size", "max_new_tokens"))
    made, adapter = run_settings(options, more)
    check_model(made.model)
    data = load_data(made.data, made.data_dir, made.seed)
    model, tokenizer, template = load_with_adapter(made, adapter)
    default = Path(options.run) / "evaluate" if options.run else Path("runs") / f"evaluate-{Path(made.model).name}-{made.data}"
    folder = fresh_folder(Path(options.out) if options.out else default, numbered=not options.out)
    tests = first_items(data.tests, made.eval.items)
    check_labels(tests)
    predictions = predict(model, tokenizer, tests, template=template, batch_size=made.eval.batch_size,
                          max_new_tokens=made.eval.max_new_tokens)
    make_folder(folder)
    write_predictions(folder / "predictions.jsonl", predictions)
    found = scores(predictions)
    facts = {"model": made.model, "adapter": str(adapter) if adapter else None, "data": made.data, "template": template,
             "scores": {name: table(score) for name, score in found.items()}}
    write_text(folder / "result.json", json.dumps(facts, indent=2) + "\n")
    print(f"\nmodel {made.model}, {f'adapter {adapter}' if adapter else 'no adapter'}, data {made.data}, template {template}")
    print_scores({}, found, "with adapter" if adapter else "base")
    print(f"predictions: {folder / 'predictions.jsonl'}")
    return 0


def add_generate(parser: argparse.ArgumentParser):
    parser.add_argument("run", nargs="?", help="folder of a run: its model, adapter and template")
    add_model_options(parser)
    parser.add_argument("--adapter", help="folder of a saved adapter")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", help="text to continue as it stands")
    what.add_argument("--instruction", help="text to put into the prompt template first")
    what.add_argument("--prompt-ids", help="token ids to continue, as 5,6,7; needs no tokenizer")
    parser.add_argument("--max-new-tokens", type=int, default=64, help="stop here at the latest (64)")
    return generate


def generate(options: argparse.Namespace) -> int:
    import torch

    from adapters import load_adapter
    from data.prompts import prompt
    from eval.generate import generate as continue_greedily
    from train.experiment import load_base

    made, adapter = run_settings(options, {})
    if not 1 <= options.max_new_tokens <= 1_000_000:
        raise UserError(f"--max-new-tokens {options.max_new_tokens} should be between 1 and 1,000,000")
    if options.prompt_ids is not None:
        model = load_base(made)
        if adapter:
            load_adapter(model, adapter)
        ids = parse_ids(options.prompt_ids, model.config.vocab_size)
        new = continue_greedily(model.eval(), torch.tensor([ids], device=next(model.parameters()).device), max_new_tokens=options.max_new_tokens)[0]
        print(",".join(map(str, new)))
        return 0
    model, tokenizer, template = load_with_adapter(made, adapter)
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


COMMANDS = {"evaluate": add_evaluate, "generate": add_generate, "benchmark": add_benchmark}

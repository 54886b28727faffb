"""The command line. `python run.py` alone trains an adapter on the pocket model and reports; `python run.py --help` lists the rest."""

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

COMMANDS = {
    "train": "train an adapter and measure it (also without the word)",
    "evaluate": "measure a model, with an adapter or without",
    "generate": "continue a prompt",
    "pretrain": "train a pocket model from scratch",
}


def main(arguments: list[str]) -> int:
    command = arguments[0] if arguments and not arguments[0].startswith("-") else "train"
    rest = arguments[1:] if arguments and arguments[0] == command else arguments
    if command not in COMMANDS:
        from model.errors import unknown

        print(f"run.py: {unknown('command', command, COMMANDS)}", file=sys.stderr)
        return 2
    parser, act = PARSERS[command]()
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    options, extra = parser.parse_known_args(rest)
    from model.errors import UserError, unknown

    try:
        if extra and extra[0] in COMMANDS:
            raise UserError(f"the command comes first: python run.py {extra[0]} ...")
        if extra:
            raise unknown(f"option of {command}", extra[0], [option for action in parser._actions for option in action.option_strings])
        return act(options)
    except UserError as error:
        if options.debug:
            raise
        print(f"run.py: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of our output went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def new_parser(command: str, epilog: str = "") -> argparse.ArgumentParser:
    name = "run.py" if command == "train" else f"run.py {command}"
    text = COMMANDS[command]
    if command == "train":
        text += "; other commands: " + ", ".join(f"{key} ({value})" for key, value in COMMANDS.items() if key != "train")
    return argparse.ArgumentParser(prog=name, description=text, epilog=epilog, allow_abbrev=False)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="pocket-llama (default), a name like llama-7b, a hub repository or a folder")
    parser.add_argument("--revision", help="branch, tag or commit of a hub repository")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ...")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16 of the base and the computation")


MODEL_OPTIONS = ("model", "revision", "device", "dtype")


def given(options: argparse.Namespace, names: tuple[str, ...]) -> dict:
    """The options that were given on the command line, as settings."""
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


# ---------------------------------------------------------------- train
def train_command():
    parser = new_parser("train", "Any setting of train/settings.py can be changed with --set, for example --set train.learning_rate=1e-3 --set adapter.size=64")
    add_model_options(parser)
    parser.add_argument("--adapter", help="series, parallel (default) or lora")
    parser.add_argument("--data", help="wordproblems (default of the models named pocket-*) or math-v1 (default of all others)")
    parser.add_argument("--data-dir", help="folder that holds the paper's dataset/")
    parser.add_argument("--recipe", help="a recipe of train/recipes, or a TOML file")
    parser.add_argument("--config", help="a TOML file of settings, such as the run.toml of another run")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change one setting; may be repeated")
    parser.add_argument("--seed", type=int, help="of the adapter's start, the order of rows and dropout; default 0")
    parser.add_argument("--max-steps", type=int, help="stop after this many steps; 0: after train.epochs")
    parser.add_argument("--items", type=int, help="measure on the first N problems of each test set only; 0: all")
    parser.add_argument("--out", help="folder of the results; default runs/MODEL-ADAPTER-DATA, numbered when it exists")
    parser.add_argument("--resume", metavar="RUN", help="continue the interrupted run in this folder, with its own settings")
    return parser, train


def train(options: argparse.Namespace) -> int:
    from model.errors import UserError
    from train.experiment import can_resume, fresh_folder, resume_settings, run
    from train.settings import settings

    chosen = given(options, (*MODEL_OPTIONS, "data", "data_dir", "seed"))
    if options.adapter is not None:
        chosen["adapter"] = {"preset": options.adapter}
    if options.max_steps is not None:
        chosen["train"] = {"max_steps": options.max_steps}
    if options.items is not None:
        chosen["eval"] = {"items": options.items}
    if options.resume:
        if chosen or options.set or options.config or options.recipe or options.out:
            raise UserError("--resume continues a run with its own settings; give no other option with it")
        folder = Path(options.resume)
        made = resume_settings(folder)
        if not can_resume(folder):
            print(f"{folder} has no checkpoint yet: starting from step 0")
    else:
        made = settings(options.config, options.recipe, chosen, options.set)
        made = replace(made, model=whole_path(made.model), data_dir=whole_path(made.data_dir))
        name = f"{Path(made.model).name}-{made.adapter.get('preset', made.adapter['kind'])}-{made.data}"
        folder = fresh_folder(Path(options.out) if options.out else Path("runs") / name, numbered=not options.out)
    try:
        result = run(made, folder, resume=bool(options.resume) and can_resume(folder))
    except (KeyboardInterrupt, SystemExit):  # while measuring, or at a second signal; at the first the loop itself takes care
        if folder.exists():
            print(f"\nstopped; continue from the last checkpoint with: python run.py --resume {folder}")
        raise
    if result.signal:
        print(f"stopped; continue with: python run.py --resume {folder}")
        return 128 + result.signal
    print_scores(result.before, result.after, "with adapter")
    if not result.before:
        print("(the base was not measured; --set eval.before=true does)")
    print(f"report: {folder / 'report.html'}")
    return 0


def whole_path(name: str) -> str:
    """A folder's path from the root, so that the run can be resumed from anywhere; other names as they are."""
    return str(Path(name).resolve()) if name and Path(name).is_dir() else name


def print_scores(before: dict, after: dict, title: str) -> None:
    width = max(map(len, after))
    print(f"\n{'test set':{width}}  {'base':31}{title}" if before else f"\n{'test set':{width}}  {title}")
    for name, score in after.items():
        print(f"{name:{width}}  {before[name]!s:31}{score}" if before else f"{name:{width}}  {score}")


# ---------------------------------------------------------------- evaluate
def evaluate_command():
    parser = new_parser("evaluate")
    parser.add_argument("run", nargs="?", help="folder of a run: its model, adapter, data and template")
    add_model_options(parser)
    parser.add_argument("--adapter", help="folder of a saved adapter; without it the base is measured")
    parser.add_argument("--data", help="wordproblems or math-v1")
    parser.add_argument("--data-dir", help="folder that holds the paper's dataset/")
    parser.add_argument("--items", type=int, help="the first N problems of each test set only; 0: all")
    parser.add_argument("--batch-size", type=int, help="problems answered at once; changes speed and memory only")
    parser.add_argument("--max-new-tokens", type=int, help="an answer ends here at the latest")
    parser.add_argument("--out", help="folder of the results; default RUN/evaluate or runs/evaluate-MODEL-DATA, numbered when it exists")
    return parser, evaluate


def run_settings(options: argparse.Namespace, more: dict):
    """(settings, folder of the adapter or None) from a run's folder and the options given beside it."""
    from model.errors import UserError
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
    import json

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


# ---------------------------------------------------------------- generate
def generate_command():
    parser = new_parser("generate")
    parser.add_argument("run", nargs="?", help="folder of a run: its model, adapter and template")
    add_model_options(parser)
    parser.add_argument("--adapter", help="folder of a saved adapter")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", help="text to continue as it stands")
    what.add_argument("--instruction", help="text to put into the prompt template first")
    what.add_argument("--prompt-ids", help="token ids to continue, as 5,6,7; needs no tokenizer")
    parser.add_argument("--max-new-tokens", type=int, default=64, help="stop here at the latest (64)")
    return parser, generate


def generate(options: argparse.Namespace) -> int:
    import torch

    from adapters import load_adapter
    from data.prompts import prompt
    from eval.generate import generate as continue_greedily
    from model.errors import UserError
    from train.experiment import load_base

    made, adapter = run_settings(options, {})
    if options.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens {options.max_new_tokens} must be at least 1")
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
        now = tokenizer.decode(new)
        if now.startswith(shown) and not now.endswith("\ufffd"):  # a character may take several tokens
            print(now[len(shown) :], end="", flush=True)
            shown = now

    stop_ids = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    continue_greedily(model, torch.tensor([ids], device=next(model.parameters()).device), max_new_tokens=options.max_new_tokens,
                      stop_ids=stop_ids, stream=stream)
    print(tokenizer.decode(new)[len(shown) :])
    return 0


def parse_ids(text: str, size: int) -> list[int]:
    """"5,6,7" -> [5, 6, 7]. Raises UserError."""
    from model.errors import UserError

    try:
        ids = [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--prompt-ids {text!r} should be numbers with commas, like 5,6,7") from None
    if not all(0 <= token < size for token in ids):
        raise UserError(f"--prompt-ids {text!r}: the model has token ids 0 to {size - 1}")
    return ids


# ---------------------------------------------------------------- pretrain
def pretrain_command():
    parser = new_parser("pretrain")
    parser.add_argument("--recipe", default="pocket", help="a recipe of train/recipes, or a TOML file")
    parser.add_argument("--family", default="llama", help="llama (default), bloom, opt or gptj")
    parser.add_argument("--seed", type=int, help="of weights and text; default: the recipe's")
    parser.add_argument("--max-steps", type=int, help="steps, and with them the length of the text; default: the recipe's")
    parser.add_argument("--out", required=True, help="folder of the new model")
    return parser, pretrain


def pretrain(options: argparse.Namespace) -> int:
    from train.experiment import fresh_folder
    from train.pretrain import pretrain as train_from_scratch

    return train_from_scratch(options.recipe, options.family, fresh_folder(Path(options.out), numbered=False), options.seed, options.max_steps)


PARSERS = {"train": train_command, "evaluate": evaluate_command, "generate": generate_command, "pretrain": pretrain_command}

if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        if "--debug" in sys.argv:
            raise
        print("run.py: interrupted", file=sys.stderr)
        sys.exit(130)

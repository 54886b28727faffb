"""evaluate, inspect, harness, generate and table on the command line."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cli.options import (
    add_data_options,
    add_model_options,
    data_settings,
    given,
    measure_settings,
    seeds_of,
)
from files.errors import UserError, unknown

if TYPE_CHECKING:  # the options are there before torch is loaded
    from train.parallel import Processes


def add_evaluate(parser: argparse.ArgumentParser):
    parser.add_argument(
        "run", nargs="?", help="folder of a run: its model, adapter, data and template"
    )
    add_model_options(parser)
    parser.add_argument(
        "--adapter",
        action="append",
        help="folder of a saved adapter; without it the base is measured; several are stacked in this order",
    )
    parser.add_argument(
        "--average",
        action="store_true",
        help="average what the adapters add instead of stacking them",
    )
    add_data_options(parser)
    parser.add_argument(
        "--items", type=int, help="the first N problems of each test set only; 0: all"
    )
    parser.add_argument(
        "--batch-size", type=int, help="problems answered at once; changes speed and memory only"
    )
    parser.add_argument("--max-new-tokens", type=int, help="an answer ends here at the latest")
    parser.add_argument(
        "--scoring",
        help="generate (default), or likelihood: of a multiple-choice problem's options the likeliest",
    )
    parser.add_argument("--beams", type=int, help="1: greedy (default); the paper has 4")
    parser.add_argument("--temperature", type=float, help="above 0: answers are drawn")
    parser.add_argument("--top-k", type=int, help="drawn from the k likeliest tokens")
    parser.add_argument(
        "--top-p",
        type=float,
        help="drawn from the likeliest tokens that together have this probability",
    )
    parser.add_argument(
        "--seeds", help="of drawn answers, 0,1,2: every problem is answered once with each"
    )
    parser.add_argument("--recipe", help="a recipe of train/recipes, such as paper, or a TOML file")
    parser.add_argument("--config", help="a TOML file of settings")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change one setting; may be repeated",
    )
    parser.add_argument(
        "--out",
        help="folder of the results; default RUN/evaluate or runs/evaluate-MODEL-DATA, numbered when it exists",
    )
    parser.add_argument(
        "--resume",
        metavar="FOLDER",
        help="continue the interrupted evaluation in this folder, with its own settings",
    )
    parser.add_argument(
        "--teacher",
        action="store_true",
        help="measure the rationales that come with the six math sets instead of a model",
    )
    return evaluate


EVAL_OPTIONS = (
    "items",
    "batch_size",
    "max_new_tokens",
    "scoring",
    "beams",
    "temperature",
    "top_k",
    "top_p",
)


def evaluate(options: argparse.Namespace) -> int:
    from experiments import evaluate as job  # noqa: F401 - what takes a while is done before the processes meet: then they go on side by side
    from train.parallel import started

    with started() as processes:
        return evaluate_in(processes, options)


def evaluate_in(processes: "Processes", options: argparse.Namespace) -> int:
    from experiments import evaluate as job
    from experiments.base import for_processes
    from experiments.teacher import teacher_lines
    from experiments.text import loss_text, published_lines, score_lines

    if options.teacher:
        refuse_others(
            options, "--teacher reads the rationales of the data", ("teacher", "data_dir")
        )
        print("\n".join(teacher_lines(options.data_dir or "")))
        return 0
    if options.resume:
        refuse_others(
            options,
            "--resume continues an evaluation with its own settings",
            ("resume", "batch_size", "device"),
        )
        folder = Path(options.resume)
        interrupted = job.unfinished(folder)
        made, adapters = interrupted.settings, interrupted.adapters
        average, form = interrupted.average, interrupted.template_name
        made = replace(
            made,
            device=options.device or made.device,
            eval=replace(made.eval, batch_size=options.batch_size or made.eval.batch_size),
        )
        made.eval.check()
    else:
        made, adapters, form = chosen_settings(options)
        average = options.average
        name = (
            Path(made.data).stem
            if made.data != "none"
            else "-".join(Path(one).stem for one in made.tests[:4])
        )
        default = (
            Path(options.run) / "evaluate"
            if options.run
            else Path("runs") / f"evaluate-{Path(made.model).name}-{name}"
        )
        folder = processes.from_writer(
            lambda: job.new_folder(
                Path(options.out) if options.out else default, numbered=not options.out
            )
        )
    if not options.device:
        made = for_processes(made, processes)
    try:
        found = job.evaluate(
            made, adapters, folder, average, form, replace(processes, sharded=made.shard)
        )
    except (KeyboardInterrupt, SystemExit):
        if (folder / job.STARTED).is_file():
            print(f"\nstopped; continue with: python run.py evaluate --resume {folder}")
        raise
    several = "average of adapters" if average else "adapters" if len(adapters) > 1 else "adapter"
    which = f"{several} {', '.join(map(str, adapters))}" if adapters else "no adapter"
    stored = f" in {made.quantize}" if made.quantize else ""
    asked = (
        "plain text"
        if found.is_text
        else f"template {found.template.name}, answers {made.eval.decoding}"
    )
    print(f"\nmodel {made.model}{stored}, {which}, data {made.data}, {asked}")
    for line in found.notes:
        print(line)
    if found.loss:
        print(f"held-out loss per token: {loss_text(found.loss)}")
        return 0
    beside = published_lines(made.data, made.model, found.preset, found.predictions)
    print(
        "\n"
        + "\n".join(
            [
                *score_lines([], found.predictions, "with adapter" if adapters else "base"),
                *([""] if beside else []),
                *beside,
            ]
        )
    )
    print(f"predictions: {folder / job.PREDICTIONS}")
    return 0


def chosen_settings(options: argparse.Namespace):
    """(settings, folders of adapters, name of the template or None) of an evaluation's options. Raises UserError."""
    from data.wordproblems import MANNERS
    from experiments.folders import absolute_paths
    from files.toml import parse_set

    measured = given(options, EVAL_OPTIONS)
    if options.seeds is not None:
        measured["seeds"] = seeds_of(options.seeds)
    more = data_settings(options)
    form = more.pop("template", None)
    made, adapters = measure_settings(options, more | {"eval": measured})
    if options.max_new_tokens is not None and made.eval.scoring == "likelihood":
        raise UserError("--max-new-tokens is for answers that are generated; likelihoods take none")
    if options.seeds is not None and not made.eval.temperature:
        raise UserError("--seeds are for drawn answers: set --temperature above 0")
    asked = (
        options.run
        or options.data is not None
        or options.config
        or any("data" in parse_set(text) for text in options.set)
    )
    own = made.data == "wordproblems" and all(
        name.lower().removesuffix("-unseen") in MANNERS for name in made.tests
    )
    if made.tests and not asked and not own:
        made = replace(made, data="none")  # the sets that were named, whole, and nothing else
    return absolute_paths(made), adapters, form


def refuse_others(options: argparse.Namespace, why: str, allowed: tuple[str, ...]) -> None:
    """Raise UserError for an option that was given and has no effect beside this one."""
    for name, value in vars(options).items():
        if name not in (*allowed, "debug") and value not in (None, False, []):
            raise UserError(
                f"{why}; {name if name == 'run' else '--' + name.replace('_', '-')} has no effect beside it: give no other option"
            )


def add_inspect(parser: argparse.ArgumentParser):
    parser.add_argument("run", help="folder of a run or of an evaluation, or a predictions.jsonl")
    parser.add_argument(
        "--set", action="append", default=[], help="of this test set only; may be repeated"
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--wrong", action="store_true", help="wrong answers only")
    which.add_argument("--right", action="store_true", help="right answers only")
    parser.add_argument("--beats", metavar="RUN", help="what is right here and wrong there")
    parser.add_argument(
        "--reader", default="strict", help="strict (default) or paper: whose verdict counts"
    )
    parser.add_argument(
        "--readers-differ", action="store_true", help="what the two readers read differently"
    )
    parser.add_argument("--cut", action="store_true", help="answers that ran out of tokens")
    parser.add_argument("--leaked", action="store_true", help="problems that training saw")
    parser.add_argument("--limit", type=int, default=10, help="print the first N (10); 0: all")
    parser.add_argument("--json", action="store_true", help="one JSON object a line, for programs")
    return inspect


def inspect(options: argparse.Namespace) -> int:
    import json

    from eval.answers import MODES
    from experiments.inspect import (
        block,
        chosen,
        place,
        predictions_in,
        run_lines,
        summary,
        without_predictions,
    )

    if options.reader not in MODES:
        raise unknown("reader", options.reader, MODES)
    if options.limit < 0:
        raise UserError(f"--limit {options.limit} must not be negative")
    picks = ("set", "wrong", "right", "beats", "readers_differ", "cut", "leaked", "json")
    if without_predictions(Path(options.run)) and not any(getattr(options, name) for name in picks):
        print(
            "\n".join(
                [
                    f"{options.run} has no predictions: the data has no test set",
                    *run_lines(Path(options.run)),
                ]
            )
        )
        return 0
    predictions = predictions_in(Path(options.run))
    beats = predictions_in(Path(options.beats)) if options.beats else None
    found = chosen(
        predictions,
        sets=options.set,
        right=True if options.right else False if options.wrong else None,
        mode=options.reader,
        beats=beats,
        readers_differ=options.readers_differ,
        cut=options.cut,
        leaked=options.leaked,
    )
    others = {place(one): one for one in beats or []}
    for one in found[: options.limit or None]:
        print(
            json.dumps(one, ensure_ascii=False)
            if options.json
            else block(one, others.get(place(one))) + "\n"
        )
    if not options.json:
        more = (
            f"; the first {options.limit} are shown, --limit 0 shows all"
            if 0 < options.limit < len(found)
            else ""
        )
        print(
            "\n".join(
                [summary(found, predictions, options.set) + more, *run_lines(Path(options.run))]
            )
        )
    return 0


def add_harness(parser: argparse.ArgumentParser):
    parser.add_argument("run", nargs="?", help="folder of a run: its model, adapter and template")
    add_model_options(parser)
    parser.add_argument(
        "--adapter",
        action="append",
        help="folder of a saved adapter; several are stacked in this order",
    )
    parser.add_argument(
        "--average",
        action="store_true",
        help="average what the adapters add instead of stacking them",
    )
    parser.add_argument("--tasks", required=True, help="names of lm-evaluation-harness, NAME,NAME")
    parser.add_argument("--include-path", help="folder with task files (YAML) of your own")
    parser.add_argument("--items", type=int, help="the first N problems of each task only")
    parser.add_argument(
        "--num-fewshot",
        type=int,
        help="worked problems in front of each; default: the task's own number",
    )
    parser.add_argument(
        "--template",
        help="put every context into this prompt template; default: contexts as the tasks write them",
    )
    parser.add_argument("--batch-size", type=int, default=16, help="texts at once (16)")
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        default=256,
        help="an answer ends here where its task says nothing (256)",
    )
    parser.add_argument("--out", help="JSON file for all that the harness returns")
    return harness


def harness(options: argparse.Namespace) -> int:
    import json

    from eval.harness import run_tasks
    from experiments.loading import load_with_adapter
    from files.writing import make_folder, write_text

    if options.out and Path(options.out).exists():
        raise UserError(f"{options.out} exists: give another --out")
    made, adapters = measure_settings(options)
    model, tokenizer, *_ = load_with_adapter(made, adapters, options.average)
    found = run_tasks(
        model,
        tokenizer,
        [task for task in options.tasks.split(",") if task],
        include_path=options.include_path,
        limit=options.items,
        num_fewshot=options.num_fewshot,
        batch_size=options.batch_size,
        max_new_tokens=options.max_new_tokens,
        template=options.template,
    )
    for task, figures in found["results"].items():
        print(task)
        for name, value in figures.items():
            metric, _, kind = name.partition(",")
            if isinstance(value, float) and not metric.endswith("_stderr"):
                error = figures.get(f"{metric}_stderr,{kind}")
                print(
                    f"  {metric:12}{value:.4f}"
                    + (f" +- {error:.4f}" if isinstance(error, float) else "")
                )
    if options.out:
        make_folder(Path(options.out).parent)
        write_text(Path(options.out), json.dumps(found, indent=2, default=str) + "\n")
        print(f"written: {options.out}")
    return 0


def add_generate(parser: argparse.ArgumentParser):
    parser.add_argument("run", nargs="?", help="folder of a run: its model, adapter and template")
    add_model_options(parser)
    parser.add_argument(
        "--adapter",
        action="append",
        help="folder of a saved adapter; several are stacked in this order",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", help="text to continue as it stands")
    what.add_argument("--instruction", help="text to put into the prompt template first")
    what.add_argument("--prompt-ids", help="token ids to continue, as 5,6,7; needs no tokenizer")
    parser.add_argument(
        "--template",
        help="prompt template of --instruction: alpaca, paper-v1, plain or chat; default: the adapter's own",
    )
    parser.add_argument("--beams", type=int, default=1, help="1: greedy (default)")
    parser.add_argument("--temperature", type=float, default=0.0, help="above 0: the text is drawn")
    parser.add_argument(
        "--top-k", type=int, default=0, help="drawn from the k likeliest tokens; 0: all"
    )
    parser.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        help="drawn from the likeliest tokens that together have this probability",
    )
    parser.add_argument("--seed", type=int, default=0, help="of a drawn text (0)")
    parser.add_argument(
        "--max-new-tokens", type=int, default=64, help="stop here at the latest (64)"
    )
    return generate


def generate(options: argparse.Namespace) -> int:
    import torch

    from data.batches import encode_prompt
    from data.stops import configured_stop_ids, stop_ids
    from eval.generate import Sampling
    from eval.generate import generate as continue_text
    from experiments.base import toy_lines
    from experiments.loading import load_with_adapter

    made, adapters = measure_settings(options)
    if options.temperature == 0 and (options.top_k or options.top_p != 1 or options.seed):
        raise UserError(
            "--top-k, --top-p and --seed are for drawn texts: set --temperature above 0"
        )
    drawn = (
        {
            "sampling": Sampling(options.temperature, options.top_k, options.top_p),
            "seeds": [options.seed],
        }
        if options.temperature
        else {}
    )
    if not 1 <= options.max_new_tokens <= 1_000_000:
        raise UserError(
            f"--max-new-tokens {options.max_new_tokens} should be between 1 and 1,000,000"
        )
    if options.prompt_ids is not None:
        model, *_ = load_with_adapter(made, adapters, with_tokenizer=False)
        ids = parse_ids(options.prompt_ids, model.config.vocab_size)
        found = continue_text(
            model,
            torch.tensor([ids], device=next(model.parameters()).device),
            max_new_tokens=options.max_new_tokens,
            beams=options.beams,
            stop_ids=configured_stop_ids(model.folder),
            **drawn,
        )
        print(",".join(map(str, found[0])))
        return 0
    model, tokenizer, template, _ = load_with_adapter(
        made, adapters, template_name=options.template, is_own=True
    )
    notes = toy_lines(made.model)
    if options.instruction is None:
        ids = tokenizer.encode(options.prompt)
    else:
        _, ids = encode_prompt(tokenizer, {"instruction": options.instruction}, template)
        if template.chat and not (options.template or options.run or adapters):
            notes.append("prompt template: chat, the tokenizer's own; --template chooses another")
    shown = ""
    new: list[int] = []

    def stream(tokens: list[int]) -> None:
        nonlocal shown
        new.extend(tokens)
        now = tokenizer.decode(new, after=ids)
        if now.startswith(shown) and not now.endswith(
            "\ufffd"
        ):  # a character may take several tokens
            print(now[len(shown) :], end="", flush=True)
            shown = now

    found = continue_text(
        model,
        torch.tensor([ids], device=next(model.parameters()).device),
        max_new_tokens=options.max_new_tokens,
        beams=options.beams,
        stop_ids=stop_ids(tokenizer),
        vocab_size=tokenizer.size,
        stream=None if options.beams > 1 else stream,  # beams are known at the end
        **drawn,
    )
    print(tokenizer.decode(found[0], after=ids)[len(shown) :])
    for line in notes:
        print(line, file=sys.stderr)
    return 0


def parse_ids(text: str, size: int) -> list[int]:
    """ "5,6,7" -> [5, 6, 7]. Raises UserError."""

    try:
        ids = [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(
            f"--prompt-ids {text!r} should be numbers with commas, like 5,6,7"
        ) from None
    if not all(0 <= token < size for token in ids):
        raise UserError(f"--prompt-ids {text!r}: the model has token ids 0 to {size - 1}")
    return ids


def add_table(parser: argparse.ArgumentParser):
    parser.description = (
        "Train a grid of adapters on models, one resumable run after another, and put what comes of it beside the published figures: "
        "table.md, table.csv and table.html. Without options: the grid of the paper's Table 1."
    )
    parser.add_argument(
        "grid",
        nargs="?",
        help="a TOML file: data, models, adapters, seeds, recipe, base, [settings] of every run",
    )
    parser.add_argument(
        "--pocket", action="store_true", help="the pocket models and every preset; needs no network"
    )
    parser.add_argument("--models", help="names or folders with commas")
    parser.add_argument("--adapters", help="names of presets with commas")
    parser.add_argument("--seeds", help="0,1,2: every run once with each")
    parser.add_argument(
        "--data", help="what is trained on; default math-v1 (--pocket: wordproblems)"
    )
    parser.add_argument(
        "--data-dir", help="folder that holds the paper's dataset/; without it the data is fetched"
    )
    parser.add_argument("--recipe", help="a recipe of train/recipes, such as paper, or a TOML file")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting of every run; may be repeated",
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time (1)")
    parser.add_argument(
        "--out",
        help="folder of the runs and the table; runs that are complete there are not run again; default runs/table",
    )
    return table


def table(options: argparse.Namespace) -> int:
    from experiments.grid import make_grid, run_grid

    def names(text: str | None) -> list[str] | None:
        return None if text is None else [part for part in text.split(",") if part]

    grid = make_grid(
        options.grid and Path(options.grid),
        models=names(options.models),
        adapters=names(options.adapters),
        seeds=None if options.seeds is None else seeds_of(options.seeds),
        data=options.data,
        data_dir=options.data_dir,
        recipe=options.recipe,
        sets=options.set,
        pocket=options.pocket,
    )
    run_grid(grid, Path(options.out or "runs/table"), options.jobs)
    return 0


COMMANDS = {
    "evaluate": add_evaluate,
    "inspect": add_inspect,
    "harness": add_harness,
    "generate": add_generate,
    "table": add_table,
}

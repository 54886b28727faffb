"""evaluate, generate, table and benchmark on the command line."""

import argparse
from pathlib import Path

from model.errors import UserError, unknown
from train.commands import MODEL_OPTIONS, add_data_options, add_model_options, data_settings, given, whole_paths


def add_evaluate(parser: argparse.ArgumentParser):
    parser.add_argument("run", nargs="?", help="folder of a run: its model, adapter, data and template")
    add_model_options(parser)
    parser.add_argument("--adapter", action="append", help="folder of a saved adapter; without it the base is measured; several are stacked in this order")
    parser.add_argument("--average", action="store_true", help="average what the adapters add instead of stacking them")
    add_data_options(parser)
    parser.add_argument("--items", type=int, help="the first N problems of each test set only; 0: all")
    parser.add_argument("--batch-size", type=int, help="problems answered at once; changes speed and memory only")
    parser.add_argument("--max-new-tokens", type=int, help="an answer ends here at the latest")
    parser.add_argument("--scoring", help="generate (default), or likelihood: of a multiple-choice problem's options the likeliest")
    parser.add_argument("--beams", type=int, help="1: greedy (default); the paper has 4")
    parser.add_argument("--temperature", type=float, help="above 0: answers are drawn")
    parser.add_argument("--top-k", type=int, help="drawn from the k likeliest tokens")
    parser.add_argument("--top-p", type=float, help="drawn from the likeliest tokens that together have this probability")
    parser.add_argument("--seeds", help="of drawn answers, 0,1,2: every problem is answered once with each")
    parser.add_argument("--out", help="folder of the results; default RUN/evaluate or runs/evaluate-MODEL-DATA, numbered when it exists")
    parser.add_argument("--resume", metavar="FOLDER", help="continue the interrupted evaluation in this folder, with its own settings")
    parser.add_argument("--teacher", action="store_true", help="measure the rationales that come with the six math sets instead of a model")
    return evaluate


EVAL_OPTIONS = ("items", "batch_size", "max_new_tokens", "scoring", "beams", "temperature", "top_k", "top_p")


def evaluate(options: argparse.Namespace) -> int:
    from eval.text import published_lines, score_lines
    from train import evaluate as job

    if options.teacher:
        return teacher(options)
    measured = given(options, EVAL_OPTIONS)
    if options.seeds is not None:
        try:
            measured["seeds"] = [int(seed) for seed in options.seeds.split(",")]
        except ValueError:
            raise UserError(f"--seeds {options.seeds!r} should be whole numbers, such as 0,1,2") from None
    if options.resume:
        others = [options.run, options.adapter, options.out, *measured.values(), *given(options, MODEL_OPTIONS).values(), *data_settings(options).values()]
        if any(other is not None for other in others) or options.average:
            raise UserError("--resume continues an evaluation with its own settings; give no other option with it")
        folder = Path(options.resume)
        made, adapters, average, form = job.unfinished(folder)
    else:
        more = data_settings(options)
        form, average = more.pop("template", None), options.average
        made, adapters = job.run_settings(options, more | {"eval": measured})
        made = whole_paths(made)
        default = Path(options.run) / "evaluate" if options.run else Path("runs") / f"evaluate-{Path(made.model).name}-{Path(made.data).stem}"
        folder = job.new_folder(Path(options.out) if options.out else default, numbered=not options.out)
    try:
        predictions, template, said = job.evaluate(made, adapters, folder, average, form)
    except KeyboardInterrupt:
        if (folder / job.STARTED).is_file():
            print(f"\nstopped; continue with: python run.py evaluate --resume {folder}")
        raise
    several = "average of adapters" if average else "adapters" if len(adapters) > 1 else "adapter"
    which = f"{several} {', '.join(map(str, adapters))}" if adapters else "no adapter"
    print(f"\nmodel {made.model}, {which}, data {made.data}, template {template.name}, answers {made.eval.decoding}")
    for line in said:
        print(line)
    beside = published_lines(made.data, made.model, made.adapter.get("preset", "") if adapters and options.run else "", predictions)
    print("\n" + "\n".join([*score_lines([], predictions, "with adapter" if adapters else "base"), *([""] if beside else []), *beside]))
    print(f"predictions: {folder / job.PREDICTIONS}")
    return 0


def teacher(options: argparse.Namespace) -> int:
    """The rationales that the six math sets ship, read by both readers, beside the published row of the model that wrote them."""
    from data.sources import source_rows
    from eval.answers import MODES, is_right, read_answer
    from eval.published import published
    from eval.text import figure_lines

    table = published()["math-v1"]
    sets = {name: source_rows(name, options.data_dir or "") for name in table.sets}
    rows = {}
    for mode in MODES:
        right = {name: sum(is_right(read_answer(row["output"], name, mode), row["answer"]) for row in items) for name, items in sets.items()}
        figures = [100 * right[name] / len(items) for name, items in sets.items()]
        rows["rationales, strict" if mode == "strict" else "rationales, the paper's reader"] = [*figures, sum(figures) / len(figures)]
    rows[f"published, {table.teacher[0]}"] = table.teacher[1]
    print("\n".join(figure_lines("full sets, " + ", ".join(str(len(items)) for items in sets.values()), table.sets, rows, digits=2)))
    print("The published row does not follow from the rationales that were published with the data: by either reader they score higher on every set. "
          "The readers differ most in AQuA, where the paper's takes the first capital A to E of a text, that of \"Answer\" too.")
    return 0


def add_generate(parser: argparse.ArgumentParser):
    parser.add_argument("run", nargs="?", help="folder of a run: its model, adapter and template")
    add_model_options(parser)
    parser.add_argument("--adapter", action="append", help="folder of a saved adapter; several are stacked in this order")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", help="text to continue as it stands")
    what.add_argument("--instruction", help="text to put into the prompt template first")
    what.add_argument("--prompt-ids", help="token ids to continue, as 5,6,7; needs no tokenizer")
    parser.add_argument("--template", help="prompt template of --instruction: alpaca, paper-v1, plain or chat; default: the adapter's own")
    parser.add_argument("--max-new-tokens", type=int, default=64, help="stop here at the latest (64)")
    return generate


def generate(options: argparse.Namespace) -> int:
    import torch

    from data.batches import encode_prompt
    from eval.generate import generate as continue_greedily
    from train.evaluate import load_with_adapter, run_settings

    made, adapters = run_settings(options, {})
    if not 1 <= options.max_new_tokens <= 1_000_000:
        raise UserError(f"--max-new-tokens {options.max_new_tokens} should be between 1 and 1,000,000")
    if options.prompt_ids is not None:
        model, *_ = load_with_adapter(made, adapters, words=False)
        ids = parse_ids(options.prompt_ids, model.config.vocab_size)
        new = continue_greedily(model, torch.tensor([ids], device=next(model.parameters()).device), max_new_tokens=options.max_new_tokens)[0]
        print(",".join(map(str, new)))
        return 0
    model, tokenizer, template, _ = load_with_adapter(made, adapters, form=options.template)
    if options.instruction is None:
        ids = tokenizer.encode(options.prompt)
    else:
        _, ids = encode_prompt(tokenizer, {"instruction": options.instruction}, template)
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

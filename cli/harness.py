"""harness: run tasks of lm-evaluation-harness on a model, with saved adapters or without."""

import argparse
from pathlib import Path

from cli.options import add_trained_model, measuring_settings, split_names
from files.errors import UserError


def add_options(parser: argparse.ArgumentParser) -> None:
    add_trained_model(parser, average=True)
    tasks = parser.add_argument_group("tasks")
    tasks.add_argument("--tasks", required=True, help="names of the harness, NAME,NAME")
    tasks.add_argument("--include-path", help="folder with task files (YAML) of your own")
    tasks.add_argument("--items", type=int, help="only the first N problems of each task")
    tasks.add_argument(
        "--num-fewshot", type=int, help="worked examples in the prompt (the task's own number)"
    )
    tasks.add_argument(
        "--template", help="put every context into this prompt template (none: as it stands)"
    )
    tasks.add_argument("--batch-size", type=int, default=16, help="texts at once (16)")
    tasks.add_argument(
        "--max-new-tokens",
        type=int,
        default=256,
        help="maximum length of an answer where the task states none (256)",
    )
    tasks.add_argument("--out", help="JSON file for the harness's whole result")


def run(options: argparse.Namespace) -> int:
    import json

    from eval.harness import run_tasks
    from experiments.loading import load_with_adapter
    from files.writing import make_folder, write_text

    if options.out and Path(options.out).exists():
        raise UserError(f"{options.out} exists: give another --out")
    settings, adapters = measuring_settings(options)
    model, tokenizer, *_ = load_with_adapter(settings, adapters, options.average)
    result = run_tasks(
        model,
        tokenizer,
        split_names(options.tasks),
        include_path=options.include_path,
        limit=options.items,
        num_fewshot=options.num_fewshot,
        batch_size=options.batch_size,
        max_new_tokens=options.max_new_tokens,
        template=options.template,
    )
    for task, figures in result["results"].items():
        print(task)
        for name, value in figures.items():
            metric, _, kind = name.partition(",")
            if isinstance(value, float) and not metric.endswith("_stderr"):
                error = figures.get(f"{metric}_stderr,{kind}")
                plus_minus = f" +- {error:.4f}" if isinstance(error, float) else ""
                print(f"  {metric:12}{value:.4f}{plus_minus}")
    if options.out:
        make_folder(Path(options.out).parent)
        write_text(Path(options.out), json.dumps(result, indent=2, default=str) + "\n")
        print(f"written: {options.out}")
    return 0

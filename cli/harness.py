"""harness: run tasks of lm-evaluation-harness on a model, with saved adapters or without."""

import argparse
from pathlib import Path

from cli.options import (
    DECODE_MEMORY,
    REQUIRED,
    add,
    add_trained_model,
    given,
    measuring_settings,
    split_names,
)
from files.errors import UserError


def add_options(parser: argparse.ArgumentParser) -> None:
    add_trained_model(parser, average=True)
    tasks = {
        "--tasks NAME,NAME": (str, "names of lm-evaluation-harness", REQUIRED),
        "--include-path FOLDER": "task files (YAML) of your own",
        "--items N": (int, "only the first N problems of each task"),
        "--num-fewshot N": (int, "worked examples in the prompt (the task's own number)"),
        "--template NAME": "put every context into this prompt template (none: as it stands)",
        "--batch-size N": (int, "texts at once (16)", 16),
        "--max-new-tokens N": (
            int,
            "maximum length of an answer where the task states none (256)",
            256,
        ),
        "--out FILE": "JSON file for the harness's whole result",
    }
    add(parser, "tasks", tasks | DECODE_MEMORY)


def run(options: argparse.Namespace) -> int:
    import json

    from eval.harness import run_tasks
    from experiments.loading import load_with_adapter
    from files.writing import make_folder, write_text

    if options.out and Path(options.out).exists():
        raise UserError(f"{options.out} exists: give another --out")
    settings, adapters = measuring_settings(options, {"eval": given(options, ("decode_memory",))})
    model, tokenizer, *_ = load_with_adapter(settings, adapters, options.average)
    names = ("include_path", "num_fewshot", "batch_size", "max_new_tokens", "template")
    tasks, more = split_names(options.tasks), given(options, names)
    result = run_tasks(model, tokenizer, tasks, limit=options.items, **more)
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

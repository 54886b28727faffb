"""The model card of an exported folder: README.md as the hub reads it.

Says what base, what method, what data, what was measured on which problems, and how to repeat it.
Nothing in it names a folder of this machine.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from data.prompts import Template
from eval.score import read_predictions, score_table
from experiments.history import history_text
from experiments.results import read_result
from files.toml import read_toml, table_text
from files.writing import write_text

PROJECT = "LLM-Adapters, from scratch (arXiv 2304.01933)"


def write_card(
    folder: Path,
    base: str,
    library: str,
    described: str,
    trained: Sequence[tuple[Path, dict]],
    template: Template | None,
    usage: str,
) -> None:
    """Write README.md into an exported folder.

    base: its name (adapters/formats/base_model.py); library: "transformers", "peft" or "" for none;
    described: the adapters in words; trained: (folder, `run` section of its file) of each; usage:
    how the folder is loaded. Results and settings are told where an adapter lies in its run.
    """
    front = {
        "base_model": base if "/" in base else None,  # a pocket model or a folder is not on the hub
        "library_name": library,
        "pipeline_tag": "text-generation",
        "tags": ["llm-adapters"],
    }
    lines = [f"{key}: {json.dumps(value)}" for key, value in front.items() if value]
    told = "; ".join(history_text(without_paths(about)) for _, about in trained)
    parts = [
        "---\n" + "\n".join(lines) + "\n---",
        f"# {base} with {described}",
        f"Made by {PROJECT}. Trained on: {told}.",
        f"## Use\n\n```\n{usage}\n```",
    ]
    if template and not template.chat:
        prompt = template.prompt({"instruction": "{instruction}"})
        parts.append(f"The prompt it was trained with ({template.name}):\n\n```\n{prompt}\n```")
    for adapter, _ in trained:
        if adapter.name == "adapter" and (adapter.parent / "run.toml").is_file():
            parts += results(adapter.parent) + repeat(adapter.parent)
    write_text(folder / "README.md", "\n\n".join(parts) + "\n")


def results(run: Path) -> list[str]:
    """What was measured: accuracies with intervals, problems that training saw, warnings."""
    after, parts = run / "predictions.jsonl", []
    if after.is_file():
        predictions = read_predictions(after)
        files = {title: run / f"predictions-{title}.jsonl" for title in ("before", "base")}
        title = "before" if files["before"].is_file() else "base"  # before: trained further
        earlier = read_predictions(files[title]) if files[title].is_file() else []
        table = score_table(earlier, predictions, "with the adapter", title).to_markdown()
        parts.append(f"## Results\n\nAccuracy in percent, 95 % intervals.\n\n{table}".rstrip())
        leaked = sum(bool(prediction.get("leak")) for prediction in predictions)
        parts.append(
            f"{leaked} of {len(predictions)} problems are in the training data, or nearly so: the "
            "clean part leaves them out."
            if leaked
            else f"None of the {len(predictions)} problems is in the training data."
        )
    if (run / "result.json").is_file():
        result = read_result(run)
        notes = [*result.problems, *result.notes]
        parts += ["\n".join(f"- {text}" for text in notes)] if notes else []
    return parts


def repeat(run: Path) -> list[str]:
    """The settings of the run, and the command that repeats it."""
    text = table_text(without_paths(read_toml(run / "run.toml")))
    return [f"## Repeat it\n\n`python run.py --config run.toml` with\n\n```toml\n{text}```"]


def without_paths(value):
    """A table of settings whose absolute paths are their last parts."""
    if isinstance(value, dict):
        return {key: without_paths(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_paths(inner) for inner in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value

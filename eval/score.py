"""Accuracy of a model on problems: generate, read the answer, compare, with every prediction kept."""

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from data.prompts import prompt
from eval.answers import gold_number, is_numeric, is_right, read_answer
from eval.generate import generate
from model.errors import UserError, is_out_of_memory
from model.files import write_text


@dataclass(frozen=True)
class Score:
    """right of `total` problems, with the 95 % interval of the accuracy (Wilson 1927)."""

    right: int
    total: int

    @property
    def accuracy(self) -> float:
        return self.right / self.total if self.total else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        if not self.total:
            return 0.0, 1.0
        n, p, z = self.total, self.accuracy, 1.959964
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, middle - half), min(1.0, middle + half)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.accuracy:5.1f} % [{100 * low:.1f}, {100 * high:.1f}] of {self.total}"


def left_pad(prompts: list[list[int]], pad_id: int, device) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of ids -> ids and mask int64 [B, T], padded on the left."""
    T = max(map(len, prompts))
    ids = [[pad_id] * (T - len(row)) + row for row in prompts]
    mask = [[0] * (T - len(row)) + [1] * len(row) for row in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def predict(
    model: nn.Module,
    tokenizer,
    problems: dict[str, list[dict]],
    *,
    template: str,
    batch_size: int,
    max_new_tokens: int,
    title: str = "",
) -> list[dict]:
    """Greedy answers to the rows {instruction, answer} of each data set, as a list in the order given.

    A prediction holds set, index, instruction, prompt, output, answer (as read, strict), gold and right. Batches are of similar
    length, whichever sets they come from. Raises UserError when memory runs out.
    """
    device = next(model.parameters()).device
    pad_id = tokenizer.pad_id if tokenizer.pad_id is not None else 0
    stop_ids = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    jobs = []
    for name, rows in problems.items():
        for index, row in enumerate(rows):
            text = prompt(template, row["instruction"])
            jobs.append({"set": name, "index": index, "instruction": row["instruction"].strip(), "prompt": text, "gold": row["answer"]})
    ids = [tokenizer.encode(job["prompt"]) for job in jobs]
    by_length = sorted(range(len(jobs)), key=lambda job: (-len(ids[job]), job))
    model.eval()
    with tqdm(total=len(jobs), unit="problem", desc=title, dynamic_ncols=True, mininterval=0.1 if sys.stderr.isatty() else 10) as bar:
        for start in range(0, len(jobs), batch_size):
            batch = by_length[start : start + batch_size]
            try:
                rows = left_pad([ids[job] for job in batch], pad_id, device)
                outputs = generate(model, *rows, max_new_tokens=max_new_tokens, stop_ids=stop_ids, vocab_size=tokenizer.size)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                raise UserError(f"out of memory on {device} with {batch_size} problems at once: lower eval.batch_size") from None
            for number, output in zip(batch, outputs, strict=True):
                job = jobs[number]
                job["output"] = tokenizer.decode(output)
                job["answer"] = read_answer(job["output"], job["set"])
                job["right"] = is_right(job["answer"], job["gold"])
            bar.update(len(batch))
    return jobs


def check_labels(problems: dict[str, list[dict]]) -> None:
    """Raise UserError for a label that cannot be compared, before any time is spent on answers."""
    for name, rows in problems.items():
        for number, row in enumerate(rows):
            if is_numeric(name):
                try:
                    gold_number(row["answer"])
                except UserError as error:
                    raise UserError(f"{name}, problem {number + 1}: {error}") from None


def scores(predictions: list[dict]) -> dict[str, Score]:
    """Predictions -> the Score of each data set, in the order of appearance."""
    verdicts: dict[str, list[bool]] = {}
    for prediction in predictions:
        verdicts.setdefault(prediction["set"], []).append(prediction["right"])
    return {name: Score(sum(right), len(right)) for name, right in verdicts.items()}


def write_predictions(path: Path, predictions: list[dict]) -> None:
    """One JSON object a line."""
    write_text(path, "".join(json.dumps(prediction, ensure_ascii=False) + "\n" for prediction in predictions))

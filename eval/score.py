"""Accuracy of a model on problems: generate, read the answer, compare, with every prediction kept."""

import hashlib
import json
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from torch import nn
from tqdm import tqdm

from data.batches import encode_prompt
from data.prompts import Template
from data.prompts import template as named
from data.stops import stop_ids
from eval.answers import fits, is_right, kind_of, read_answer, response_of
from eval.choices import choices, form_of, spelled_as_in
from eval.generate import Sampling, generate, left_pad
from eval.journal import Journal, answers_in, fingerprint_of, journal_of
from eval.likelihood import log_likelihoods
from eval.room import positions_of, room_for
from files.errors import UserError, short_of_memory
from files.writing import write_text


@dataclass(frozen=True)
class Score:
    """right of `total` answers, with the 95 % interval of the accuracy (Wilson 1927); of `problems` (0: total) where each was answered several times."""

    right: int
    total: int
    problems: int = 0

    @property
    def accuracy(self) -> float:
        return self.right / self.total if self.total else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        if not self.total:
            return 0.0, 1.0
        n, p, z = (
            self.problems or self.total,
            self.accuracy,
            1.959964,
        )  # several answers to one problem are no further problems
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, middle - half), min(1.0, middle + half)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.accuracy:5.1f} % [{100 * low:.1f}, {100 * high:.1f}] of {self.total}"


@dataclass(frozen=True)
class Decoding:
    """How answers are made; train/settings.py says what each is, its Eval will do as well."""

    batch_size: int = 16
    max_new_tokens: int = 256
    scoring: str = "generate"
    beams: int = 1
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seeds: Sequence[int] = (0,)


def predict(
    model: nn.Module,
    tokenizer,
    problems: dict[str, list[dict]],
    *,
    template: Template | str,
    how: Decoding | None = None,
    title: str = "",
    reads: dict[str, str] | None = None,
    journal: Path | None = None,
    processes=None,
    **decoding,
) -> list[dict]:
    """Answers to the rows {instruction, input, answer} of each data set, as a list in the order given, of several seeds one after the other.

    A prediction holds set, index, instruction, prompt, output, gold; answer and right as read strictly, paper_answer and paper_right as the
    paper's code read them; cut: whether it ran out of tokens; too_long: a prompt that the model has no positions for, which is wrong and has the
    output ""; seed, or the options' likelihoods. template: one, or its name; how: a Decoding, or its
    fields. Batches are of similar length, whichever sets they come from. reads: set -> the kind of answer, where its name does not say it. journal: a
    file that keeps the answers until all are there. processes: several (train/parallel.py), each with its share of the problems and a journal of its own;
    all get all answers. Raises UserError.
    """
    how = how or Decoding(**decoding)
    template = named(template, tokenizer) if isinstance(template, str) else template
    jobs, own = [], reads or {}
    for name, rows in problems.items():
        for index, row in enumerate(rows):
            text, ids = encode_prompt(tokenizer, row, template)
            job = {
                "set": name,
                "index": index,
                "instruction": row["instruction"].strip(),
                "prompt": text,
                "gold": row["answer"],
            }
            for seed in how.seeds:
                jobs.append((job | ({"seed": seed} if how.temperature > 0 else {}), row, ids))
    kinds = {name: kind_of(own.get(name, name)) for name in problems}
    options = []
    if how.scoring == "likelihood":
        forms = {name: form_of(rows, kinds[name]) for name, rows in problems.items()}
        spelled = {name: spelled_as_in(rows, kinds[name]) for name, rows in problems.items()}
        options = [
            choices(tokenizer, row, template, spelled[job["set"]], forms[job["set"]], job["set"])
            for job, row, _ in jobs
        ]
    ends = [] if options else stop_ids(tokenizer)
    rooms = rooms_of(model, jobs, options, how)
    said = [
        getattr(how, key)
        for key in ("max_new_tokens", "scoring", "beams", "temperature", "top_k", "top_p")
    ]
    rank, world, together = (
        (processes.rank, processes.world, processes.sharded) if processes else (0, 1, False)
    )
    asked = [(job, kinds[job["set"]]) for job, *_ in jobs]
    made_by = fingerprint_of(model, [*said, ends], asked) if journal else ""
    answers = answers_in(journal, made_by) if journal and rank == 0 else {}
    answers = processes.exchange(answers)[0] if world > 1 else answers
    answers |= {
        n: {"output": "", "cut": False, "too_long": True}
        for n, room in enumerate(rooms)
        if not room
    }
    waiting = sorted(
        (number for number in range(len(jobs)) if number not in answers),
        key=lambda number: (-len(jobs[number][2]), number),
    )
    if (
        not together
    ):  # a model that all hold together answers in all of them at once, and the first one writes
        waiting = waiting[rank::world]
    kept = (
        Journal(journal_of(journal, rank), made_by) if journal and not (together and rank) else None
    )
    model.eval()
    interval = (
        0.1 if sys.stderr.isatty() else 10
    )  # seconds between pictures of the bar; a log file wants few
    bar = tqdm(
        total=len(answers) + len(waiting),
        initial=len(answers),
        unit="problem",
        desc=title,
        dynamic_ncols=True,
        mininterval=interval,
        disable=rank > 0,
    )
    with bar, kept or nullcontext():
        for batch in batches_of(waiting, rooms, how.batch_size):
            with short_of_memory(
                f"on {next(model.parameters()).device} with {len(batch)} problems at once and {how.max_new_tokens} new tokens: "
                "lower eval.batch_size (--batch-size, with --resume too) or eval.max_new_tokens"
            ):
                if options:
                    found = weigh(model, [options[number] for number in batch], how)
                else:
                    at_most = replace(how, max_new_tokens=rooms[batch[0]])
                    found = respond(model, tokenizer, [jobs[n] for n in batch], at_most, ends)
            for number, answer in zip(batch, found, strict=True):
                answers[number] = answer
                if kept:
                    kept.write({"job": number, **answer})
            bar.update(len(batch))
    for found in processes.exchange(answers) if world > 1 else []:
        answers |= found
    for number, (job, *_) in enumerate(jobs):
        job |= {key: value for key, value in answers[number].items() if key != "job"}
        job |= UNREAD if job.get("too_long") else verdict(job, own.get(job["set"], job["set"]))
    return [job for job, *_ in jobs]


UNREAD = {
    "answer": None,
    "right": False,
    "paper_answer": None,
    "paper_right": False,
}  # a prompt that did not fit


def rooms_of(model: nn.Module, jobs: list[tuple], options: list[dict], how) -> list[int]:
    """For each job, how many new tokens the model has positions for; 0: its prompt is too long.

    `options`: those whose likelihoods are compared, of which the longest has to fit.
    """
    positions = positions_of(model)
    if not options:
        return [room_for(positions, len(ids), how.max_new_tokens) for *_, ids in jobs]
    longest = (max(len(before) + len(own) for before, own in one.values()) for one in options)
    return [room_for(positions, tokens - 1, 1) for tokens in longest]


def batches_of(waiting: list[int], rooms: list[int], size: int) -> Iterator[list[int]]:
    """The jobs in their order, up to `size` at once, all of a batch with the same room: the room
    of one then does not depend on the others."""
    for _, same in groupby(waiting, key=rooms.__getitem__):
        numbers = list(same)
        yield from (numbers[start : start + size] for start in range(0, len(numbers), size))


def respond(
    model: nn.Module, tokenizer, jobs: list[tuple], how: Decoding, stop_ids: Sequence[int]
) -> list[dict]:
    """{output, cut} for each job (its entry, row, ids)."""
    device = next(model.parameters()).device
    ids, mask = left_pad(
        [ids for *_, ids in jobs], tokenizer.pad_id if tokenizer.pad_id is not None else 0, device
    )
    drawn = {}
    if how.temperature > 0:
        drawn = {
            "sampling": Sampling(how.temperature, how.top_k, how.top_p),
            "seeds": [own_seed(job) for job, *_ in jobs],
        }
    outputs = generate(
        model, ids, mask, how.max_new_tokens, how.beams, stop_ids, tokenizer.size, **drawn
    )
    return [
        {"output": tokenizer.decode(output), "cut": len(output) == how.max_new_tokens}
        for output in outputs
    ]


def own_seed(job: dict) -> int:
    """A seed for one problem alone, so that its draws do not depend on the others in its batch."""
    return int.from_bytes(
        hashlib.sha256(f"{job['seed']} {job['set']} {job['index']}".encode()).digest()[:7]
    )


def weigh(model: nn.Module, options: list[dict], how) -> list[dict]:
    """{output, likelihoods} for each problem: the likeliest of its options, and the natural logarithm of every one's probability."""
    pairs = [pair for one in options for pair in one.values()]
    weights = iter(log_likelihoods(model, pairs, batch_size=how.batch_size))
    found = []
    for one in options:
        likelihoods = {label: round(next(weights)[0], 5) for label in one}
        found.append({"output": max(likelihoods, key=likelihoods.get), "likelihoods": likelihoods})
    return found


def verdict(job: dict, read_as: str) -> dict:
    """The answer to a problem as both readers have it, and whether it is right.

    read_as: a data set, or the kind of answers of one's own, where a label of another kind is
    compared as a text.
    """
    if "likelihoods" in job:
        answer = paper = job["output"]
        return compared(answer, paper, job["gold"])
    if read_as == kind_of(read_as) and not fits(read_as, job["gold"]):
        read_as = "text"
    answer = read_answer(job["output"], read_as)
    return compared(answer, read_answer(response_of(job["output"]), read_as, "paper"), job["gold"])


def compared(answer: float | str | None, paper: float | str | None, gold: str) -> dict:
    return {"answer": answer, "right": is_right(answer, gold), "paper_answer": paper,
            "paper_right": is_right(paper, gold)}  # fmt: skip


def scores(predictions: list[dict], key: str = "right") -> dict[str, Score]:
    """Predictions -> the Score of each data set, in the order of appearance; key "right": read strictly, "paper_right": as the paper did."""
    verdicts: dict[str, list[bool]] = {}
    problems: dict[str, set[int]] = {}
    for one in predictions:
        verdicts.setdefault(one["set"], []).append(one[key])
        problems.setdefault(one["set"], set()).add(one["index"])
    return {
        name: Score(sum(right), len(right), len(problems[name])) for name, right in verdicts.items()
    }


def mean_score(found: dict[str, Score]) -> tuple[float, float, float]:
    """(plain mean of the accuracies, as the paper's averages are; low, high: its 95 % interval, the sets being independent)."""
    mean = sum(score.accuracy for score in found.values()) / len(found)
    variance = 0.0
    for score in found.values():
        low, high = score.interval
        variance += ((high - low) / 2) ** 2
    half = math.sqrt(variance) / len(found)
    return mean, max(0.0, mean - half), min(1.0, mean + half)


def mark_leaks(predictions: list[dict], leaks: dict) -> None:
    """Note in each prediction whether training saw the problem: leak "twin" or "near"; clean ones have no such entry."""
    for one in predictions:
        if one["set"] in leaks and one["index"] in leaks[one["set"]].found:
            one["leak"] = leaks[one["set"]].found[one["index"]][0]


def clean(predictions: list[dict]) -> list[dict]:
    """The predictions of problems that training did not see."""
    return [one for one in predictions if "leak" not in one]


def tables(predictions: list[dict]) -> dict[str, dict]:
    """Set -> its figures for result.json: strict as such, the paper's reader, the clean part where there is a leak, and answers cut short."""
    found = {name: table(score) for name, score in scores(predictions).items()}
    for name, score in scores(predictions, "paper_right").items():
        found[name]["paper_reader"] = table(score)
    for name, score in scores(clean(predictions)).items():
        if score.total < found[name]["total"]:
            found[name]["clean_part"] = table(score)
    for one in predictions:
        found[one["set"]]["cut_off"] = found[one["set"]].get("cut_off", 0) + one.get("cut", False)
        if one.get("too_long"):
            found[one["set"]]["too_long"] = found[one["set"]].get("too_long", 0) + 1
    return found


def table(score: Score) -> dict:
    low, high = score.interval
    several = (
        {"problems": score.problems} if score.problems not in (0, score.total) else {}
    )  # answered several times each
    return {
        "right": score.right,
        "total": score.total,
        **several,
        "accuracy": round(score.accuracy, 4),
        "interval_95": [round(low, 4), round(high, 4)],
    }


FIELDS = {  # of a prediction; what is not here may be missing
    "set": str,
    "index": int,
    "instruction": str,
    "prompt": str,
    "output": str,
    "gold": str,
    "answer": float | str | None,
    "right": bool,
    "paper_answer": float | str | None,
    "paper_right": bool,
}


def read_predictions(path: Path) -> list[dict]:
    """What `write_predictions` wrote. Raises UserError."""
    try:
        found = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as predictions: {str(error)[:200]}") from None
    for number, one in enumerate(found, start=1):
        if not isinstance(one, dict):
            raise UserError(f"{path}, line {number} is no prediction")
        for key, kind in FIELDS.items():
            if not isinstance(one.get(key, ...), kind):
                raise UserError(
                    f"{path}, line {number} is no prediction: {key} is missing or not what it should be"
                )
        likelihoods = one.get("likelihoods", {})
        if not isinstance(likelihoods, dict) or not all(
            isinstance(value, float) for value in likelihoods.values()
        ):
            raise UserError(
                f"{path}, line {number} is no prediction: likelihoods should be numbers"
            )
    return found


def write_predictions(path: Path, predictions: list[dict]) -> None:
    """One JSON object a line."""
    write_text(
        path,
        "".join(json.dumps(prediction, ensure_ascii=False) + "\n" for prediction in predictions),
    )

"""Answers of a model to problems: generated or the likeliest option, read by both readers."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from data.batches import encode_prompts
from data.prompts import Template
from data.prompts import template as template_named
from data.stops import stop_ids
from eval.answers import judge, kind_of
from eval.choices import choices, form_of, spelled_as_in
from eval.engine import Engine, Request
from eval.journal import Journal, answers_in, fingerprint_of, journal_of
from eval.likelihood import each_likelihood
from eval.room import positions_of, room_for
from eval.sampling import Sampling
from eval.settings import Eval
from files.errors import short_of_memory
from files.progress import progress_bar
from model.compiled import compiled
from model.language import LanguageModel
from model.tokenizer import Tokenizer

TOO_LONG = {"output": "", "cut": False, "too_long": True}  # a prompt the model has no positions for
Pairs = dict[str, tuple[list[int], list[int]]]  # option -> (ids of its context, ids of its own)


@dataclass(frozen=True)
class Job:
    """One answer that is wanted: its prediction, filled in later, its row and its prompt's ids."""

    prediction: dict
    row: dict
    ids: list[int]


def predict(
    model: LanguageModel,
    tokenizer: Tokenizer,
    problems: dict[str, list[dict]],
    *,
    template: Template | str,
    decoding: Eval | None = None,
    title: str = "",
    reads: dict[str, str] | None = None,
    journal: Path | None = None,
    processes=None,
    **options,
) -> list[dict]:
    """The answers to the rows {instruction, input, answer} of each data set, in the order given.

    Each prediction holds set, index, instruction, prompt, output, gold; answer and right by the
    strict reader, paper_answer and paper_right by the paper's; cut: it ran out of tokens; too_long:
    the model has no positions for its prompt, which counts as wrong. Drawn answers have a seed (a
    problem's seeds follow each other), compared ones the likelihoods of their options.

    template: a Template or its name. decoding: an Eval, or its fields as keywords. reads: data
    set -> kind of its answers, where its name does not say it. journal: a file that keeps the
    answers until all are there. processes: train.parallel.Processes; each answers its share, with a
    journal of its own, and all return all answers. Raises UserError.
    """
    decoding = decoding or Eval(**options)
    template = template_named(template, tokenizer) if isinstance(template, str) else template
    read_as = {name: (reads or {}).get(name, name) for name in problems}
    kinds = {name: kind_of(kind) for name, kind in read_as.items()}
    jobs = jobs_of(tokenizer, problems, template, decoding)
    pairs = []
    if decoding.scoring == "likelihood":
        pairs = pairs_of(tokenizer, problems, jobs, template, kinds)
    stops = [] if pairs else stop_ids(tokenizer)
    rooms = rooms_of(model, jobs, pairs, decoding.max_new_tokens)
    rank, world, sharded = 0, 1, False
    if processes:
        rank, world, sharded = processes.rank, processes.world, processes.sharded

    fingerprint, answers = "", {}
    if journal:
        keys = ("max_new_tokens", "scoring", "beams", "temperature", "top_k", "top_p")
        decoded = [*(getattr(decoding, key) for key in keys), stops]
        asked = [(job.prediction, kinds[job.prediction["set"]]) for job in jobs]
        fingerprint = fingerprint_of(model, decoded, asked)
        answers = answers_in(journal, fingerprint) if rank == 0 else {}
    answers = processes.exchange(answers)[0] if world > 1 else answers
    answers |= {number: TOO_LONG for number, room in enumerate(rooms) if not room}
    waiting = [number for number in range(len(jobs)) if number not in answers]
    waiting.sort(key=lambda number: -len(jobs[number].ids))  # the longest first, as the engine
    if not sharded:  # processes that share the weights answer every batch together
        waiting = waiting[rank::world]
    writes = journal and not (sharded and rank)
    kept = Journal(journal_of(journal, rank), fingerprint) if writes else None

    model.eval()
    total, done = len(answers) + len(waiting), len(answers)
    bar = progress_bar(total, done, unit="problem", desc=title, disable=rank > 0)
    faster = compiled(model, answers=True) if decoding.compile else nullcontext()
    with (
        bar,
        kept or nullcontext(),
        faster,
        short_of_memory(
            f"on {model.device} with {decoding.batch_size} problems at once and "
            f"{decoding.max_new_tokens} new tokens: lower eval.batch_size (--batch-size, with "
            "--resume too) or eval.max_new_tokens"
        ),
    ):
        if pairs:
            new = likeliest(model, {n: pairs[n] for n in waiting}, decoding.batch_size)
        else:
            wanted = {n: (jobs[n], rooms[n]) for n in waiting}
            new = generated(model, tokenizer, wanted, decoding, stops)
        for number, answer in new:
            answers[number] = answer
            if kept:
                kept.write({"job": number, **answer})
            bar.update()
    for others in processes.exchange(answers) if world > 1 else []:
        answers |= others
    for number, job in enumerate(jobs):
        answer = {key: value for key, value in answers[number].items() if key != "job"}
        job.prediction.update(answer)
        job.prediction.update(judge(job.prediction, read_as[job.prediction["set"]]))
    return [job.prediction for job in jobs]


def jobs_of(
    tokenizer: Tokenizer, problems: dict[str, list[dict]], template: Template, decoding: Eval
) -> list[Job]:
    jobs = []
    for name, rows in problems.items():
        encoded = encode_prompts(tokenizer, rows, template)
        for index, (row, (text, ids)) in enumerate(zip(rows, encoded, strict=True)):
            prediction = {
                "set": name,
                "index": index,
                "instruction": row["instruction"].strip(),
                "prompt": text,
                "gold": row["answer"],
            }
            for seed in decoding.seeds:
                drawn = {"seed": seed} if decoding.temperature > 0 else {}
                jobs.append(Job(prediction | drawn, row, ids))
    return jobs


def are_to(predictions: list[dict], problems: dict[str, list[dict]], decoding: Eval) -> bool:
    """Whether these are predictions for exactly these problems, in their order."""
    seeds = decoding.seeds if decoding.temperature > 0 else [None] * len(decoding.seeds)
    wanted = [
        (name, index, row["instruction"].strip(), row["answer"], seed)
        for name, rows in problems.items()
        for index, row in enumerate(rows)
        for seed in seeds
    ]
    keys = ("set", "index", "instruction", "gold", "seed")
    return wanted == [tuple(prediction.get(key) for key in keys) for prediction in predictions]


def pairs_of(
    tokenizer: Tokenizer,
    problems: dict[str, list[dict]],
    jobs: list[Job],
    template: Template,
    kinds: dict[str, str],
) -> list[Pairs]:
    """For each job the options whose likelihoods are compared. Raises UserError."""
    stated = {}  # how the options of a set are spelled, and the sentence that states an answer
    for name, rows in problems.items():
        stated[name] = spelled_as_in(rows, kinds[name]), form_of(rows, kinds[name]), name
    return [choices(tokenizer, job.row, template, *stated[job.prediction["set"]]) for job in jobs]


def rooms_of(model: LanguageModel, jobs: list[Job], pairs: list[Pairs], most: int) -> list[int]:
    """For each job, how many new tokens (at `most`) there are positions for; 0: it is too long.

    With `pairs`, whether the longest option fits.
    """
    positions = positions_of(model)
    if not pairs:
        return [room_for(positions, len(job.ids), most) for job in jobs]
    longest = (max(len(context) + len(own) for context, own in p.values()) for p in pairs)
    return [room_for(positions, tokens - 1, 1) for tokens in longest]


def generated(
    model: LanguageModel,
    tokenizer: Tokenizer,
    wanted: dict[int, tuple[Job, int]],
    decoding: Eval,
    stop_ids: Sequence[int],
) -> Iterator[tuple[int, dict]]:
    """(its number, {output, cut}) of each job as it is answered; `wanted`: jobs and their rooms."""
    sampling = None
    if decoding.temperature > 0:
        sampling = Sampling(decoding.temperature, decoding.top_k, decoding.top_p)
    requests = []
    for job, room in wanted.values():
        seed = own_seed(job.prediction) if sampling else 0
        requests.append(Request(job.ids, room, stop_ids, decoding.beams, sampling, seed))
    if not requests:
        return
    slots = min(decoding.batch_size, len(requests)) * decoding.beams
    length = max(len(request.ids) + request.max_new_tokens for request in requests)
    outputs: list[list[int]] = [[] for _ in requests]
    numbers = list(wanted)
    for event in Engine(model, slots, length, tokenizer.size).run(requests):
        outputs[event.number] += event.tokens
        if event.ended:
            new, room = outputs[event.number], requests[event.number].max_new_tokens
            answer = {"output": tokenizer.decode(new), "cut": len(new) == room}
            yield numbers[event.number], answer


def own_seed(prediction: dict) -> int:
    """A seed of one problem's own, so that its draws do not depend on its batch."""
    text = f"{prediction['seed']} {prediction['set']} {prediction['index']}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])


def likeliest(
    model: LanguageModel, wanted: dict[int, Pairs], batch_size: int
) -> Iterator[tuple[int, dict]]:
    """(its number, {output, likelihoods}) of each job as it is answered: its likeliest option, and
    all log-likelihoods in nats."""
    flat = [(number, label) for number in wanted for label in wanted[number]]
    pairs = [wanted[number][label] for number, label in flat]
    found: dict[int, dict[str, float]] = {number: {} for number in wanted}
    for i, (log_prob, _) in each_likelihood(model, pairs, batch_size):
        number, label = flat[i]
        found[number][label] = round(log_prob, 5)
        if len(found[number]) == len(wanted[number]):
            likelihoods = {label: found[number][label] for label in wanted[number]}
            best = max(likelihoods, key=likelihoods.get)
            yield number, {"output": best, "likelihoods": likelihoods}

"""The rows of a run: read, filtered, compared with the test sets, made into examples; and what is said of each step."""

import random
from dataclasses import replace

from data.batches import Example, encode_row
from data.leakage import Leak, leakage, seen_sets
from data.prompts import Template
from data.sources import Data, load_data
from eval.answers import reaches
from model.errors import UserError
from train.settings import Settings


def load_rows(s: Settings) -> tuple[Data, list[str]]:
    """(the data of the settings, what was left out of it, in words). Raises UserError."""
    data = load_data(s.data, s.data_dir, s.seed, tests=s.tests, columns=s.columns, test_share=s.test_share)
    kept = only_right(data) if s.only_right else data
    if not kept.train:
        why = " that reach their answer" if s.only_right else "" if data.name == "none" else ": it is a test set without rationales"
        raise UserError(f"data {data.name} has no rows to train on{why}")
    told = f"{len(kept.train):,} of {len(data.train):,} rows reach the right answer; the others are left out (only_right)"
    return kept, [told] if s.only_right else []


def only_right(data: Data) -> Data:
    """The same with those training rows alone whose rationale reaches the right answer."""
    return replace(data, train=[row for row in data.train if reaches(row["output"], row["answer"])])


def check_leakage(data: Data, tests: dict[str, list[dict]], allowed: bool) -> dict[str, Leak]:
    """What of the tests is in the training rows. Raises UserError when a test set as such is, unless that is allowed."""
    leaks = leakage(data.train, tests, near=not data.from_forms)
    seen = seen_sets(leaks)
    if seen and not allowed:
        told = ", ".join(f"{name} ({leaks[name].count('twin')} of {leaks[name].total} problems)" for name in seen)
        raise UserError(f"the training rows of {data.name} hold the test set {told}: accuracy on it would say nothing. Choose other --tests, "
                        "or --train-on-test trains all the same and the result says so")
    return leaks


def check_earlier(leaks: list[dict[str, Leak]], allowed: bool) -> None:
    """Raise UserError when an adapter that the run begins with was trained on one of the test sets,
    unless that is allowed."""
    seen = list(dict.fromkeys(name for one in leaks for name in seen_sets(one)))
    if seen and not allowed:
        raise UserError(f"an adapter that this run begins with was trained on the test set {', '.join(seen)}: "
                        "accuracy on it would say nothing. Choose other --tests (or the --seed that held "
                        "the same rows out), or --train-on-test trains all the same and the result says so")


def leak_lines(leaks: dict[str, Leak]) -> list[str]:
    """The leakage report in words."""
    lines = [f"{name}: {leak.count('twin')} of {leak.total} test problems are in the training rows word for word, {leak.count('near')} nearly so"
             for name, leak in leaks.items() if leak.found]
    seen = seen_sets(leaks)
    return [*lines, *([f"TRAINED ON THE TEST SET: {', '.join(seen)}"] if seen else [])]


def cut_lines(cut: int, empty: int, total: int, s: Settings) -> list[str]:
    if not cut:
        return []
    lost = f"; {empty} had no room for a response and were left out" if empty else ""
    return [f"{cut} of {total:,} rows are longer than {s.train.cutoff} tokens and were cut off there (train.cutoff){lost}"]


def encode_rows(tokenizer, data: Data, form: Template, s: Settings) -> tuple[list[Example], int, int]:
    """Training rows as Examples; how many were cut off at train.cutoff tokens; how many of these kept no token to learn and were left out."""
    encoded = [encode_row(tokenizer, row, form, s.train.cutoff, s.train.prompt_weight) for row in data.train]
    examples = [example for example, _ in encoded if any(example.weights[1:])]
    if not examples:
        raise UserError(f"no row of {data.name} keeps a token to learn within train.cutoff = {s.train.cutoff} tokens: raise it")
    return examples, sum(cut for _, cut in encoded), len(encoded) - len(examples)


def hold_out(examples: list[Example], count: int, seed: int) -> tuple[list[Example], list[Example], int]:
    """(rows to train on, `count` rows to validate on, drawn by the seed, how many twins of these were left out of both). Raises UserError."""
    drawn = set(random.Random(f"validation {seed}").sample(range(len(examples)), min(count, len(examples))))
    held_out = [examples[row] for row in sorted(drawn)]
    seen = {tuple(example.ids) for example in held_out}
    training = [example for row, example in enumerate(examples) if row not in drawn and tuple(example.ids) not in seen]
    if not training:
        raise UserError(f"train.validation_rows = {count} leaves no row of {len(examples)} to train on")
    return training, held_out, len(examples) - len(training) - len(held_out)


def validation_lines(held_out: int, twins: int, s: Settings) -> list[str]:
    if not held_out:
        return []
    also = f"; {twins} more that read the same are left out" if twins else ""
    return [f"{held_out:,} rows are held out to validate on every {s.train.validate_every or s.train.save_every} steps{also}"]

"""Data sets by name: rows to train on and test sets to measure on."""

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

from data import wordproblems
from data.split import MATH_SETS, paper_split
from model.errors import UserError, unknown

TRAIN_ROWS = 16000  # of wordproblems: more than a run needs, so that it sees each once
SHARE_NEW = 3 / 7  # of them in the held-out manner; the rest repeat the trained ones, so that those are kept:
REPEATED = {"addsub": 2, "singleeq": 2, "svamp": 6, "gsm8k": 3, "aqua": 1}  # most of the one that is forgotten first


@dataclass(frozen=True)
class Data:
    """Rows {instruction, output, answer}; `tests` by set name, the first being the one to watch."""

    name: str
    train: list[dict]
    tests: dict[str, list[dict]]

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self.train).encode()).hexdigest()[:16]


def word_problems(data_dir: str, seed: int) -> Data:
    """The held-out manner mixed with the trained ones; the test problems are the same for every seed."""
    if data_dir:
        raise UserError("data set wordproblems is made here and takes no --data-dir; did you mean --data math-v1?")
    rng = random.Random(f"wordproblems {seed}")
    streams = {manner: wordproblems.problems(manner, "train", 1000 + seed) for manner in wordproblems.MANNERS}
    train = []
    for _ in range(TRAIN_ROWS):
        new = rng.random() < SHARE_NEW
        manner = wordproblems.HELD_OUT if new else rng.choices(list(REPEATED), list(REPEATED.values()))[0]
        train.append(next(streams[manner]))
    held_out = [wordproblems.HELD_OUT, f"{wordproblems.HELD_OUT}-unseen"]
    counts = dict.fromkeys(held_out, 200) | dict.fromkeys(wordproblems.TRAINED, 100)
    tests = {name: list(islice(wordproblems.problems(name, "test", 0), count)) for name, count in counts.items()}
    return Data("wordproblems", train, tests)


def math_v1(data_dir: str, seed: int) -> Data:
    """The paper's v1 split of its six math sets, byte for byte, from the folder that holds dataset/."""
    if not data_dir:
        raise UserError(
            "data set math-v1 needs --data-dir FOLDER, a copy of the LLM-Adapters repository's folder that holds dataset/ "
            "(github.com/AGI-Edgerunners/LLM-Adapters), which this version does not fetch; "
            "a pocket model, merged or made by pretrain, wants --data wordproblems (and training --recipe pocket-tune)"
        )
    split = paper_split(data_dir)
    return Data("math-v1", split["union"], {name: split[name][1] for name in MATH_SETS})


SOURCES: dict[str, Callable[[str, int], Data]] = {"wordproblems": word_problems, "math-v1": math_v1}  # one row a data set


def load_data(name: str, data_dir: str = "", seed: int = 0) -> Data:
    """The data set `name`. Raises UserError for an unknown name and for missing or malformed files."""
    if name not in SOURCES:
        raise unknown("data set", name, SOURCES)
    return SOURCES[name](data_dir, seed)

"""Data sets by name: where each comes from, what it should hold, and its rows to train on or to be tested on."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from data import wordproblems
from data.answer_kinds import kind_of_answers
from data.fetch import File, cache_folder, fetch
from data.hub import hub_tables, is_repository
from data.own import NEED, TEST_SHARE, Data, Reader, own_data
from data.rows import read_table
from data.split import MATH_SETS, paper_rows, paper_split
from data.tables import ENDINGS
from files.errors import UserError, unknown

REPOSITORY = "https://github.com/AGI-Edgerunners/LLM-Adapters/raw/8166572/"
ODC = "ODC-By 1.0"
TRAIN_ROWS = 16000  # of wordproblems: more than a run needs, so that it sees each once
SHARE_NEW = (
    3 / 7
)  # of them in the held-out manner; the rest repeat the trained ones, so that those are kept:
REPEATED = {
    "addsub": 2,
    "singleeq": 2,
    "svamp": 6,
    "gsm8k": 3,
    "aqua": 1,
}  # most of the one that is forgotten first


@dataclass(frozen=True)
class Source:
    """A data set that lives elsewhere. rows: as published (0: not published); tests: what is measured after training on it."""

    files: tuple[File, ...]
    rows: int
    about: str
    tests: tuple[str, ...] = ()
    licence: str = ODC
    trains: bool = False  # made to train on; the others are test sets

    @property
    def pinned(self) -> bool:
        return all(file.sha256 for file in self.files)


def of_paper(path: str, sha256: str = "") -> File:
    return File(path, REPOSITORY + path, sha256)


def of_math(rows: int, about: str, files: dict[str, str]) -> Source:
    """A set of the paper with its rationales; its files and their sums."""
    return Source(
        tuple(of_paper(f"dataset/{path}", sha256) for path, sha256 in files.items()), rows, about
    )


def of_test(name: str, rows: int, about: str, sha256: str = "") -> Source:
    return Source((of_paper(f"dataset/{name}/test.json", sha256),), rows, about)


def training(name: str, about: str, tests: tuple[str, ...]) -> Source:
    return Source((of_paper(f"ft-training_set/{name}.json"),), 0, about, tests, trains=True)


COMMONSENSE = (
    "boolq",
    "piqa",
    "social_i_qa",
    "hellaswag",
    "winogrande",
    "ARC-Easy",
    "ARC-Challenge",
    "openbookqa",
)
LATER = ("gsm8k", "AQuA", "mawps", "SVAMP")  # the math sets of the paper's later versions

SOURCES = {  # one row a data set
    "AddSub": of_math(
        395,
        "addition and subtraction (Hosseini et al. 2014)",
        {
            "AddSub/addsub_1.json": "611ccb687f8a077ee2ef4cc08875170d78d5387d519614744b7083190432f820",
            "AddSub/AddSub.json": "21930fa90385c72b5a15f4b9a4dda27276b889ae9ff44285505cdd9fa0a20df8",
        },
    ),
    "MultiArith": of_math(
        600,
        "several steps (Roy & Roth 2015)",
        {
            "MultiArith/multiarith_1.json": "47b21b013079bc0e6dbe2043a7458fcb625f4625fbc43167925f2d7898e2308f"
        },
    ),
    "SingleEq": of_math(
        508,
        "one equation (Koncel-Kedziorski et al. 2015)",
        {
            "SingleEq/singleeq_1.json": "7383ae492cd06ace7c8ca14bedcfffce724f7ec2949d620f52c4be08b943da4b"
        },
    ),
    "AQuA": of_math(
        254,
        "algebra with five options (Ling et al. 2017)",
        {"AQuA/aqua_1.json": "a6c963fa7a491ad9461c9db6dd29f41a849dc343b126b75fabeaf78ef4119032"},
    ),
    "gsm8k": of_math(
        1319,
        "grade-school math (Cobbe et al. 2021)",
        {"gsm8k/gsm8k_1.json": "86be346fb5e7942aa31412ce1c7a85b4787958b7fd07c94f694ca508c4a849d6"},
    ),
    "SVAMP": of_math(
        1000,
        "varied one-step problems (Patel et al. 2021)",
        {"SVAMP/svamp_1.json": "40b26b72c74b607e0cd3b72224cdbda84e454ddbcff3cea456799d10c87f43c4"},
    ),
    "mawps": of_test(
        "mawps",
        238,
        "a collection of math problems (Koncel-Kedziorski et al. 2016)",
        "c1a708979cbf2b3df9ac4020baacf3e8e73fcf089e1de7dd1b305b810bfaa15f",
    ),
    "boolq": of_test(
        "boolq",
        3270,
        "yes or no, without the passage (Clark et al. 2019)",
        "89df2397cbca81dc31adcc6f7f5b635821aa0565aafde46725b2b4bd39b4dfa9",
    ),
    "piqa": of_test(
        "piqa",
        1838,
        "everyday physics (Bisk et al. 2020)",
        "3860d11b9b42e590b6b4bbc1643214d373ed0b0d4ac62fcc7bdceb8e044ad141",
    ),
    "social_i_qa": of_test(
        "social_i_qa",
        1954,
        "social situations (Sap et al. 2019)",
        "71543f41127451945379d106ffedaef502f1c8770dff6d2f543aca85e3080b1d",
    ),
    "hellaswag": of_test("hellaswag", 10042, "how a sentence goes on (Zellers et al. 2019)"),
    "winogrande": of_test(
        "winogrande",
        1267,
        "whom a word means (Sakaguchi et al. 2020)",
        "6946f5209e7114c65c6d04f8f644c5a061af20d730b1cfe158fff3dc44076fb9",
    ),
    "ARC-Easy": of_test(
        "ARC-Easy",
        2376,
        "school science (Clark et al. 2018)",
        "3f32a84716ca6d57d38728bf80cc8117aecd17445c2cf29a68b571b810eb82dc",
    ),
    "ARC-Challenge": of_test(
        "ARC-Challenge",
        1172,
        "the harder part of it",
        "4a89ce368ae01a71d268d9851686738b2a0a1d84271116bab49a1dd2b48ecad7",
    ),
    "openbookqa": of_test(
        "openbookqa",
        500,
        "science with common sense (Mihaylov et al. 2018)",
        "8479930f7b8a26052c78250280b5465a4016ca7fc806af440d0f37e243f3099e",
    ),
    "math_7k": training("math_7k", "math_10k without its MAWPS part", LATER),
    "math_10k": training(
        "math_10k", "training problems of GSM8K, MAWPS and AQuA with rationales", LATER
    ),
    "math_14k": training("math_14k", "math_7k with rationales of GPT-4 besides", LATER),
    "commonsense_15k": training("commonsense_15k", "a part of commonsense_170k", COMMONSENSE),
    "commonsense_170k": training(
        "commonsense_170k", "the training parts of the eight commonsense sets", COMMONSENSE
    ),
    "alpaca": Source(
        (
            File(
                "alpaca_data.json",
                "https://raw.githubusercontent.com/tatsu-lab/stanford_alpaca/main/alpaca_data.json",
            ),
        ),
        52002,
        "instructions by text-davinci-003 (Taori et al. 2023)",
        licence="CC BY-NC 4.0",
        trains=True,
    ),
}


# ---------------------------------------------------------------- rows
def known_name(name: str) -> str:
    """The name as it is spelt here: case does not matter."""
    return next(
        (known for known in (*SOURCES, *EXPERIMENTS) if known.lower() == name.lower()), name
    )


def files_of(name: str) -> list[File]:
    """The files that a data set by name is made of; none for one that is made here."""
    names = MATH_SETS if name == "math-v1" else [name] if name in SOURCES else []
    return [file for one in names for file in SOURCES[one].files]


def is_here(name: str, data_dir: str = "") -> bool:
    """Whether a data set can be loaded without a network."""
    name = known_name(name)
    if name in EXPERIMENTS or name in SOURCES:
        return all(
            ((Path(data_dir) if data_dir else cache_folder()) / file.path).is_file()
            for file in files_of(name)
        )
    return Path(name).is_file()


def source_rows(name: str, data_dir: str = "", reader: Reader | None = None) -> list[dict]:
    """All rows of a data set of SOURCES, from data_dir or the cache, into which what is missing
    is fetched.

    reader: leaves out the rows of a training set that cannot be used. Raises UserError.
    """
    source, folder = SOURCES[name], Path(data_dir) if data_dir else cache_folder()
    later = (
        folder / "dataset" / name / "test.json"
    )  # the six math sets in the paper's later versions
    first_form = name in MATH_SETS and (folder / "dataset" / MATH_SETS[name]).is_file()
    if name in MATH_SETS and (first_form or not data_dir or not later.is_file()):
        if not data_dir:
            fetch(files_of(name))
        return paper_rows(folder, name)
    path = later if name in MATH_SETS else folder / source.files[0].path
    if not path.is_file():
        if data_dir:
            raise UserError(
                f"{path} is missing: --data-dir should name the folder that holds dataset/, as the paper's repository does"
            )
        fetch(files_of(name))
    if source.trains:
        return (reader or Reader({}, strict=True)).read(path, NEED["train"]).rows
    return read_table(path, need=NEED["test"])


def word_problems(data_dir: str, seed: int) -> Data:
    """The held-out manner mixed with the trained ones; the test problems are the same for every seed."""
    if data_dir:
        raise UserError(
            "data set wordproblems is made here and takes no --data-dir; did you mean --data math-v1?"
        )
    rng = random.Random(f"wordproblems {seed}")
    streams = {
        manner: wordproblems.problems(manner, "train", 1000 + seed)
        for manner in wordproblems.MANNERS
    }
    train = []
    for _ in range(TRAIN_ROWS):
        new = rng.random() < SHARE_NEW
        manner = (
            wordproblems.HELD_OUT
            if new
            else rng.choices(list(REPEATED), list(REPEATED.values()))[0]
        )
        train.append(next(streams[manner]))
    held_out = [wordproblems.HELD_OUT, f"{wordproblems.HELD_OUT}-unseen"]
    counts = dict.fromkeys(held_out, 200) | dict.fromkeys(wordproblems.TRAINED, 100)
    tests = {
        name: list(islice(wordproblems.problems(name, "test", 0), count))
        for name, count in counts.items()
    }
    return Data("wordproblems", train, tests, from_forms=True)


def math_v1(data_dir: str, seed: int) -> Data:
    """The paper's v1 split of its six math sets, byte for byte; the seed changes nothing."""
    if not data_dir:
        try:
            fetch(files_of("math-v1"))
        except UserError as error:
            raise UserError(
                f"{error} (a copy of a pocket model wants --data wordproblems, and training --recipe pocket-tune)"
            ) from None
    split = paper_split(data_dir or cache_folder())
    return Data("math-v1", split["union"], {name: split[name][1] for name in MATH_SETS})


EXPERIMENTS: dict[str, Callable[[str, int], Data]] = {  # what is more than a file
    "wordproblems": word_problems,
    "math-v1": math_v1,
    "none": lambda data_dir, seed: Data("none", [], {}),  # none: to measure on other sets alone
}


def load_data(
    name: str,
    data_dir: str = "",
    seed: int = 0,
    *,
    tests: Sequence[str] = (),
    columns: dict[str, str] | None = None,
    test_share: float = TEST_SHARE,
    strict_rows: bool = False,
) -> Data:
    """The data set `name`: one of EXPERIMENTS or SOURCES, a file of yours, or a data set of the
    hub (owner/name).

    tests: the sets to measure on, in place of its own: its own by name, others of SOURCES, or
    files. Of your data without a test part `test_share` is held out, drawn by the seed.
    columns: field -> column of your files. strict_rows: a row that cannot be used is an error.
    Raises UserError for an unknown name and for missing or malformed files.
    """
    name = known_name(name)
    named = [name, *(known_name(test) for test in tests)]
    if columns and all(one in EXPERIMENTS or one in SOURCES for one in named):
        raise UserError(
            f"--columns names the columns of a file of yours; {', '.join(named)} has its own"
        )
    reader = Reader(columns or {}, strict_rows)
    if name in EXPERIMENTS:
        data = EXPERIMENTS[name](data_dir, seed)
    elif name in SOURCES:
        data = source_data(name, data_dir, bool(tests), reader)
    elif name.lower().endswith(ENDINGS) or Path(name).is_file():
        if data_dir and not any(one in SOURCES for one in named):
            raise UserError(
                f"--data-dir is where data by name is read from; {name} is a file of yours"
            )
        data = own_data(name, {"train": [Path(name)]}, seed, reader, 0.0 if tests else test_share)
    elif is_repository(name):
        data = own_data(name, hub_tables(name), seed, reader, 0.0 if tests else test_share)
    else:
        others = f"a file that ends in {', '.join(ENDINGS)} or a data set of the hub (owner/name) will do as well"
        raise unknown("data set", name, [*EXPERIMENTS, *SOURCES], others)
    if tests:
        data = replace(data, **chosen_tests(data, tests, data_dir, reader))
        if name == "none":
            data = replace(data, is_own=all(Path(test).is_file() for test in tests))
    return replace(data, notes=[*data.notes, *reader.notes], left_out=reader.left_out)


def source_data(name: str, data_dir: str, other_tests: bool, reader: Reader) -> Data:
    """A data set of SOURCES: one to train on with its tests, or a test set."""
    rows = source_rows(name, data_dir, reader)
    if not SOURCES[name].trains:
        return Data(name, [row for row in rows if row["output"].strip()], {name: rows})
    own = () if other_tests else SOURCES[name].tests
    return Data(name, rows, {test: source_rows(test, data_dir) for test in own})


def chosen_tests(data: Data, names: Sequence[str], data_dir: str, reader: Reader) -> dict:
    """The `tests` and `reads` of the sets of these names. Raises UserError."""
    tests: dict[str, list[dict]] = {}
    reads: dict[str, str] = {}
    for name in names:
        if name.lower() in (one.lower() for one in tests) or Path(name).stem.lower() in (
            one.lower() for one in tests
        ):
            raise UserError(
                f"two test sets are called {Path(name).stem}: name each once, and give a file another name"
            )
        known = next((own for own in data.tests if own.lower() == name.lower()), known_name(name))
        if known in data.tests:
            tests[known] = data.tests[known]
        elif known in SOURCES and not SOURCES[known].trains:
            tests[known] = source_rows(known, data_dir)
        elif name.lower().endswith(ENDINGS):
            known = Path(name).stem
            tests[known] = reader.read(Path(name), NEED["test"]).rows
            reads[known] = kind_of_answers(row["answer"] for row in tests[known])
        else:
            sets = [one for one, source in SOURCES.items() if not source.trains]
            raise unknown(
                "test set",
                name,
                dict.fromkeys([*data.tests, *sets]),
                f"a file that ends in {', '.join(ENDINGS)} will do as well",
            )
    return {
        "tests": tests,
        "reads": {one: kind for one, kind in (data.reads | reads).items() if one in tests},
    }

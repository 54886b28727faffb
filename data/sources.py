"""Data sets by name (sources.toml): training rows and test rows of each."""

import random
import tomllib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from data.answer_kinds import kind_of_answers
from data.fetch import File, cache_folder, fetch
from data.hub import hub_tables, is_repository
from data.own import NEED, TEST_SHARE, Data, Reader, own_data
from data.rows import read_table
from data.split import MATH_SETS, paper_rows, paper_split
from data.tables import ENDINGS
from data.wordproblems import HELD_OUT, MANNERS, TRAINED, problems
from files.errors import UserError, unknown

REPOSITORY = "https://github.com/AGI-Edgerunners/LLM-Adapters/raw/8166572/"
TRAIN_ROWS = 16000  # of wordproblems: more than a run needs, so that it sees each once
SHARE_NEW = 3 / 7  # of them of the held-out kind; the rest are rehearsal
REPEATED = {"addsub": 2, "singleeq": 2, "svamp": 6, "gsm8k": 3, "aqua": 1}


@dataclass(frozen=True)
class Source:
    """A published data set: a table of sources.toml, which says what its fields are."""

    files: tuple[File, ...]
    about: str
    problems: str = ""
    rows: int = 0
    tests: Sequence[str] = ()
    licence: str = "ODC-By 1.0"
    trains: bool = False
    parts: Sequence[str] = ()
    holds: Sequence[str] = ()
    columns: dict[str, str] = field(default_factory=dict)

    @property
    def pinned(self) -> bool:
        return all(file.sha256 for file in self.files)


def source_from(files: dict[str, str], url: str = REPOSITORY, **fields) -> Source:
    return Source(tuple(File(path, url + path, sha256) for path, sha256 in files.items()), **fields)


TABLES = (Path(__file__).parent / "sources.toml").read_text(encoding="utf-8")
SOURCES = {name: source_from(**table) for name, table in tomllib.loads(TABLES).items()}


def known_name(name: str) -> str:
    """The name as it is spelt here: case does not matter."""
    by_lower = {known.lower(): known for known in (*SOURCES, *EXPERIMENTS)}
    return by_lower.get(name.lower(), name)


def files_of(name: str) -> list[File]:
    """The files that a data set by name is made of; none for one that is made here."""
    names = MATH_SETS if name == "math-v1" else [name] if name in SOURCES else []
    return [file for one in names for file in SOURCES[one].files]


def is_here(name: str, data_dir: str = "") -> bool | None:
    """Whether a data set can be loaded without a network."""
    name = known_name(name)
    if name in EXPERIMENTS or name in SOURCES:
        folder = Path(data_dir) if data_dir else cache_folder()
        return all((folder / file.path).is_file() for file in files_of(name))
    with suppress(OSError, ValueError):  # of a name that is too long
        return Path(name).is_file()


def source_rows(name: str, data_dir: str = "", reader: Reader | None = None) -> list[dict]:
    """All rows of a data set of SOURCES, from data_dir or the cache, into which what is missing
    is fetched.

    reader: leaves out the rows of a training set that cannot be used. Raises UserError.
    """
    source, folder = SOURCES[name], Path(data_dir) if data_dir else cache_folder()
    later = folder / "dataset" / name / "test.json"  # math sets of the paper's later versions
    first_form = name in MATH_SETS and (folder / "dataset" / MATH_SETS[name]).is_file()
    if name in MATH_SETS and (first_form or not data_dir or not later.is_file()):
        if not data_dir:
            fetch(files_of(name))
        return paper_rows(folder, name)
    path = later if name in MATH_SETS else folder / source.files[0].path
    if not path.is_file():
        if data_dir:
            raise UserError(
                f"{path} is missing: --data-dir should name the folder that holds dataset/, "
                "as the paper's repository does"
            )
        fetch(files_of(name))
    if source.trains:
        reader = replace(reader or Reader({}, strict=True), columns=source.columns)
        return reader.read(path, NEED["train"]).rows
    return read_table(path, need=NEED["test"])


def word_problems(data_dir: str, seed: int) -> Data:
    """The held-out kind mixed with the trained ones. The tests do not depend on the seed."""
    if data_dir:
        raise UserError(
            "--data wordproblems is generated and takes no --data-dir; did you mean --data math-v1?"
        )
    rng = random.Random(f"wordproblems {seed}")
    streams = {manner: problems(manner, "train", 1000 + seed) for manner in MANNERS}
    train = []
    for _ in range(TRAIN_ROWS):
        manner = HELD_OUT
        if rng.random() >= SHARE_NEW:
            (manner,) = rng.choices(list(REPEATED), list(REPEATED.values()))
        train.append(next(streams[manner]))
    counts = dict.fromkeys((HELD_OUT, f"{HELD_OUT}-unseen"), 200) | dict.fromkeys(TRAINED, 100)
    tests = {name: list(islice(problems(name, "test", 0), n)) for name, n in counts.items()}
    return Data("wordproblems", train, tests, from_forms=True)


def math_v1(data_dir: str, seed: int) -> Data:
    """The paper's v1 split of its six math sets, byte for byte; the seed changes nothing."""
    if not data_dir:
        try:
            fetch(files_of("math-v1"))
        except UserError as error:
            raise UserError(
                f"{error} (for a copy of a pocket model: --data wordproblems --recipe pocket-tune)"
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
        others = f"a file ({', '.join(ENDINGS)}) or a data set of the hub (owner/name) works too"
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
        if {name.lower(), Path(name).stem.lower()} & {one.lower() for one in tests}:
            raise UserError(
                f"two test sets are called {Path(name).stem}: "
                "name each once, and give a file another name"
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
            others = f"a file ({', '.join(ENDINGS)}) works too"
            raise unknown("test set", name, dict.fromkeys([*data.tests, *sets]), others)
    reads = {one: kind for one, kind in (data.reads | reads).items() if one in tests}
    return {"tests": tests, "reads": reads}

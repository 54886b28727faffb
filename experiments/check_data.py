"""Check a data set: sha256 of its files, counts, answers, rationales, and leakage."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from data.answer_kinds import kind_of_answers
from data.fetch import cache_folder, known_sums, sum_of
from data.leakage import leakage
from data.sources import SOURCES, Data, files_of, known_name, load_data
from eval.answers import MODES, is_right, reaches, read_answer
from experiments.measured import check_labels, reading_lines
from experiments.rows import leak_line

PUBLISHED_ROWS = {"math-v1": 3260}  # besides those of SOURCES


def check_data(
    name: str,
    data_dir: str = "",
    columns: dict[str, str] | None = None,
    strict_rows: bool = False,
    say: Callable[[str], None] = print,
) -> list[str]:
    """Read a data set whole and pass a line on every fact to `say`. Returns what is wrong: a file
    that is not the pinned one, another number of rows than published.

    The arguments are those of `load_data`. Raises UserError for data that cannot be read.
    """
    name = known_name(name)
    # test_share=0: every row of a user's own file is checked, none is held out
    data = load_data(name, data_dir, columns=columns, test_share=0.0, strict_rows=strict_rows)
    say(name)
    sum_lines, problems = check_sums(name, data_dir)
    source = SOURCES.get(name)
    is_test = source is not None and not source.trains
    count = len(next(iter(data.tests.values()))) if is_test else len(data.train)
    expected = source.rows if source else PUBLISHED_ROWS.get(name, 0)
    published = f", published {expected:,}" if expected else ""
    total = sum(map(len, data.tests.values()))
    if expected and count != expected:
        problems.append(f"{name} has {count:,} rows, not {expected:,}")
    lines = [*sum_lines, f"rows       {count:,}{published}; {total:,} test problems", *data.notes]
    lines += [f"left out   {where}" for where in data.left_out]
    check_labels(data.tests, data.reads)
    lines += [*answer_lines(data, name), *test_lines(data)]
    for line in lines + ([] if is_test else training_lines(data)):
        say(f"  {line}")
    return problems


def check_sums(name: str, data_dir: str) -> tuple[list[str], list[str]]:
    """(a line on the sha256 of every file, what is wrong with them)."""
    folder = Path(data_dir) if data_dir else cache_folder()
    lines, problems = [], []
    for file in files_of(name):
        path = folder / file.path
        if not path.is_file():
            lines.append(f"sha256     {file.path} is not here: test.json was read in its place")
            continue
        actual, known = sum_of(path), file.sha256 or known_sums(folder).get(file.path)
        verdict = "as pinned" if actual == file.sha256 else "NOT AS PINNED"
        verdict = verdict if file.sha256 else "unpinned"
        lines.append(f"sha256     {file.path} {actual[:16]}... {verdict}")
        if known and actual != known:
            problems.append(
                f"{path} is not the file it should be "
                f"(sha256 {actual[:16]}..., not {known[:16]}...)"
            )
    return lines, problems


def answer_lines(data: Data, name: str) -> list[str]:
    """How the answers of the test sets are read; of own data without one, those of its rows."""
    problems, reads = data.tests, data.reads
    labelled = [row for row in data.train if row["answer"].strip()] if data.is_own else []
    if labelled and not problems:
        own = Path(name).stem
        problems = {own: labelled}
        reads = {own: kind_of_answers(row["answer"] for row in labelled)}
    return reading_lines(problems, reads)


def test_lines(data: Data) -> list[str]:
    """The most frequent answers of each test set, and how its own rationales are read."""
    lines = []
    for test, rows in data.tests.items():
        answers = Counter(row["answer"].strip() for row in rows)
        listed = ", ".join(f"{answer} ({n})" for answer, n in answers.most_common(5))
        more = " ..." if len(answers) > 5 else ""
        lines.append(f"{test:13} {len(rows):,} problems, answers {listed}{more}")
        shipped = [row for row in rows if (row.get("output") or "").strip()]
        if shipped:
            kind = data.reads.get(test, test)
            strict, paper = (
                sum(is_right(read_answer(r["output"], kind, mode), r["answer"]) for r in shipped)
                for mode in MODES
            )
            lines.append(
                f"{'':13} of its own texts the strict reader finds {strict:,} right, "
                f"the paper's {paper:,}"
            )
    return lines


def training_lines(data: Data) -> list[str]:
    """Rationales that reach the right answer, and test problems in the training rows."""
    lines = []
    if any(row["answer"].strip() for row in data.train):
        right = sum(reaches(row["output"], row["answer"]) for row in data.train)
        lines.append(
            f"rationales {right:,} of {len(data.train):,} reach the right answer (--only-right "
            "trains on these alone)"
        )
    leaks = leakage(data.train, data.tests, near=not data.from_forms, is_text=data.is_text)
    return lines + [f"leakage    {leak_line(test, leak)}" for test, leak in leaks.items()]

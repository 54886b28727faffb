"""The labels of test sets: which can be compared, and how answers to them are read."""

from data.answer_kinds import kind_in_words
from eval.answers import fits, gold_number, is_numeric, kind_of
from files.errors import UserError

NAMED = 5  # labels that a line names


def check_labels(problems: dict[str, list[dict]], reads: dict[str, str] | None = None) -> None:
    """Raise UserError for a label of a known set that cannot be compared.

    Such labels of the user's own sets (`reads`) are compared as texts (`reading_lines`).
    """
    for name, rows in problems.items():
        if name in (reads or {}) or not is_numeric(name):
            continue
        for number, row in enumerate(rows):
            try:
                gold_number(row["answer"])
            except UserError as error:
                raise UserError(f"{name}, problem {number + 1}: {error}") from None


def reading_lines(problems: dict[str, list[dict]], reads: dict[str, str]) -> list[str]:
    """A line on how the answers of these sets are read, and one for each of the user's own sets
    with labels of another kind. reads: set -> kind of its answers, where its name does not say it.
    """
    sets: dict[str, list[str]] = {}
    lines = []
    for name, rows in problems.items():
        kind = kind_of(reads.get(name, name))
        sets.setdefault(kind_in_words(kind), []).append(name)
        labels = [row["answer"] for row in rows]
        others = [(n, label) for n, label in enumerate(labels, 1) if not fits(kind, label)]
        if others and name in reads:
            named = ", ".join(
                f"{label.strip()[:40] or 'blank'} (problem {n})" for n, label in others[:NAMED]
            )
            more = f", and {len(others) - NAMED} more" if len(others) > NAMED else ""
            lines.append(
                f"{name}: {len(others)} of {len(rows):,} labels do not fit and are compared as "
                f"texts: {named}{more}"
            )
    if not sets:
        return []
    how = "; ".join(f"as {kind} ({', '.join(names)})" for kind, names in sets.items())
    return [f"answers are read {how}", *lines]

"""Test sets beside what a model was trained on: of its distribution, of another, or leaking."""

from collections.abc import Iterable

from data.sources import SOURCES, known_name

IN, OUT = "in distribution", "out of distribution"


def leaking(data: str, tests: Iterable[str]) -> list[str]:
    """The test sets whose problems the training data `data` holds, as its makers say."""
    source = SOURCES.get(known_name(data))
    return [name for name in tests if source and name in source.holds]


def by_distribution(data: str, tests: Iterable[str]) -> dict[str, list[str]]:
    """{IN: test sets whose training part is in `data`, OUT: the others}, without leaking sets.

    {} where the makers of the data do not say what it is made of, or all sets are of one kind.
    """
    source, tests = SOURCES.get(known_name(data)), list(tests)
    parts = source.parts if source else ()
    clean = [name for name in tests if name not in leaking(data, tests)] if parts else []
    groups: dict[str, list[str]] = {IN: [], OUT: []}
    for name in clean:
        groups[IN if name in parts else OUT].append(name)
    return groups if all(groups.values()) else {}

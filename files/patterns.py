"""Regular expressions of other people, matched in a child process: they may backtrack for ever."""

import re
from functools import lru_cache

from files.bounded import Budget, call
from files.errors import UserError

PLAIN = re.compile(r"(?:[\w-]|\\?\.)*")  # names and dots: nothing that could backtrack
SECONDS = 2.0  # of computing for one match; for all matches together, three times as long
FAULTS = (re.error, OverflowError, RecursionError)
BUDGET = Budget(3 * SECONDS)  # in the child
ASKING = Budget(2 * SECONDS)  # of this process: a hundred thousand cheap patterns take time as well


@lru_cache(maxsize=100_000)
def match(pattern: str, text: str, before: str = "", after: str = "") -> dict | None:
    """The named groups where before + pattern + after matches the whole text, else None.

    before, after: expressions of our own. Raises UserError for a pattern that is malformed or takes
    too long.
    """
    if PLAIN.fullmatch(pattern):
        found = re.fullmatch(before + pattern + after, text)
        return found and found.groupdict()
    what = f"{pattern!r:.100}"
    request = [pattern, before, after, text]
    with ASKING.piece(f"patterns such as {what}"):
        groups, fault = call(
            "files.patterns:match_in_child", request, f"the pattern {what}", SECONDS
        )
    if fault:
        raise UserError(f"{what} is not a regular expression ({fault:.200})")
    return groups


def match_in_child(request: list[str]) -> tuple[dict | None, str]:
    """(`match`, what is wrong with the pattern)."""
    pattern, before, after, text = request
    try:
        with BUDGET.piece(f"patterns such as {pattern!r:.100}"):
            re.compile(pattern)  # whose error names a position in the pattern
            found = re.fullmatch(before + pattern + after, text)
    except FAULTS as error:
        return None, str(error)
    return found and found.groupdict(), ""

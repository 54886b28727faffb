"""Regular expressions of other people, matched in a child process: they may backtrack for ever."""

import re
import time
from functools import lru_cache

from files.bounded import call
from files.errors import UserError

PLAIN = re.compile(r"(?:[\w-]|\\?\.)*")  # names and dots: nothing that could backtrack
SECONDS = 2.0  # of computing for one match; for all matches of this process, three times as long
FAULTS = (re.error, OverflowError, RecursionError)
spent = 0.0  # seconds that the child has matched


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
    groups, fault = call("files.patterns:match_in_child", request, f"the pattern {what}", SECONDS)
    if fault:
        raise UserError(f"{what} is not a regular expression ({fault:.200})")
    return groups


def match_in_child(request: list[str]) -> tuple[dict | None, str]:
    """(`match`, what is wrong with the pattern)."""
    global spent
    began = time.process_time()
    pattern, before, after, text = request
    try:
        re.compile(pattern)  # whose error names a position in the pattern
        found = re.fullmatch(before + pattern + after, text)
    except FAULTS as error:
        return None, str(error)
    spent += time.process_time() - began
    if spent > 3 * SECONDS:
        raise UserError(f"patterns such as {pattern!r:.100} take longer than {3 * SECONDS:g} s")
    return found and found.groupdict(), ""

"""Progress bars on stderr."""

import sys

from tqdm import tqdm


def progress_bar(total: int | None, done: int, **options) -> tqdm:
    """A bar of tqdm: ten updates a second on a terminal, one in ten seconds in a log file."""
    seconds = 0.1 if sys.stderr.isatty() else 10
    return tqdm(total=total, initial=done, dynamic_ncols=True, mininterval=seconds, **options)

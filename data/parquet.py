"""Rows of a parquet file, a few hundred at a time: the part that runs in a child process.

A dictionary of one long text, of which a million rows are made, takes a few bytes in the file.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from files.bounded import Budget, call
from files.errors import UserError

AT_ONCE = 256  # rows
MEMORY = 2**30  # bytes of address space
SECONDS = 5.0  # of computing for a request
MOST = 200_000_000  # bytes of all rows in Python, beside 20 times the size of the file
batches: Iterator = iter(())  # in the child: of the file that is being read
budget = Budget(2 * SECONDS, 0.02)  # for all of them; ordinary ones take 3 ms each


def rows(path: Path) -> Iterator[dict]:
    """The rows of a parquet file. Raises UserError."""
    if not path.is_file():  # a pipe would be waited for
        raise UserError(f"{path} is not a file")
    size, what = path.stat().st_size, f"reading {path}"
    left = MOST + 20 * size
    call("data.parquet:begin", [str(path.resolve()), str(path)], what, SECONDS, MEMORY)
    while (batch := call("data.parquet:more", None, what, SECONDS, MEMORY)) is not None:
        left -= held(batch)
        if left < 0:
            raise UserError(f"{path} has {size:,} bytes and expands to too many rows")
        yield from batch


def held(value) -> int:
    """The bytes that a value takes in Python, without the keys."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return sys.getsizeof(value) + sum(map(held, inner))


def begin(request: list[str]) -> None:
    global batches
    from pyarrow.parquet import ParquetFile

    path, shown = request
    budget.begin()
    with reading(shown):
        batches = ParquetFile(path).iter_batches(AT_ONCE, use_threads=False)


def more(_) -> list[dict] | None:
    with reading("the file"), budget.piece("reading its rows"):
        batch = next(batches, None)
        return None if batch is None else [plain(row) for row in batch.to_pylist()]


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Within this block, what pyarrow raises is a UserError."""
    import pyarrow

    try:
        yield
    except (UserError, MemoryError):  # pyarrow's own is an ArrowException too
        raise
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        said = str(error).partition("\n")[0][:200]
        raise UserError(f"{path} cannot be read as parquet: {said}") from None


def plain(value):
    """A value as JSON can hold it; what it cannot is an object that names its type."""
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    known = value is None or isinstance(value, str | int | float)
    return value if known else {type(value).__name__: ""}

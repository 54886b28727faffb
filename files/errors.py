"""The one exception for what a user can put right."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Something given to us cannot be used: the message says what, where, and what to do, in one line.

    The command line prints it on stderr without a traceback; Python callers catch it as a ValueError.
    """


def unknown(what: str, name: str, known: Iterable[str], listed: str = "") -> UserError:
    """The error for a misspelled `name`: suggests the nearest of `known`, or lists them all, or says where they are `listed`."""
    known = list(known)
    near = difflib.get_close_matches(str(name)[:200], known, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]!r}?" if near else listed or f"there is: {', '.join(known)}"
    return UserError(f"unknown {what} {name!r:.200}; {hint}")


def is_out_of_memory(error: Exception) -> bool:
    """Whether torch ran out of memory: an exception of its own on a GPU, a RuntimeError with these words on a CPU."""
    import torch

    return (
        isinstance(error, torch.OutOfMemoryError | MemoryError)
        or "can't allocate memory" in str(error)
        or "not enough memory" in str(error)
    )


class OutOfMemory(UserError):
    """What `short_of_memory` says."""


@contextmanager
def short_of_memory(said: str) -> Iterator[None]:
    """Within this block running out of memory is the OutOfMemory "out of memory " + said, which names the device and what to lower. Of one block in
    another the outer speaks: it knows what the user gave."""
    try:
        yield
    except (OutOfMemory, RuntimeError, MemoryError) as error:
        if not isinstance(error, OutOfMemory) and not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"out of memory {said}") from None

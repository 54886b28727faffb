"""`UserError` and the messages of misspelled names and memory."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """An error a user can fix; its message says in one line what is wrong, where, and what to do.

    The command line prints it on stderr without a traceback; in Python it is a ValueError.
    """


def unknown(what: str, name: str, known: Iterable[str], listed: str = "") -> UserError:
    """The error for a misspelled `name`: suggests the nearest of `known`.

    If none is near: lists all of them, or says where they are `listed`.
    """
    known = list(known)
    near = difflib.get_close_matches(str(name)[:200], known, n=1, cutoff=0.6)
    choice = f"choose from {', '.join(known)}" if known else "there is none"
    hint = f"did you mean {near[0]!r}?" if near else listed or choice
    return UserError(f"unknown {what} {name!r:.200}; {hint}")


MEMORY_WORDS = (  # in torch's errors that are a plain RuntimeError
    "can't allocate memory",  # of a CPU
    "not enough memory",  # of a CPU under Windows
    "could not create a primitive",  # of oneDNN, which has no word for the reason
    "out of memory",  # CUDA error: out of memory (pinned memory, a context), and NCCL's
    "failed to cuda",  # ... calloc or malloc, of NCCL
    "alloc_failed",  # CUBLAS_STATUS_ALLOC_FAILED and its like
    "allocation_failed",  # of cuDNN
)


def is_out_of_memory(error: Exception) -> bool:
    """Whether torch ran out of memory: its own exception, or one that says so in words."""
    import torch

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        words in str(error).lower() for words in MEMORY_WORDS
    )


class OutOfMemory(UserError):
    """Raised by `short_of_memory`."""


@contextmanager
def short_of_memory(advice: str) -> Iterator[None]:
    """Within this block, running out of memory raises OutOfMemory("out of memory " + advice).

    advice: the device and what to lower. Nested blocks: the outermost message wins.
    """
    try:
        yield
    except (OutOfMemory, RuntimeError, MemoryError) as error:
        if not isinstance(error, OutOfMemory) and not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"out of memory {advice}") from None

"""What an error of torch.distributed means, and which of several processes reports it."""

from contextlib import suppress
from datetime import timedelta

import torch.distributed as dist

from files.errors import OutOfMemory, UserError, is_out_of_memory

PATIENCE = timedelta(seconds=10)  # of a process with an error, for rank 0 to report one
REPORTED = "an error is reported"  # key in the store
BROKEN = ("gloo", "connection closed", "connection reset", "timed out")
LOST = (
    "another process of this job ended or does not answer; continue from the last checkpoint "
    "with --resume"
)
NCCL_BROKEN = ("ncclremoteerror", "ncclsystemerror", "timeout", "timed out", "aborted")


class Lost(UserError):
    """Another process of the job is gone, or does not answer."""


def lost(error: Exception) -> Exception:
    """The error itself, or `Lost` if it says that a connection broke.

    A UserError also for two other errors of NCCL: out of memory, and two processes on one GPU.
    """
    text = str(error).lower()
    if isinstance(error, UserError):
        return error
    if is_out_of_memory(error):
        return OutOfMemory(
            "out of memory: lower train.micro_batch_size, or use a smaller model or dtype "
            f"({first_line(error)})"
        )
    if "duplicate gpu" in text:
        return UserError(
            "two processes are on one GPU: start as many as CUDA_VISIBLE_DEVICES has GPUs, "
            f"--nproc-per-node ({first_line(error)})"
        )
    if "nccl" in text:  # others of its errors are mistakes of this process
        broken = any(words in text for words in NCCL_BROKEN)
    else:
        broken = isinstance(error, dist.DistError) or any(words in text for words in BROKEN)
    if not broken:
        return error
    return Lost(f"{LOST} ({first_line(error)})")


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def is_reported(store: dist.Store, rank: int, world: int, error: UserError) -> bool:
    """Whether another process reports an error, so that this one need not.

    Rank 0 reports its own errors at once, the others wait for it (PATIENCE). Rank 0 leaves
    out that another process is gone if that one has reported why.
    """
    try:
        if rank:
            store.wait([REPORTED], PATIENCE)
            store.set(f"{REPORTED} to {rank}", "")
            return True
        if isinstance(error, Lost) and store.check([REPORTED]):
            return True
    except dist.DistStoreError:
        pass  # no report in this time
    except RuntimeError:
        return rank > 0  # rank 0 is gone, and the store with it
    if store.add(REPORTED, 1) > 1:
        return True
    if rank == 0:  # its process may hold the store: let the others read it first
        others = [f"{REPORTED} to {other}" for other in range(1, world)]
        with suppress(RuntimeError):
            store.wait(others, timedelta(seconds=2))
    return False


def signed(error: UserError, rank: int) -> UserError:
    """The error as this process reports it: others than rank 0 say who they are."""
    return type(error)(f"process {rank}: {error}") if rank else error

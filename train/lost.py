"""What an error of torch.distributed means: another process is gone, or this one did wrong."""

import torch.distributed as dist

from files.errors import OutOfMemory, UserError, is_out_of_memory

BROKEN = ("gloo", "connection closed", "connection reset", "timed out")
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
    return Lost(
        "another process of this job ended or does not answer; continue from the last checkpoint "
        f"with --resume ({first_line(error)})"
    )


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]

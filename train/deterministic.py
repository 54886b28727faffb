"""How a GPU adds and multiplies: `train.deterministic`, sums in a fixed order, so that it repeats a
run to the bit, and `train.tf32`."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from files.errors import UserError


def fix_workspaces() -> None:
    """Let cuBLAS use workspaces that are deterministic; it reads this before its first product."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@contextmanager
def deterministic() -> Iterator[None]:
    """Within this block torch computes with deterministic algorithms only.

    Without it the backward passes of a GPU's fused attention add in any order. Raises UserError
    for an operation that has no deterministic form.
    """
    fix_workspaces()
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)  # memory-efficient attention needs warn_only=False
    torch.utils.deterministic.fill_uninitialized_memory = False  # nothing here reads such memory
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        reason = str(error).partition(". ")[0][:200]
        raise UserError(f"{reason}: set train.deterministic=false") from None
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = fill


@contextmanager
def in_tf32() -> Iterator[None]:
    """Within this block a GPU rounds the factors of float32 products to 10 bits (TF32)."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before

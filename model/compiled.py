"""Blocks through torch.compile: fewer and larger kernels, the same numbers to rounding.

Each block's forward is compiled as it stands, with its adapters, once for all blocks of one kind
and for all lengths: from the second length on, torch makes it for any. What a block computes stays
in the family file.
"""

import functools
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from files.errors import UserError
from model.language import LanguageModel, call_block
from model.quantize.nf4 import NF4

BACKEND = "inductor"
KINDS = 64  # forms of a block that are compiled: adapters, training or not, dtype, one row or more


@functools.cache
def check_compiler(device: torch.device, setting: str) -> None:
    """Raise UserError where torch.compile does not work on this device; setting: what asks for it.

    A function of one line is compiled on the device.
    """
    leave = f"or leave out {setting} (--compile)"
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise UserError(f"{setting} needs triton on a GPU: pip install triton, {leave}")
    wanted = ["gcc", "clang"] if device.type == "cuda" else ["g++"]
    wanted = ["clang++"] if sys.platform == "darwin" and device.type == "cpu" else wanted
    given = os.environ.get("CC" if device.type == "cuda" else "CXX")
    if not any(shutil.which(name) for name in ([given] if given else wanted)):
        raise UserError(
            f"{setting} needs a compiler, and there is no {given or ' or '.join(wanted)} here: "
            f"install one, {leave}"
        )
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(8, device=device))
    except Exception as error:
        lines = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"{setting}: torch.compile fails here ({lines}): {leave}") from None


@contextmanager
def compiled(model: LanguageModel, answers: bool = False) -> Iterator[None]:
    """Within this block the model's blocks are compiled, when they are first used.

    answers: passes have a cache. Its sites stay as they are, since each layer has its own tensors
    there: a block is compiled in the parts before and after it.
    """
    import torch._dynamo

    limits = {"recompile_limit": KINDS, "accumulated_recompile_limit": 4 * KINDS}
    plain = [
        (block.get_submodule(model.sites["kv"]), "forward") for block in model.blocks if answers
    ]
    # torch would make nf4's table of levels anew in each product, and may leave out roundings
    plain += [(module, "product") for module in model.modules() if isinstance(module, NF4)]
    for site, name in plain:
        setattr(site, name, torch.compiler.disable(getattr(site, name)))
    model.call = torch.compile(call_block, backend=BACKEND)
    try:
        # a number that differs between blocks, such as `layer`, is no reason to compile each
        with torch._dynamo.config.patch(**limits, allow_unspec_int_on_nn_module=True):
            yield
    finally:
        model.call = call_block
        for site, name in plain:
            delattr(site, name)

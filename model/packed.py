"""Weights laid out once for products without a gradient on a CPU, beside the plain ones.

torch multiplies by a plain weight [out, in] after laying it out anew, in every product. oneDNN can
keep that layout: one row of bfloat16 then takes about half the time, many rows of float32 as well.
The values are the same, and the copy has their size. It is used while answers are made; a weight
that changed since is found by its storage and version, and multiplied plainly until `pack` is
called again.
"""

import functools
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from model.language import LanguageModel
from model.sites import Linear

ROWS = 16  # that the layout is made for; it serves any number
FLOAT32_FROM = 2**19  # multiplications from which oneDNN is faster than torch in float32 (measured)
FEWEST = 256  # rows: a float32 weight that needs more to reach FLOAT32_FROM has no copy
SHARE = 0.5  # of the memory that is free: the most that "auto" takes
DECODE_MEMORY = ("auto", "packed", "plain")


class Packed:
    """The packed copy of a Linear's weight, and what it was made of."""

    def __init__(self, linear: Linear):
        matrix = linear.matrix().detach()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(matrix, ROWS)
        self.dtype, self.fewest = matrix.dtype, fewest(linear)
        sources = tuple(linear.sources())
        self.key = [(source, source.data_ptr(), source._version) for source in sources]
        self.storages = [
            source.untyped_storage() for source in sources
        ]  # no other gets its address

    def __reduce__(self):
        return type(None), ()  # copies and pickles of a model have none

    def is_current(self, linear: Linear) -> bool:
        """Whether the weight is the one that was packed, with the same values."""
        return all(
            new is old and new.data_ptr() == address and new._version == version
            for new, (old, address, version) in zip(linear.sources(), self.key, strict=True)
        )

    def serves(self, x: Tensor) -> bool:
        """Whether a product with x may be computed by the copy, and faster."""
        return (
            x.dtype == self.dtype
            and x.device.type == "cpu"
            and not torch.is_grad_enabled()
            and x.numel() >= self.fewest * x.shape[-1]
            and not torch.compiler.is_compiling()
        )

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [..., in] -> x W^T + bias [..., out]."""
        return multiply(x, self.weight, bias)


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [..., in] times a weight packed by oneDNN, + bias [out]."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def pack(model: LanguageModel) -> bool:
    """Give the Linears on a CPU their packed copies, or take them away, as `model.decode_memory`
    says; what is current stays. Returns whether any has one.

    auto: if they take at most half of the memory that is free; packed: in any case; plain: none.
    """
    linears = [module for module in model.modules() if isinstance(module, Linear)]
    wanted = [linear for linear in linears if packs(linear)]
    stale = [x for x in wanted if x.packed is None or not x.packed.is_current(x)]
    if stale and model.decode_memory == "auto":
        for linear in stale:
            linear.packed = None
        if packed_bytes(stale) > SHARE * free_memory():
            wanted = []
    if model.decode_memory == "plain":
        wanted = []
    keep = set(map(id, wanted))
    for linear in linears:
        if id(linear) not in keep:
            linear.packed = None
    for linear in stale if wanted else ():
        linear.packed = Packed(linear)
    return bool(wanted)


def fewest(linear: Linear) -> int:
    """Rows of x from which the packed copy of this Linear's weight is faster."""
    if linear.packed_dtype != torch.float32:
        return 1
    return -(-FLOAT32_FROM // (linear.in_features * linear.out_features))


def is_worth_packing(linear: Linear) -> bool:
    return is_usable(linear.packed_dtype) and fewest(linear) <= FEWEST


def packs(linear: Linear) -> bool:
    """Whether a packed copy of this Linear's weight can be made, and is of use."""
    return is_worth_packing(linear) and all(
        source.device.type == "cpu"
        and type(source) in (Tensor, torch.nn.Parameter)  # no part of a sharded one
        and not source.is_inference()  # which has no version
        for source in linear.sources()
    )


def packed_bytes(linears: Iterable[Linear]) -> int:
    """What packed copies of these Linears take."""
    return sum(x.in_features * x.out_features * x.packed_dtype.itemsize for x in linears)


@functools.cache
def is_usable(dtype: torch.dtype) -> bool:
    """Whether this torch has the functions, which are private, and they multiply right in dtype."""
    if dtype not in (torch.float32, torch.bfloat16) or not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(size, generator=generator).to(dtype) for size in ((20, 70), (50, 70), (50,))
    )
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
        pairs = [
            (multiply(rows, packed, added), F.linear(rows.float(), weight.float(), wide))
            for rows in (x, x[:1])
            for added, wide in ((None, None), (bias, bias.float()))
        ]
    except (AttributeError, RuntimeError, TypeError):  # another torch, or a CPU without it
        return False
    error = 1e-6 if dtype == torch.float32 else 4e-3
    return all(
        found.shape == wanted.shape
        and found.dtype == dtype
        and (found.float() - wanted).abs().max() <= error * wanted.abs().max()
        for found, wanted in pairs
    )


def free_memory() -> int:
    """Bytes of memory that are free, within the control group's limit; 0 if the system does not
    say (it is not Linux)."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        table = dict(line.split(":") for line in lines)
        free = int(table["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return 0
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        return free if limit == "max" else min(free, int(limit) - used)
    except (OSError, ValueError):
        return free

"""Copies of weights that answers are made with, beside the stored ones: laid out or dequantised.

On a CPU torch multiplies by a plain weight [out, in] after laying it out anew, in every product.
oneDNN can keep that layout: one row of bfloat16 then takes about half the time, many rows of
float32 as well. Quantised weights, which every product would make anew, get a copy on any device.
It has the values of what it was made of, in the dtype of the computation. A weight that changed
since is found by its storage and version, and multiplied plainly until `pack` is called again.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from model import onednn
from model.language import LanguageModel
from model.quantize.int8 import scaled
from model.quantize.linear import QuantizedLinear
from model.sites import Linear
from model.together import Together

TOGETHER = ("q", "k", "v"), ("gate", "up")  # sites of a block that read the same x
FEWEST = 256  # rows: a float32 weight that needs more to reach FLOAT32_FROM has no copy
SHARE = 0.5  # of the memory that is free: the most that "auto" takes
DECODE_MEMORY = ("auto", "packed", "plain")


class Packed:
    """The packed copy of a Linear's weight, and what it was made of.

    together: where it is the copy of several Linears, this one's place among them.
    """

    def __init__(self, linear: Linear, together: Together | None = None, place: int = 0):
        self.dtype, self.device = linear.packed_dtype, linear.sources()[0].device
        self.fewest, self.laid_out = fewest(linear), lays_out(linear)
        self.together, self.place = together, place
        if together is None:
            matrix = linear.matrix().detach()
            self.weight = onednn.lay_out(matrix) if self.laid_out else matrix
            self.scale = linear.output_scale()
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
            and x.device == self.device
            and not torch.is_grad_enabled()
            and x.numel() >= self.fewest * x.shape[-1]
            and not (self.laid_out and torch.compiler.is_compiling())
        )

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [..., in] -> x W^T + bias [..., out]."""
        if self.together is not None:
            return self.together.product(x, self.place)
        y = (onednn.multiply if self.laid_out else F.linear)(x, self.weight, bias)
        return y if self.scale is None else scaled(y, self.scale)


def pack(model: LanguageModel) -> bool:
    """Give the Linears their copies, or take them away, as `model.decode_memory` says; what is
    current stays. Returns whether any has one.

    auto: on each device, if they take at most half of the memory that is free there; packed: in any
    case; plain: none.
    """
    linears = [module for module in model.modules() if isinstance(module, Linear)]
    missing: dict[torch.device, list[Linear]] = {}
    for linear in linears:
        if model.decode_memory == "plain" or not packs(linear):
            linear.packed = None
        elif linear.packed is None or not linear.packed.is_current(linear):
            linear.packed = None
            missing.setdefault(linear.sources()[0].device, []).append(linear)
    for device, some in missing.items():
        has_room = packed_bytes(some) <= SHARE * free_memory(device)
        if has_room or model.decode_memory == "packed":
            for group in groups(model, some):
                together = Together(group) if len(group) > 1 else None
                for place, linear in enumerate(group):
                    linear.packed = Packed(linear, together, place)
    return any(linear.packed is not None for linear in linears)


def groups(model: LanguageModel, linears: list[Linear]) -> list[list[Linear]]:
    """Linears whose copies are made, those in one list as one: of a block they read the same x."""
    wanted, found = set(linears), []
    for block in model.blocks:
        for names in TOGETHER:
            some = [block.get_submodule(model.sites[name]) for name in names if name in model.sites]
            if len(some) == len(names) and wanted.issuperset(some) and can_share(some):
                found.append(some)
    grouped = {linear for group in found for linear in group}
    return [*found, *([linear] for linear in linears if linear not in grouped)]


def lays_out(linear: Linear, device: str | None = None) -> bool:
    """Whether the copy of this Linear's weight is one in oneDNN's layout.

    device: that it is meant for; None: where it is.
    """
    on_cpu = (device or linear.sources()[0].device.type) == "cpu"
    return on_cpu and onednn.is_usable(linear.packed_dtype) and fewest(linear) <= FEWEST


def can_share(linears: list[Linear]) -> bool:
    """Whether these Linears, which read the same x, can have one copy in oneDNN's layout."""
    alike = {(type(x), x.packed_dtype, x.in_features, fewest(x) == 1) for x in linears}
    plain = all(lays_out(x) and x.bias is None for x in linears)
    return plain and len(alike) == 1


def fewest(linear: Linear) -> int:
    """Rows of x from which the packed copy of this Linear's weight is faster."""
    if linear.packed_dtype != torch.float32 or isinstance(linear, QuantizedLinear):
        return 1
    return -(-onednn.FLOAT32_FROM // (linear.in_features * linear.out_features))


def is_worth_packing(linear: Linear, device: str | None = None) -> bool:
    """Whether a copy saves time; device as in `lays_out`."""
    is_quantized = isinstance(linear, QuantizedLinear) and linear.packed_dtype.is_floating_point
    return is_quantized or lays_out(linear, device)


def packs(linear: Linear) -> bool:
    """Whether a copy of this Linear's weight can be made, and is of use."""
    return is_worth_packing(linear) and all(
        type(source) in (Tensor, torch.nn.Parameter)  # no part of a sharded one
        and not source.is_inference()  # which has no version
        and not source.is_meta
        for source in linear.sources()
    )


def packed_bytes(linears: Iterable[Linear]) -> int:
    """What packed copies of these Linears take."""
    return sum(x.in_features * x.out_features * x.packed_dtype.itemsize for x in linears)


def bytes_by_place(model: LanguageModel, device: str, is_sharded: bool) -> list[int]:
    """What the copies of a planned model take on a device of this kind, by place: the embedding,
    every block, the head."""
    places = [0] * (len(model.blocks) + 2)
    for path, linear in model.named_modules():
        is_part = is_sharded and path.startswith(model.blocks_at)
        if isinstance(linear, Linear) and is_worth_packing(linear, device) and not is_part:
            places[model.place_of(f"{path}.weight") + 1] += packed_bytes([linear])
    return places


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device; of a CPU's within the control group's limit, and 0 if the
    system does not say (it is not Linux)."""
    if device.type != "cpu":
        return torch.cuda.mem_get_info(device)[0]
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

"""What an adapter is: a small module at a site, with a few hooks that do nothing unless a method overrides them."""

import difflib
from copy import copy
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from files.errors import UserError
from files.typed import Range

Size = Annotated[int, Range(1, 2**31)]  # of an option that counts something
Dropout = Annotated[float, Range(0, 0.999)]
PREFIX = "base_model.model."  # in front of every module path in adapter files, as in PEFT's and the paper's


class Adapter(nn.Module):
    """Base of all methods. A site calls `before` on what goes into its computation f and `after` on what comes out.

    A method is a subclass with a frozen dataclass `Options` (its settings, with defaults) and `__init__(options, site)`.
    Its parameters are float32 masters; `linear` casts them to the computation's dtype, the one place that does, and brings them to its device: what
    several sites share lies beside one of them.
    """

    works_on: tuple[str, ...] = ("Linear", "sub-layer")  # kinds of site it makes sense at
    virtual = 0  # tokens that it puts in front of every row (prompt and prefix tuning)
    starts_at_base = True  # a new adapter changes nothing until it is trained
    adds = True  # all it does is to change what goes into f or comes out of it, so that the changes of several can be averaged
    changes_input = False  # what goes into f, too
    members: tuple[str, ...] = ()  # names of other adapters it is built on
    part = ""  # its name in a mixture
    rate = 1.0  # its learning rate, as a multiple of the run's

    @classmethod
    def build(cls, options: list, sites: list[nn.Module], model: nn.Module) -> list["Adapter"]:
        """One adapter for each site, with the options there. Methods that share something among their sites make it here."""
        return [cls(one, site) for one, site in zip(options, sites, strict=True)]

    def before(self, x: Tensor) -> Tensor:
        """What f shall see instead of x [B, T, in]."""
        return x

    def after(self, y: Tensor, x: Tensor, f: nn.Module) -> Tensor:
        """What the model shall see instead of y = f(x) [B, T, out]."""
        return y

    def kv(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values [B, K, S, D] to attend to instead of these; `virtual` more of them in front."""
        return k, v

    def embed(self, x: Tensor, first: bool) -> Tensor:
        """What the blocks shall see instead of the embedded tokens x [B, T, E]; `virtual` more in front in a row's first pass."""
        return x

    def unembed(self, h: Tensor) -> Tensor:
        """What the output head shall see instead of the last hidden states h [..., E]."""
        return h

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The float32 weight [out, in] and bias [out] of a plain site that computes the same. Raises UserError where there is none."""
        raise UserError(
            f"{type(self).__name__} is not linear and cannot be merged into the weights; evaluate and generate use it unmerged"
        )

    def rate_of(self, leaf: str) -> float:
        """The learning rate of the parameter `leaf`, as a multiple of the run's."""
        return self.rate

    def penalty(self) -> Tensor | None:
        """A term to add to the loss of every training step."""
        return None

    @classmethod
    def after_step(cls, adapters: list["Adapter"], step: int, total: int) -> None:
        """Called on all adapters of one method after `step` of `total` training steps, while the gradients are still there."""

    def key(self, leaf: str) -> str:
        """How an adapter file calls the tensor `leaf` of this module, behind the module's path."""
        return f"{leaf}.weight"

    @classmethod
    def to_file(cls, adapters: dict[str, "Adapter"]) -> dict[str, Tensor]:
        """What a file holds of the adapters at these module paths, by key."""
        return {
            f"{PREFIX}{path}.{one.key(leaf)}": tensor
            for path, one in adapters.items()
            for leaf, tensor in one.state_dict(keep_vars=True).items()
        }

    @classmethod
    def from_file(cls, adapters: dict[str, "Adapter"], tensors: "Tensors") -> None:
        """Fill the adapters at these module paths from a file, taking every tensor once."""
        for key, into in cls.to_file(adapters).items():
            tensors.take(key, into)

    @classmethod
    def combine(cls, weighted: list[tuple["Adapter", float]], site: nn.Module) -> dict[str, Tensor]:
        """The tensors of start + sum of weight x (adapter - start): task arithmetic (Ilharco et al. 2023). All have the same shapes."""
        start = weighted[0][0].start(site)
        return {
            leaf: start.get(leaf, 0.0)
            + sum(
                weight * (one.state_dict()[leaf] - start.get(leaf, 0.0)) for one, weight in weighted
            )
            for leaf in weighted[0][0].state_dict()
        }

    def side_by_side(
        self, weighted: list[tuple["Adapter", float]]
    ) -> tuple[str, object, dict[str, Tensor]]:
        """(kind, options, tensors) of one adapter that adds the sum of weight x what each of these adds. Raises UserError where there is none."""
        raise UserError(
            f'what {self.config.kind} adapters add has no sum in one adapter; how="weights" adds the adapters themselves'
        )

    def start(self, site: nn.Module) -> dict[str, Tensor | float]:
        """The values that change nothing, where they are not zero."""
        return {}

    @staticmethod
    def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.linear(x, weight.to(x), None if bias is None else bias.to(x))


class Tensors:
    """The tensors of an adapter file, each to be taken exactly once."""

    def __init__(self, found: dict[str, Tensor], where: str):
        self.left, self.known, self.where, self.prefix = dict(found), set(found), where, ""

    def behind(self, prefix: str) -> "Tensors":
        """The same tensors, asked for without the `prefix` of their keys."""
        one = copy(self)
        one.prefix = prefix
        return one

    def pop(self, key: str) -> Tensor:
        """The tensor of this key. Raises UserError when it is missing or not finite."""
        key = self.prefix + key
        if key not in self.left:
            near = difflib.get_close_matches(key, self.left, n=1, cutoff=0.8)
            raise UserError(
                f"{self.where}: tensor {key!r} is missing"
                + (f"; the file has {near[0]!r:.200}" if near else "")
            )
        tensor = self.left.pop(key)
        if not tensor.is_floating_point():
            raise UserError(
                f"{self.where}: tensor {key!r} is stored as {tensor.dtype}, not as floating point"
            )
        if not tensor.isfinite().all():
            raise UserError(f"{self.where}: tensor {key!r} holds NaN or infinite values")
        return tensor

    @torch.no_grad()
    def take(self, key: str, into: Tensor) -> None:
        """Copy the tensor of this key into one of the same shape. Raises UserError."""
        tensor = self.pop(key)
        if tensor.shape != into.shape:
            raise UserError(
                f"{self.where}: tensor {self.prefix + key!r} is {list(tensor.shape)}, the configuration asks for {list(into.shape)}"
            )
        into.copy_(tensor)

    def finish(self) -> None:
        """Raises UserError when a tensor was not used."""
        if self.left:
            raise UserError(
                f"{self.where}: unknown tensor {next(iter(self.left))!r:.200}, which the adapter's configuration has no place for "
                f"({len(self.left)} of {len(self.known)} are left over)"
            )

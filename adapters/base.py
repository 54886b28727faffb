"""What an adapter is: a small module at a site, with hooks that change nothing by default.

            ┌────────────── site ──────────────┐
    x ──────┼─ before ── f ── after ───────────┼────── y        Linear, norm, sub-layer
    k, v ───┼─ kv ─────────────────────────────┼────── k, v     keys and values
            └──────────────────────────────────┘
    tokens ── embedding ── embed ── blocks ── unembed ── head ── logits

Shapes: B batch, T query length, S key length, K key/value heads, D head size, E size of the
embedding; `in` and `out` are the site's in_features and out_features.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

from torch import Tensor, nn

from adapters.casting import Casting
from adapters.tensors import Tensors
from files.errors import UserError
from files.typed import Range
from model.language import LanguageModel
from model.onednn import linear
from model.sites import Site

Size = Annotated[int, Range(1, 2**31)]  # an option that counts something
Dropout = Annotated[float, Range(0, 0.999)]
PREFIX = "base_model.model."  # before every module path in PEFT's and the paper's adapter files


def training(default):
    """An option that only training looks at: adapters that differ in it can be summed."""
    return field(default=default, metadata={"training": True})


@dataclass(frozen=True)
class Folded:
    """What a site computes with the adapters folded so far: y = weight (x M₁ M₂ ...) + bias.

    weight [out, in] and bias [out] are float32, or None. Each of `inputs` is a matrix M [in, in]
    that changes x, as a function weight -> weight Mᵀ. They stand apart because adapters that read x
    (LoRA) get it changed, too.
    """

    site: Site
    base: tuple[Tensor | None, Tensor | None]  # weight and bias before any adapter
    weight: Tensor | None
    bias: Tensor | None
    inputs: tuple[Callable[[Tensor], Tensor], ...] = ()

    def through(self, weight: Tensor) -> Tensor:
        """weight ... M₂ᵀ M₁ᵀ"""
        for change in reversed(self.inputs):
            weight = change(weight)
        return weight

    def check_base(self, adapter: nn.Module, *leaves: str) -> None:
        """Raises UserError if one of "weight" and "bias" is no longer the base's."""
        for leaf, base in zip(("weight", "bias"), self.base, strict=True):
            if leaf in leaves and getattr(self, leaf) is not base:
                raise UserError(
                    f"{type(adapter).__name__} starts from the base's {leaf}, which another "
                    "adapter in front of it has changed; apply it first"
                )


class Adapter(Casting):
    """Base of all methods.

    A method is a subclass with a frozen dataclass `Options` (types are checked; a method `check`
    of it, if there is one, raises UserError) and `__init__(options, site)`, which sets
    `self.options` and makes float32 parameters. `linear` casts them to the dtype of the
    computation. Of the hooks a method overrides two or three:

        build                                   while it is attached
        before, after | embed, unembed          in every forward pass; at keys and values: kv
        fold                                    when it is merged
        to_file, from_file                      in files, if the parameters are not what is stored
        start                                   when adapters are summed (adapters/combine.py)

    A method that has a sum in one adapter is Summable, one with a schedule Scheduled.
    """

    works_on: tuple[str, ...] = ("Linear", "sub-layer")  # kinds of site it can sit at
    virtual = 0  # tokens that it puts before every row (prompt and prefix tuning)
    ends = 0  # at a block's output: how many of a prompt's last tokens it finds by their place
    starts_at_base = True  # a new adapter does not change the model's outputs
    adds = True  # it has no hooks but before and after, so that an Average of several exists
    changes_input = False  # it changes what goes into f
    needs = ""  # what a run must have for it beside a base
    members: tuple[str, ...] = ()  # names of the adapters it is built on (fusion)
    peft_type, peft = "", {}  # its type in PEFT; option -> field of PEFT's adapter_config.json
    keys: dict[str, str] = {}  # parameter -> its name in files, if it is not "<parameter>.weight"
    rates: dict[str, float] = {}  # parameter -> its learning rate, a multiple of the adapter's
    part = ""  # its name in a mixture
    rate = 1.0  # its learning rate, a multiple of the run's

    @classmethod
    def build(cls, options: list, sites: list[Site], model: LanguageModel) -> list["Adapter"]:
        """One adapter for each site; called once when the method is attached.

        Override it to share something among the sites. Raises UserError, with nothing changed.
        """
        return [cls(o, site) for o, site in zip(options, sites, strict=True)]

    def before(self, x: Tensor) -> Tensor:
        """x [B, T, in] -> what f gets instead; called before a Linear."""
        return x

    def after(self, y: Tensor, x: Tensor, f: Site) -> Tensor:
        """y = f(x) [B, T, out] -> what the model gets instead; x [B, T, in] (embedding: ids)."""
        return y

    def embed(self, x: Tensor, first: bool) -> Tensor:
        """Embedded tokens x [B, T, E] -> what the blocks get.

        If this is the row's first pass (`first`), `virtual` more of them in front.
        """
        return x

    def unembed(self, h: Tensor) -> Tensor:
        """Last hidden states h [..., E] -> what the output head gets."""
        return h

    def fold(self, f: Folded) -> Folded:
        """f with this adapter in its weight and bias: the same outputs; called by `merge`.

        Raises UserError if there is no such weight.
        """
        raise UserError(f"{type(self).__name__} is not a linear map of one weight")

    @classmethod
    def to_file(cls, adapters: dict[str, "Adapter"]) -> dict[str, Tensor]:
        """What a file holds of the adapters at these module paths, by key (PEFT's names)."""
        return {
            f"{PREFIX}{path}.{adapter.keys.get(leaf, f'{leaf}.weight')}": tensor
            for path, adapter in adapters.items()
            for leaf, tensor in adapter.state_dict(keep_vars=True).items()
        }

    @classmethod
    def from_file(cls, adapters: dict[str, "Adapter"], tensors: Tensors) -> None:
        """Fill the adapters at these module paths; every tensor is taken once. Raises UserError."""
        for key, into in cls.to_file(adapters).items():
            tensors.take(key, into)

    def start(self, site: Site) -> dict[str, Tensor | float]:
        """The values of parameters that change nothing at the site, if they are not zero."""
        return {}

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """x W^T + b in the dtype and on the device of x."""
        weight = self.cast(weight, x) if isinstance(weight, nn.Parameter) else weight.to(x)
        return linear(x, weight, None if bias is None else bias.to(x))


Weighted = list[tuple[Adapter, float]]
Sum = tuple[str, object, dict[str, Tensor]]  # kind, options and parameters of an adapter


class Summable(Adapter):
    """A method whose outputs at a site can be summed in one adapter (LoRA, bottlenecks)."""

    def side_by_side(self, weighted: Weighted) -> Sum:
        """One adapter that adds the sum of weight x what each adds.

        `weighted` are adapters of this site. Raises UserError if there is no such adapter.
        """
        raise NotImplementedError


class Scheduled(Adapter):
    """A method that takes part in the training loop (AdaLoRA)."""

    @classmethod
    def penalties(cls, adapters: list["Adapter"]) -> list[Tensor]:
        """Terms [n] of the loss, of n sites each: the mean of all is added in every step."""
        return []

    @classmethod
    def after_step(cls, adapters: list["Adapter"], step: int, total: int) -> None:
        """Called after `step` of `total` training steps, while the gradients are still there.

        `adapters` are all of one part of one adapter.
        """

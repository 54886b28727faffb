"""Task arithmetic (Ilharco et al. 2023; Zhang et al. 2023): adapters added, subtracted and scaled.

    combine(model, {"math": 1.0, "toxic": -0.5}, "better")                  their outputs, exactly
    combine(model, {"seed0": 0.5, "seed1": 0.5}, "mean", how="weights")     their weights (a soup)

"outputs" puts bottlenecks side by side (the widths add up), and so LoRA's ranks, which PEFT calls
"cat": the new adapter adds w₁ d₁ + w₂ d₂ if the old ones add d₁ and d₂. "svd" is that for LoRA and
its relatives, cut to a rank. "weights" makes start + w₁ (θ₁ - start) + w₂ (θ₂ - start) of every
parameter θ, for adapters of one configuration; start is the value that changes nothing. "ties" and
"dare" sum θ - start so that opposite changes do not cancel (adapters/task_vectors.py). There a
LoRA's A has √|w| and the sign of w, and B has √|w|, as in PEFT, so that B A is weighted by w.
"""

import math
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial

import torch
from torch import Tensor

from adapters.attach import adapters_named, attach, unchanged_on_error
from adapters.base import Adapter, Summable
from adapters.compose import Group
from adapters.config import AdapterConfig, Part
from adapters.in_use import parts_of
from adapters.methods.lora import EmbeddingLoRA, LoRA, LowRank
from adapters.task_vectors import dare, ties, truncate
from files.errors import UserError, unknown
from model.language import LanguageModel

Loaded = dict[str, dict[str, Adapter]]  # adapter's name -> path of a site -> adapter
Combined = tuple[AdapterConfig, dict[str, dict[str, Tensor]]]  # and path -> parameter -> value
Sum = Callable[[list[Tensor], list[float]], Tensor]  # of task vectors with their weights
OPTIONS = {  # ways to combine -> the options they have
    "outputs": (), "cat": (), "svd": ("rank",), "weights": (),
    "ties": ("density",), "dare": ("density", "seed"),
}  # fmt: skip

RUNNING = "evaluate --average, use(model, [Average(...)]) in Python, adds them as it runs"


@torch.no_grad()
def combine(
    model: LanguageModel,
    weights: dict[str, float],
    name: str,
    how: str = "outputs",
    rank: int | None = None,
    density: float | None = None,
    seed: int | None = None,
) -> AdapterConfig:
    """Attach the weighted sum of loaded adapters as a new one, switched on after those on.

    rank: of the sum, for "svd" (default: the largest rank of the adapters). density: the share of
    entries kept in (0, 1], for "ties" and "dare" (default 0.5). seed: of the entries that "dare"
    drops (default 0). Raises UserError for unknown names, for options that a way does not have, and
    for adapters that have no such sum; the model is then unchanged.
    """
    if how not in OPTIONS:
        raise unknown("way to combine", how, OPTIONS)
    for option, value in (("rank", rank), ("density", density), ("seed", seed)):
        if value is not None and option not in OPTIONS[how]:
            having = " and ".join(way for way, options in OPTIONS.items() if option in options)
            raise UserError(f"{option} {value} does not apply to {how!r}: it is for {having}")
    if rank is not None and rank < 1:
        raise UserError(f"rank {rank} is not at least 1")
    density = 0.5 if density is None else density
    if not 0 < density <= 1:
        raise UserError(f"density {density} is not a share above 0, up to 1")
    if seed is not None and not 0 <= seed < 2**63:
        raise UserError(f"seed {seed} is not a whole number from 0 to 2^63 - 1")
    if not weights:
        raise UserError("combine needs an adapter or more, with a weight each")
    loaded = {adapter: adapters_named(model, adapter) for adapter in weights}
    if how in ("outputs", "cat", "svd"):
        config, tensors = add_outputs(loaded, weights, how, rank)
    elif how == "weights":
        config, tensors = add_weights(model, loaded, weights, weighted_sum)
    else:
        check_density(loaded, density)
        generator = torch.Generator().manual_seed(seed or 0)
        add = partial(ties, density=density)
        if how == "dare":
            add = partial(dare, density=density, generator=generator)
        config, tensors = add_weights(model, loaded, weights, add, by_factor=True)
    with unchanged_on_error(model):
        attach(model, config, name)
        for path, adapter in adapters_named(model, name).items():
            for leaf, value in tensors[path].items():
                adapter.state_dict(keep_vars=True)[leaf].copy_(value)
    return config


def check_density(loaded: Loaded, density: float) -> None:
    """Raise UserError for a density that keeps no entry of any parameter."""
    states = [one.state_dict() for adapters in loaded.values() for one in adapters.values()]
    largest = max((t.numel() for state in states for t in state.values()), default=0)
    if density * largest < 1:
        raise UserError(f"density {density} keeps none of {largest:,} entries: nothing is left")


def weighted_sum(vectors: list[Tensor], weights: list[float]) -> Tensor:
    return sum(weight * vector for weight, vector in zip(weights, vectors, strict=True))


def add_weights(
    model: LanguageModel,
    loaded: Loaded,
    weights: dict[str, float],
    add: Sum,
    by_factor: bool = False,
) -> Combined:
    """The first one's configuration, and start + `add` of each parameter's θ - start.

    by_factor: the factors of a LoRA share its weight, so that their product has it.
    """
    first_name, first = next(iter(loaded.items()))
    config = config_of(first)
    for other_name, other in loaded.items():
        theirs = config_of(other)
        if what_computes(theirs) != what_computes(config) or shapes(other) != shapes(first):
            raise UserError(
                f"the weights of {first_name!r} ({config.kind} at {config.place()}) and "
                f"{other_name!r} ({theirs.kind} at {theirs.place()}) do not have the same places, "
                "sizes and options: outputs, not weights, is the way to combine them"
            )
    tensors: dict[str, dict[str, Tensor]] = {}
    for path in first:
        tensors[path] = {}
        parts = {name: dict(parts_of("", adapters[path])) for name, adapters in loaded.items()}
        for where, adapter in parts[first_name].items():
            states = [parts[name][where].state_dict() for name in weights]
            start = adapter.start(model.get_submodule(path))
            for leaf, tensor in states[0].items():
                if not tensor.is_floating_point():  # the places of SHiRA's entries
                    if any(not tensor.equal(state[leaf]) for state in states):
                        raise UserError(f"{leaf} of the adapters at {path} differ: no sum of them")
                    tensors[path][f"{where}.{leaf}".lstrip(".")] = tensor
                    continue
                zero = start.get(leaf, 0.0)
                shares = [share(adapter, leaf, w) if by_factor else w for w in weights.values()]
                total = add([state[leaf] - zero for state in states], shares)
                tensors[path][f"{where}.{leaf}".lstrip(".")] = zero + total
    return config, tensors


def share(adapter: Adapter, leaf: str, weight: float) -> float:
    """The weight of one parameter so that what the adapter adds has `weight`."""
    if isinstance(adapter, LoRA | EmbeddingLoRA) and leaf.endswith(("_A", "_B")):
        root = math.sqrt(abs(weight))
        return math.copysign(root, weight) if leaf.endswith("_A") else root
    return weight


def config_of(adapters: dict[str, Adapter]) -> AdapterConfig:
    return next(iter(adapters.values())).config


def shapes(adapters: dict[str, Adapter]) -> dict:
    return {
        path: {leaf: tensor.shape for leaf, tensor in adapter.state_dict().items()}
        for path, adapter in adapters.items()
    }


def what_computes(config: AdapterConfig) -> list[tuple]:
    """Of each part what decides what it computes once it is trained."""
    found = []
    for part in config.parts.values():
        names = [o.name for o in fields(part.options) if not o.metadata.get("training")]
        values = {name: getattr(part.options, name) for name in names}
        found.append((part.kind, part.overrides, values))
    return found


def add_outputs(loaded: Loaded, weights: dict[str, float], how: str, rank: int | None) -> Combined:
    """The configuration of the adapters side by side, and their parameters.

    how "svd": of LoRA and its relatives, cut to `rank` or their largest.
    """
    kinds, options, tensors = set(), {}, {}
    for path in dict.fromkeys(path for adapters in loaded.values() for path in adapters):
        here = [name for name in weights if path in loaded[name]]
        weighted = [(loaded[name][path], weights[name]) for name in here]
        adapters = [adapter for adapter, _ in weighted]
        alike = len({type(adapter) for adapter in adapters}) == 1
        if not alike and not all(isinstance(adapter, LowRank) for adapter in adapters):
            named = " and ".join(sorted(adapter.config.kind for adapter in adapters))
            raise UserError(f"the outputs of {named} adapters at {path} have no sum; {RUNNING}")
        if any(isinstance(adapter, Group) for adapter in adapters):
            raise UserError(
                f"the adapter at {path} is a mixture, of which there is no sum; {RUNNING}"
            )
        if not isinstance(adapters[0], Summable):
            raise UserError(
                f"what {adapters[0].config.kind} adapters add has no sum: weights combines them"
            )
        kind, own, values = adapters[0].side_by_side(weighted)
        if how == "svd":
            if kind != "lora":
                raise UserError(f"{kind} adapters are not of low rank: outputs combines them")
            leaves = adapters[0].leaves
            A, B = truncate(*map(values.get, leaves), rank or largest_rank(loaded))
            values |= dict(zip(leaves, (A, B), strict=True))
            own = replace(own, r=len(A), alpha=float(len(A)))
        kinds.add(kind)
        options[path], tensors[path] = own, values
    if len(kinds) > 1:
        both = " and ".join(sorted(kinds))
        raise UserError(f"the sum would be made of {both}: add adapters of one kind")
    base = next(iter(options.values()))
    overrides = {}
    for path, here in options.items():
        changes = {key: value for key, value in vars(here).items() if value != getattr(base, key)}
        if changes:
            overrides[path.replace(".", r"\.")] = changes
    placed = same_place(list(map(config_of, loaded.values())))
    if placed and not overrides:
        part = replace(placed, kind=kinds.pop(), options=base, overrides={}, rate=1.0)
    else:
        part = Part(kinds.pop(), base, tuple(options), "all", overrides)
    return AdapterConfig({"": part}), tensors


def largest_rank(loaded: Loaded) -> int:
    return max(len(a.factors()[0]) for adapters in loaded.values() for a in adapters.values())


def same_place(configs: list[AdapterConfig]) -> Part | None:
    """The part whose sites and layers all of them have, if there is one."""
    first = configs[0].only
    if first and all(
        config.only and (config.only.sites, config.only.layers) == (first.sites, first.layers)
        for config in configs
    ):
        return first
    return None

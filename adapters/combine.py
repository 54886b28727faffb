"""Task arithmetic (Ilharco et al. 2023; Zhang et al. 2023): adapters added, subtracted and scaled.

    combine(model, {"math": 1.0, "toxic": -0.5}, "better")                  their outputs, exactly
    combine(model, {"seed0": 0.5, "seed1": 0.5}, "mean", how="weights")     their weights (a soup)

"outputs" puts bottlenecks side by side (the widths add up), and so LoRA's ranks: the new adapter
adds w₁ d₁ + w₂ d₂ if the old ones add d₁ and d₂. "weights" makes start + w₁ (θ₁ - start) +
w₂ (θ₂ - start) of every parameter θ, for adapters of one configuration; start is the value that
changes nothing.
"""

from dataclasses import fields, replace

import torch
from torch import Tensor

from adapters.attach import adapters_named, attach, parts_of, unchanged_on_error
from adapters.base import Adapter
from adapters.compose import Group
from adapters.config import AdapterConfig, Part
from adapters.methods.lora import LowRank
from files.errors import UserError, unknown
from model.language import LanguageModel
from model.sites import Site

Loaded = dict[str, dict[str, Adapter]]  # adapter's name -> path of a site -> adapter
Combined = tuple[AdapterConfig, dict[str, dict[str, Tensor]]]  # and path -> parameter -> value


@torch.no_grad()
def combine(
    model: LanguageModel, weights: dict[str, float], name: str, how: str = "outputs"
) -> AdapterConfig:
    """Attach the weighted sum of loaded adapters as a new one, switched on after those on.

    Raises UserError for unknown names and for adapters that have no such sum; the model is then
    unchanged.
    """
    if how not in ("outputs", "weights"):
        raise unknown("way to combine", how, ["outputs", "weights"])
    if not weights:
        raise UserError("combine needs an adapter or more, with a weight each")
    loaded = {adapter: adapters_named(model, adapter) for adapter in weights}
    config, tensors = (add_outputs if how == "outputs" else add_weights)(model, loaded, weights)
    with unchanged_on_error(model):
        attach(model, config, name)
        for path, adapter in adapters_named(model, name).items():
            for leaf, value in tensors[path].items():
                adapter.state_dict(keep_vars=True)[leaf].copy_(value)
    return config


def add_weights(model: LanguageModel, loaded: Loaded, weights: dict[str, float]) -> Combined:
    """The first one's configuration, and the sum of each parameter."""
    first_name, first = next(iter(loaded.items()))
    config = config_of(first)
    for other_name, other in loaded.items():
        theirs = config_of(other)
        if what_computes(theirs) != what_computes(config) or shapes(other) != shapes(first):
            raise UserError(
                f"the weights of {first_name!r} ({config.kind} at {config.place()}) and "
                f"{other_name!r} ({theirs.kind} at {theirs.place()}) do not have the same places, "
                'sizes and options: add their outputs (how="outputs")'
            )
    tensors: dict[str, dict[str, Tensor]] = {}
    for path in first:
        tensors[path] = {}
        parts = {name: dict(parts_of("", adapters[path])) for name, adapters in loaded.items()}
        for where in parts[first_name]:
            weighted = [(parts[name][where], weight) for name, weight in weights.items()]
            for leaf, value in sum_of_weights(weighted, model.get_submodule(path)).items():
                tensors[path][f"{where}.{leaf}".lstrip(".")] = value
    return config, tensors


def sum_of_weights(weighted: list[tuple[Adapter, float]], site: Site) -> dict[str, Tensor]:
    """start + sum of weight x (θ - start) of every parameter and buffer θ of the adapters."""
    start = weighted[0][0].start(site)
    states = [(adapter.state_dict(), weight) for adapter, weight in weighted]
    for leaf, tensor in states[0][0].items():
        if not tensor.is_floating_point() and any(not tensor.equal(s[leaf]) for s, _ in states):
            raise UserError(f"{leaf} of the adapters differ: they have no sum")
    return {
        leaf: (zero := start.get(leaf, 0.0))
        + sum(weight * (state[leaf] - zero) for state, weight in states)
        for leaf in states[0][0]
    }


def config_of(adapters: dict[str, Adapter]) -> AdapterConfig:
    return next(iter(adapters.values())).config


def shapes(adapters: dict[str, Adapter]) -> dict:
    return {
        path: {leaf: tensor.shape for leaf, tensor in adapter.state_dict().items()}
        for path, adapter in adapters.items()
    }


def what_computes(config: AdapterConfig) -> list[tuple]:
    """Of each part what decides what it computes once it is trained."""
    return [
        (
            part.kind,
            part.overrides,
            {
                option.name: getattr(part.options, option.name)
                for option in fields(part.options)
                if not option.metadata.get("training")
            },
        )
        for part in config.parts.values()
    ]


def add_outputs(model: LanguageModel, loaded: Loaded, weights: dict[str, float]) -> Combined:
    """The configuration of the adapters side by side, and their parameters."""
    kinds, options, tensors = set(), {}, {}
    for path in dict.fromkeys(path for adapters in loaded.values() for path in adapters):
        weighted = [
            (loaded[name][path], weight) for name, weight in weights.items() if path in loaded[name]
        ]
        adapters = [adapter for adapter, _ in weighted]
        alike = len({type(adapter) for adapter in adapters}) == 1
        if not alike and not all(isinstance(adapter, LowRank) for adapter in adapters):
            named = " and ".join(sorted(adapter.config.kind for adapter in adapters))
            raise UserError(
                f"the outputs of {named} adapters at {path} have no sum in one adapter; "
                "use(model, [Average(...)]) adds them while it runs"
            )
        if any(isinstance(adapter, Group) for adapter in adapters):
            raise UserError(
                f"the adapter at {path} is a mixture, whose parts cannot be put side by side; "
                "use(model, [Average(...)]) adds them as it runs"
            )
        kind, options[path], tensors[path] = adapters[0].side_by_side(weighted)
        kinds.add(kind)
    if len(kinds) > 1:
        raise UserError(
            f"the sum would be made of {' and '.join(sorted(kinds))}: add adapters of one kind"
        )
    base = next(iter(options.values()))
    overrides = {}
    for path, here in options.items():
        changes = {key: value for key, value in vars(here).items() if value != getattr(base, key)}
        if changes:
            overrides[path.replace(".", r"\.")] = changes
    placed = same_place([config_of(adapters) for adapters in loaded.values()])
    if placed and not overrides:
        part = replace(placed, kind=kinds.pop(), options=base, overrides={}, rate=1.0)
    else:
        part = Part(kinds.pop(), base, tuple(options), "all", overrides)
    return AdapterConfig({"": part}), tensors


def same_place(configs: list[AdapterConfig]) -> Part | None:
    """The part whose sites and layers all of them have, if there is one."""
    first = configs[0].only
    if first and all(
        config.only and (config.only.sites, config.only.layers) == (first.sites, first.layers)
        for config in configs
    ):
        return first
    return None

"""Task arithmetic (Ilharco et al. 2023; Zhang et al. 2023): adapters added, subtracted and scaled into a new one.

    combine(model, {"math": 1.0, "toxic": -0.5}, "better")                       what they add to the model's outputs, exactly
    combine(model, {"seed0": 0.5, "seed1": 0.5}, "mean", how="weights")          their weights, as a model soup

"outputs" puts bottlenecks side by side (the widths add up) and so LoRA's ranks: the new adapter adds w₁ d₁ + w₂ d₂ where the old ones add d₁ and d₂.
"weights" makes start + w₁ (θ₁ - start) + w₂ (θ₂ - start) of every parameter θ, for adapters of one configuration; start is what changes nothing.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from adapters.attach import adapters_named, attach, parts_of, remove, setup, switch
from adapters.base import Adapter
from adapters.compose import Group
from adapters.config import AdapterConfig, Part
from files.errors import UserError, unknown


@torch.no_grad()
def combine(
    model: nn.Module, weights: dict[str, float], name: str, how: str = "outputs"
) -> AdapterConfig:
    """Attach the weighted sum of loaded adapters as a new one called `name`, switched on behind those already on.

    Raises UserError for unknown names and for adapters that have no such sum; the model is then unchanged.
    """
    if how not in ("outputs", "weights"):
        raise unknown("way to combine", how, ["outputs", "weights"])
    if not weights:
        raise UserError("combine needs an adapter or more, with a weight each")
    loaded = {one: adapters_named(model, one) for one in weights}
    config, tensors = (add_outputs if how == "outputs" else add_weights)(model, loaded, weights)
    before = setup(model)
    attach(model, config, name)
    try:
        for path, adapter in adapters_named(model, name).items():
            for leaf, value in tensors[path].items():
                adapter.state_dict(keep_vars=True)[leaf].copy_(value)
    except BaseException:
        remove(model, name)
        switch(model, *before)
        raise
    return config


def add_weights(
    model: nn.Module, loaded: dict[str, dict[str, Adapter]], weights: dict[str, float]
) -> tuple[AdapterConfig, dict[str, dict[str, Tensor]]]:
    """The first one's configuration, and for each path the tensors of the sum."""
    first_name, first = next(iter(loaded.items()))
    config: AdapterConfig = next(iter(first.values())).config
    for other_name, other in loaded.items():
        theirs: AdapterConfig = next(iter(other.values())).config
        shapes = [
            {
                path: {leaf: tensor.shape for leaf, tensor in one.state_dict().items()}
                for path, one in adapters.items()
            }
            for adapters in (first, other)
        ]
        if what_computes(theirs) != what_computes(config) or shapes[0] != shapes[1]:
            raise UserError(
                f"the weights of {first_name!r} ({config.kind} at {config.place()}) and {other_name!r} ({theirs.kind} at {theirs.place()}) "
                'do not have the same places, sizes and options: add their outputs (how="outputs")'
            )
    tensors: dict[str, dict[str, Tensor]] = {}
    for path in first:
        site = model.get_submodule(path)
        tensors[path] = {}
        for where, one in parts_of("", first[path]):
            weighted = [
                (dict(parts_of("", loaded[name][path]))[where], weight)
                for name, weight in weights.items()
            ]
            tensors[path] |= {
                f"{where}.{leaf}".lstrip("."): value
                for leaf, value in type(one).combine(weighted, site).items()
            }
    return config, tensors


def what_computes(config: AdapterConfig) -> list[dict]:
    """The options of each part that decide what it computes once it is trained."""
    of_training = (
        "dropout",
        "init",
        "text",
        "rate",
        "d_start",
        "warmup",
        "final",
        "every",
        "beta1",
        "beta2",
        "orthogonality",
        "sites",
        "layers",
    )
    return [
        {key: value for key, value in part.table().items() if key not in of_training}
        for part in config.parts.values()
    ]


def add_outputs(
    model: nn.Module, loaded: dict[str, dict[str, Adapter]], weights: dict[str, float]
) -> tuple[AdapterConfig, dict[str, dict[str, Tensor]]]:
    """The configuration of the adapters side by side, and for each path its tensors."""
    kinds, options, tensors = set(), {}, {}
    for path in dict.fromkeys(path for adapters in loaded.values() for path in adapters):
        weighted = [
            (loaded[name][path], weight) for name, weight in weights.items() if path in loaded[name]
        ]
        methods = {type(one) for one, _ in weighted}
        if len(methods) > 1 and not all(hasattr(one, "factors") for one, _ in weighted):
            raise UserError(
                f"the outputs of {' and '.join(sorted(one.config.kind for one, _ in weighted))} adapters at {path} have no sum in one adapter; "
                "use(model, [Average(...)]) adds them while it runs"
            )
        if any(isinstance(one, Group) for one, _ in weighted):
            raise UserError(
                f"the adapter at {path} is a mixture, whose parts cannot be put side by side; use(model, [Average(...)]) adds them as it runs"
            )
        kind, options[path], tensors[path] = weighted[0][0].side_by_side(weighted)
        kinds.add(kind)
    if len(kinds) > 1:
        raise UserError(
            f"the sum would be made of {' and '.join(sorted(kinds))}: add adapters of one kind"
        )
    base = next(iter(options.values()))
    overrides = {}
    for path, one in options.items():
        changes = {key: value for key, value in vars(one).items() if value != getattr(base, key)}
        if changes:
            overrides[path.replace(".", r"\.")] = changes
    placed = same_place([next(iter(adapters.values())).config for adapters in loaded.values()])
    if placed and not overrides:
        part = replace(placed, kind=kinds.pop(), options=base, overrides={}, rate=1.0)
    else:
        part = Part(kinds.pop(), base, tuple(options), "all", overrides)
    return AdapterConfig({"": part}), tensors


def same_place(configs: list[AdapterConfig]) -> Part | None:
    """The part whose sites and layers all of them have, if there is one."""
    first = configs[0].only
    same = first and all(
        one.only and (one.only.sites, one.only.layers) == (first.sites, first.layers)
        for one in configs
    )
    return first if same else None

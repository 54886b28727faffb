"""Put adapters into a model's sites, switch them, list their parameters."""

from collections.abc import Iterator
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from adapters.base import Adapter
from adapters.compose import Composition, Group
from adapters.config import METHODS, AdapterConfig, Part, resolve
from adapters.parts import check_options
from adapters.places import all_sites, find_sites, named_sites, words
from files.errors import UserError, unknown


def attach(
    model: nn.Module, preset: str | dict | AdapterConfig, name: str = "default", **changes
) -> AdapterConfig:
    """Attach a new adapter called `name` to every site its configuration names, and switch it on behind those already on.

    `preset` is a name of presets.toml (changed by keywords: size=64, sites=["q"], layers="last 8") or an AdapterConfig.
    The base is frozen; the adapter's parameters are float32 on the device of the weights beside them. Raises UserError for unknown
    presets, sites, options and layers, for a name already taken, and for a method that cannot work at a site; the model is then unchanged.
    """
    config = resolve(preset, **changes).on(model.family)
    if name in adapter_names(model):
        raise UserError(f"the model already has an adapter named {name!r}; give another name")
    if not name.isidentifier() or hasattr(nn.ModuleDict, name) or name == "training":
        raise UserError(
            f"adapter name {name!r} cannot be used: it should be letters, digits and _, no digit first, and no word of torch's own"
        )
    made: dict[str, dict[str, Adapter]] = {}  # path of a site -> its adapters by part
    for part_name, part in config.parts.items():
        for path, adapter in build(model, part).items():
            adapter.part = part_name
            made.setdefault(path, {})[part_name] = adapter
    for parameter_name, parameter in model.named_parameters():
        if ".adapters." not in parameter_name:
            parameter.requires_grad_(False)
    for path, parts in made.items():
        site = model.get_submodule(path)
        adapter = Group(parts) if len(parts) > 1 else next(iter(parts.values()))
        adapter.config = config
        site.adapters[name] = adapter.to(model.device_of(path)).train(model.training)
    on, trained = setup(model)
    on = [
        entry for entry in on if not set(adapter.members) & set(names_in([entry]))
    ]  # members are reached through this one alone
    switch(model, [*on, name], None if trained is None else [*trained, name])
    return config


def build(model: nn.Module, part: Part) -> dict[str, Adapter]:
    """One part's adapters by the path of their site. Raises UserError."""
    method = METHODS[part.kind]
    places = find_sites(model, part)
    for path, site, name, _ in places:
        if site.kind not in method.works_on:
            fitting = [
                one for one, module in named_sites(model).items() if module.kind in method.works_on
            ]
            kinds = " or ".join(words(kind) for kind in method.works_on)
            raise UserError(
                f"{part.kind} works on {kinds}, and {name} ({path}) is {words(site.kind)}; there is: {', '.join(fitting)}"
            )
    layers = max(index for *_, index in places) + 1
    for table in (vars(part.options), *part.overrides.values()):
        for key, value in table.items():
            if isinstance(value, list) and len(value) != layers:
                raise UserError(
                    f"{key} = {value} has {len(value)} values, and the adapter sits in {layers} "
                    "layers"
                )
    options = [part.options_at(path, site, index) for path, _, site, index in places]
    for one in options:
        check_options(one)
    known = [*model.sites, *model.outer_sites]
    for pattern in part.overrides:
        if pattern not in known and not any(
            part.fits(pattern, path, site) for path, _, site, _ in places
        ):
            raise unknown(
                "place in overrides",
                pattern,
                known,
                "it is no site, and no pattern that fits one of the adapter's modules",
            )
    with torch.device("meta") if next(model.parameters()).is_meta else nullcontext():
        adapters = method.build(options, [site for _, site, _, _ in places], model)
    for adapter in adapters:
        adapter.rate = part.rate
    return {path: adapter for (path, *_), adapter in zip(places, adapters, strict=True)}


def adapter_names(model: nn.Module) -> list[str]:
    """Names of all adapters loaded, switched on or off, in the order they came."""
    return list(dict.fromkeys(name for _, site in all_sites(model) for name in site.adapters))


def adapters_named(model: nn.Module, name: str) -> dict[str, Adapter]:
    """The adapters called `name` by the path of their site. Raises UserError when there is none."""
    found = {path: site.adapters[name] for path, site in all_sites(model) if name in site.adapters}
    if not found:
        raise unknown("adapter name", name, adapter_names(model))
    return found


def remove(model: nn.Module, name: str) -> None:
    """Take the adapter out of the model. Raises UserError when there is none of that name, or a fusion that is there is built on it."""
    adapters_named(model, name)
    for other in adapter_names(model):
        if other != name and name in next(iter(adapters_named(model, other).values())).members:
            raise UserError(f"adapter {other!r} is built on {name!r}: remove it first")
    on, trained = setup(model)
    for _, site in all_sites(model):
        if name in site.adapters:
            del site.adapters[name]
    on = [entry for entry in on if name not in names_in([entry])]
    switch(model, on, None if trained is None else [other for other in trained if other != name])


def setup(model: nn.Module) -> tuple[list["str | Composition"], list[str] | None]:
    """What is on, in the order of application, and what of it is trained (None: all), as `use` takes them."""
    return model.adapters_on


def in_order(model: nn.Module) -> list["str | Composition"]:
    """What is on, in the order of application."""
    return list(setup(model)[0])


def names_in(entries: list["str | Composition"]) -> list[str]:
    """The adapters that these entries name, alone or in a composition."""
    return [
        name
        for entry in entries
        for name in (entry.names if isinstance(entry, Composition) else [entry])
    ]


def switch(model: nn.Module, on: list["str | Composition"], train: list[str] | None) -> None:
    """Put these, and nothing else, into the sites' tuples. Raises UserError, with nothing changed, for what cannot be composed."""
    wanted = names_in(on)
    active = {}
    for path, site in all_sites(model):
        entries = [
            entry.at(site) if isinstance(entry, Composition) else site.adapters._modules.get(entry)
            for entry in on
        ]
        active[path] = tuple(entry for entry in entries if entry is not None)
    model.adapters_on = (list(on), train)
    for path, site in all_sites(model):
        site.active = active[path]
        for name, adapter in site.adapters.items():
            adapter.requires_grad_(name in wanted and (train is None or name in train))


def use(model: nn.Module, names: list["str | Composition"], train: list[str] | None = None) -> None:
    """Switch on exactly these adapters, applied in this order; [] leaves the base alone.

    Instead of a name, an entry may be a composition of several: Average("a", "b"), Rows("a", "b", None) (adapters/compose.py). The parameters of
    what is on require gradients, or those of `train` alone. Raises UserError for an unknown name and for what cannot be composed.
    """
    if isinstance(names, str):
        raise UserError(f"use takes a list of names: use(model, [{names!r}])")
    loaded = adapter_names(model)
    wanted = names_in(names)
    for name in [*wanted, *(train or [])]:
        if name not in loaded:
            raise unknown("adapter name", name, loaded)
    for name in names:
        if isinstance(name, str) and names.count(name) > 1:
            raise UserError(f"adapter {name!r} is named twice")
    for name in train or []:
        if name not in wanted:
            raise UserError(
                f"adapter {name!r} is to be trained and is not on; there is on: {', '.join(wanted) or 'none'}"
            )
    switch(model, names, train)


def in_use(model: nn.Module) -> Iterator[tuple[str, str, Adapter]]:
    """(path of the site, name, adapter) of all that is on, the parts of mixtures one by one."""
    for path, site in all_sites(model):
        on = [
            one
            for entry in site.active
            for one in (entry.members if isinstance(entry, Composition) else [entry])
        ]
        for name, adapter in site.adapters.items():
            if any(adapter is one for one in on):
                yield from (
                    (f"{path}.adapters.{prefix}", name, one)
                    for prefix, one in parts_of(name, adapter)
                )


def parts_of(name: str, adapter: Adapter) -> list[tuple[str, Adapter]]:
    """(path behind the site's `adapters`, adapter) of the parts of a mixture, or of the adapter itself."""
    return (
        [(f"{name}.parts.{part}", one) for part, one in adapter.parts.items()]
        if isinstance(adapter, Group)
        else [(name, adapter)]
    )


def named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of the adapters that are switched on and trained, by their path; what several sites share, once."""
    return once(
        {
            f"{path}.{leaf}": parameter
            for path, _, adapter in in_use(model)
            for leaf, parameter in adapter.named_parameters()
            if parameter.requires_grad
        }
    )


def named_buffers(model: nn.Module) -> dict[str, Tensor]:
    """What else the adapters that are on carry from step to step, by its path."""
    return once(
        {
            f"{path}.{leaf}": buffer
            for path, _, adapter in in_use(model)
            for leaf, buffer in adapter.named_buffers()
        }
    )


def once(named: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the tensors that are there already under another name."""
    seen: set[int] = set()
    return {
        name: tensor
        for name, tensor in named.items()
        if not (id(tensor) in seen or seen.add(id(tensor)))
    }


def parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of the adapters that are switched on and trained: what an optimizer gets."""
    return list(named_parameters(model).values())


def rates(model: nn.Module) -> dict[str, float]:
    """For each of `named_parameters`, its learning rate as a multiple of the run's."""
    found = {
        f"{path}.{leaf}": adapter.rate_of(leaf)
        for path, _, adapter in in_use(model)
        for leaf, _ in adapter.named_parameters()
    }
    return {name: found[name] for name in named_parameters(model)}


def in_training(model: nn.Module) -> Iterator[tuple[str, Adapter]]:
    """(name, adapter) of all that is on and has something to train."""
    return (
        (name, adapter)
        for _, name, adapter in in_use(model)
        if any(parameter.requires_grad for parameter in adapter.parameters())
    )


def penalty(model: nn.Module) -> Tensor | None:
    """What the adapters that are on add to the loss of a training step, if anything: the mean of their penalties."""
    found = [one for _, adapter in in_training(model) if (one := adapter.penalty()) is not None]
    return torch.stack([one.to(found[0].device) for one in found]).mean() if found else None


def after_step(model: nn.Module, step: int, total: int) -> None:
    """Let the methods that change with time do so, after `step` of `total` training steps."""
    by_method: dict[tuple[str, str, type], list[Adapter]] = {}
    for name, adapter in in_training(model):
        by_method.setdefault((name, adapter.part, type(adapter)), []).append(adapter)
    for (_, _, method), adapters in by_method.items():
        method.after_step(adapters, step, total)

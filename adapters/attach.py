"""Put adapters into a model's sites and switch them."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn

from adapters.base import Adapter
from adapters.compose import Composition, Group
from adapters.config import METHODS, AdapterConfig, Part, resolve
from adapters.parts import check_options
from adapters.places import all_sites, find_sites, named_sites, with_article
from files.errors import UserError, unknown
from model.language import LanguageModel
from model.sites import base_parameters

Entry = str | Composition  # what can be switched on: an adapter's name, or several composed


def attach(
    model: LanguageModel, preset: str | dict | AdapterConfig, name: str = "default", **changes
) -> AdapterConfig:
    """Attach a new adapter to every site its configuration names, and switch it on after those on.

    `preset` is a name of presets.toml, changed by keywords (size=64, sites=["q"], layers="last 8"),
    a complete table or an AdapterConfig. The base is frozen; the adapter's parameters are float32
    on the device of the weights beside them. Raises UserError for unknown presets, sites, options
    and layers, for a name already taken, and for a method that cannot work at a site; the model is
    then unchanged.
    """
    config = resolve(preset, **changes).on(model.family)
    if name in adapter_names(model):
        raise UserError(f"the model already has an adapter named {name!r}; give another name")
    if not name.isidentifier() or hasattr(nn.ModuleDict, name) or name == "training":
        raise UserError(
            f"adapter name {name!r} cannot be used: it should be letters, digits and _, no digit "
            "first, and no name of torch's own"
        )
    new: dict[str, dict[str, Adapter]] = {}  # path of a site -> its adapters by part
    for part_name, part in config.parts.items():
        for path, adapter in build(model, part).items():
            adapter.part = part_name
            new.setdefault(path, {})[part_name] = adapter
    for parameter in base_parameters(model).values():
        parameter.requires_grad_(False)
    for path, parts in new.items():
        site = model.get_submodule(path)
        adapter = Group(parts) if len(parts) > 1 else next(iter(parts.values()))
        adapter.config = config
        site.adapters[name] = adapter.to(model.device_of(path)).train(model.training)
    on, trained = setup(model)
    # The members of a fusion are reached through it alone.
    on = [entry for entry in on if not set(adapter.members) & set(names_in([entry]))]
    switch(model, [*on, name], None if trained is None else [*trained, name])
    return config


def build(model: LanguageModel, part: Part) -> dict[str, Adapter]:
    """One part's adapters by the path of their site. Raises UserError."""
    method = METHODS[part.kind]
    places = find_sites(model, part)
    for path, site, name, _ in places:
        if site.kind not in method.works_on:
            known = named_sites(model).items()
            fitting = [other for other, module in known if module.kind in method.works_on]
            kinds = " or ".join(with_article(kind) for kind in method.works_on)
            raise UserError(
                f"{part.kind} works on {kinds}, and {name} ({path}) is {with_article(site.kind)}; "
                f"choose from {', '.join(fitting)}"
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
    for o in options:
        check_options(o)
    known = [*model.sites, *model.outer_sites]
    for pattern in part.overrides:
        fits = any(part.fits(pattern, path, site) for path, _, site, _ in places)
        if pattern not in known and not fits:
            hint = "it is no site, and no pattern that fits one of the adapter's modules"
            raise unknown("place in overrides", pattern, known, hint)
    with torch.device("meta") if model.input_embedding.weight.is_meta else nullcontext():
        adapters = method.build(options, [site for _, site, _, _ in places], model)
    for adapter in adapters:
        adapter.rate = part.rate
    return {path: adapter for (path, *_), adapter in zip(places, adapters, strict=True)}


def adapter_names(model: LanguageModel) -> list[str]:
    """Names of all adapters loaded, switched on or off, in the order they came."""
    return list(dict.fromkeys(name for _, site in all_sites(model) for name in site.adapters))


def adapters_named(model: LanguageModel, name: str) -> dict[str, Adapter]:
    """The adapters of this name by the path of their site. Raises UserError if there is none."""
    named = {path: site.adapters[name] for path, site in all_sites(model) if name in site.adapters}
    if not named:
        raise unknown("adapter name", name, adapter_names(model))
    return named


def remove(model: LanguageModel, name: str) -> None:
    """Take the adapter out of the model.

    Raises UserError if there is none of that name, and if a fusion is built on it.
    """
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


def setup(model: LanguageModel) -> tuple[list[Entry], list[str] | None]:
    """(what is on, in order; the names that are trained, None: all), as `use` takes them."""
    return model.adapters_on


def in_order(model: LanguageModel) -> list[Entry]:
    """What is on, in the order of application."""
    return list(setup(model)[0])


def names_in(entries: list[Entry]) -> list[str]:
    """The adapters that these entries name, in a composition or not."""
    lists = [entry.names if isinstance(entry, Composition) else [entry] for entry in entries]
    return [name for names in lists for name in names]


def switch(model: LanguageModel, on: list[Entry], train: list[str] | None) -> None:
    """Put these, and nothing else, into the sites' tuples.

    Raises UserError, with nothing changed, for what cannot be composed.
    """
    active = {}
    for path, site in all_sites(model):
        entries = [
            entry.at(site) if isinstance(entry, Composition) else site.adapters._modules.get(entry)
            for entry in on
        ]
        active[path] = tuple(entry for entry in entries if entry is not None)
    model.adapters_on = (list(on), train)
    wanted = names_in(on)
    for path, site in all_sites(model):
        site.active = active[path]
        for name, adapter in site.adapters.items():
            adapter.requires_grad_(name in wanted and (train is None or name in train))


@contextmanager
def unchanged_on_error(model: LanguageModel) -> Iterator[None]:
    """Within this block, an error removes what was attached and switches back to what was on."""
    before, there = setup(model), adapter_names(model)
    try:
        yield
    except BaseException:
        for name in reversed(adapter_names(model)):
            if name not in there:
                remove(model, name)
        switch(model, *before)
        raise


def use(model: LanguageModel, names: list[Entry], train: list[str] | None = None) -> None:
    """Switch on exactly these adapters, applied in this order; [] leaves the base alone.

    An entry may be a composition of several: Average("a", "b"), Rows("a", "b", None)
    (compose.py, rows.py). The parameters of what is on require gradients, or those of `train` only.
    Raises UserError for an unknown name and for what cannot be composed.
    """
    if isinstance(names, str):
        raise UserError(f"use takes a list of names: use(model, [{names!r}])")
    loaded, wanted = adapter_names(model), names_in(names)
    for name in [*wanted, *(train or [])]:
        if name not in loaded:
            raise unknown("adapter name", name, loaded)
    for name in names:
        if isinstance(name, str) and names.count(name) > 1:
            raise UserError(f"adapter {name!r} is named twice")
    for name in train or []:
        if name not in wanted:
            raise UserError(
                f"adapter {name!r} is to be trained and is not on; "
                f"on are: {', '.join(wanted) or 'none'}"
            )
    switch(model, names, train)

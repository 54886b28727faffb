"""Put adapters into a model's sites, switch them, list their parameters."""

from collections.abc import Iterator

from torch import nn

from adapters.base import Adapter
from adapters.config import METHODS, AdapterConfig, layer_numbers, resolve
from model.errors import UserError, unknown
from model.parts import Linear, Site


def attach(model: nn.Module, preset: str | AdapterConfig, name: str = "default", **changes) -> AdapterConfig:
    """Attach a new adapter called `name` to every site its configuration names, and switch it on behind those already on.

    `preset` is a name of presets.toml (changed by keywords: size=64, sites=["q"], layers="last 8") or an AdapterConfig.
    The base is frozen; the adapter's parameters are float32 on the device of the weights beside them. Raises UserError for unknown
    presets, sites, options and layers, for a name already taken, and for a method that cannot work at a site.
    """
    if isinstance(preset, AdapterConfig) and changes:
        raise UserError(f"an AdapterConfig is complete and takes no changes ({', '.join(changes)}); give a preset's name with them")
    config = (preset if isinstance(preset, AdapterConfig) else resolve(preset, **changes)).on(model.family)
    if name in adapter_names(model):
        raise UserError(f"the model already has an adapter named {name!r}; give another name")
    if not name.isidentifier() or hasattr(nn.ModuleDict, name) or name == "training":
        raise UserError(f"adapter name {name!r} cannot be used: it should be letters, digits and _, no digit first, and no word of torch's own")
    for parameter_name, parameter in model.named_parameters():
        if ".adapters." not in parameter_name:
            parameter.requires_grad_(False)
    method = METHODS[config.kind]
    places = [find_site(model, layer, site) for layer in layer_numbers(config.layers, len(model.blocks)) for site in config.sites]
    for path, site in places:
        if [other for other, _ in places].count(path) > 1:
            raise UserError(f"{path} is named twice by sites {list(config.sites)} and layers {config.layers}")
        if method.linear_only and not isinstance(site, Linear):
            raise UserError(f"{config.kind} works on Linears, and {path} is a whole sub-layer; there is: {', '.join(linear_sites(model))}")
    made = [(site, method(config.options, site)) for _, site in places]
    for site, adapter in made:
        adapter.config = config
        anchor = next((p for p in site.parameters(recurse=False)), next(model.parameters()))
        site.adapters[name] = adapter.to(anchor.device).train(model.training)
        site.active += (adapter,)
    return config


def find_site(model: nn.Module, layer: int, name: str) -> tuple[str, Site]:
    """The site `name` of one block, with its path in the model. A site's name or its module's own (q_proj) will do."""
    for site, attribute in model.sites.items():
        if name in (site, attribute, attribute.rpartition(".")[2]):
            block = model.blocks[layer]
            path = next(path for path, module in model.named_modules() if module is block)
            return f"{path}.{attribute}", block.get_submodule(attribute)
    raise unknown(f"site of {model.family}", name, model.sites)


def linear_sites(model: nn.Module) -> list[str]:
    """The sites that are single Linears."""
    return [site for site, attribute in model.sites.items() if isinstance(model.blocks[0].get_submodule(attribute), Linear)]


def all_sites(model: nn.Module) -> Iterator[tuple[str, Site]]:
    """(path, site) of every site of the model, adapters or not."""
    return ((path, module) for path, module in model.named_modules() if isinstance(module, Site))


def adapter_names(model: nn.Module) -> list[str]:
    """Names of all adapters loaded, switched on or off, in the order they came."""
    return list(dict.fromkeys(name for _, site in all_sites(model) for name in site.adapters))


def use(model: nn.Module, names: list[str]) -> None:
    """Switch on exactly these adapters, applied in this order; [] leaves the base alone. Raises UserError for an unknown name."""
    loaded = adapter_names(model)
    for name in names:
        if name not in loaded:
            raise unknown("adapter name", name, loaded)
    for _, site in all_sites(model):
        site.active = tuple(site.adapters[name] for name in names if name in site.adapters)


def named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of the adapters that are switched on, by their path."""
    return {
        f"{path}.adapters.{name}.{leaf}": parameter
        for path, site in all_sites(model)
        for name, adapter in site.adapters.items()
        if isinstance(adapter, Adapter) and adapter in site.active
        for leaf, parameter in adapter.named_parameters()
    }


def parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of the adapters that are switched on: what an optimizer gets."""
    return list(named_parameters(model).values())

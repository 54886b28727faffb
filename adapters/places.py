"""Where in a model a configuration means: sites by name, by their module's name, or by path."""

from collections.abc import Iterator

from torch import nn

from adapters.config import Part, layer_numbers
from files.errors import UserError, unknown
from model.sites import Linear, Site


def all_sites(model: nn.Module) -> Iterator[tuple[str, Site]]:
    """(path, site) of every site of the model, adapters or not."""
    return ((path, module) for path, module in model.named_modules() if isinstance(module, Site))


def find_sites(model: nn.Module, part: Part) -> list[tuple[str, Site, str, int]]:
    """(path, site, its name, index among the layers chosen) of every place a part names, layer by layer. Raises UserError.

    A site goes by its name, its module's (q_proj), or its whole path (model.layers.0.self_attn.q_proj), which layers do not apply to.
    """
    numbers = layer_numbers(part.layers, len(model.blocks))
    inner, outer = [], []
    for name in part.sites:
        found = next(
            (
                site
                for site, attribute in model.sites.items()
                if name in (site, attribute, attribute.rpartition(".")[2])
            ),
            None,
        )
        if found:
            inner.append((found, model.sites[found]))
        else:
            outer.append(outer_site(model, name))
    places = [
        (f"{model.blocks_at}.{layer}.{attribute}", site, index)
        for index, layer in enumerate(numbers)
        for site, attribute in inner
    ]
    places += [(path, site, 0) for path, site in outer]
    for path, *_ in places:
        if [other for other, *_ in places].count(path) > 1:
            raise UserError(
                f"{path} is named twice by sites {list(part.sites)} and layers {part.layers}"
            )
    return [(path, model.get_submodule(path), site, index) for path, site, index in places]


def outer_site(model: nn.Module, name: str) -> tuple[str, str]:
    """(path, name) of a site outside of the blocks, or of any site by its whole path. Raises UserError."""
    for site, path in model.outer_sites.items():
        if name in (site, path, path.rpartition(".")[2]):
            if not isinstance(submodule(model, path), Site):
                raise UserError(
                    f"this model has no {site} ({path}): name the others, sites = [...]"
                )
            return path, site
    if isinstance(submodule(model, name), Site):
        return name, name
    raise unknown(f"site of {model.family}", name, [*model.sites, *model.outer_sites])


def submodule(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def named_sites(model: nn.Module) -> dict[str, Site]:
    """The sites of the first block and those outside of the blocks, by the names of the family's table."""
    inner = {
        site: model.blocks[0].get_submodule(attribute) for site, attribute in model.sites.items()
    }
    outer = {site: submodule(model, path) for site, path in model.outer_sites.items()}
    return {site: module for site, module in (inner | outer).items() if isinstance(module, Site)}


def linear_sites(model: nn.Module) -> list[str]:
    """The sites of a block that are single Linears."""
    return [
        site
        for site, attribute in model.sites.items()
        if isinstance(model.blocks[0].get_submodule(attribute), Linear)
    ]


def words(kind: str) -> str:
    """A kind of site with its article."""
    return (
        kind
        if kind == "keys and values"
        else f"an {kind}"
        if kind[0] in "aeiou"
        else f"a whole {kind}"
        if kind == "sub-layer"
        else f"a {kind}"
    )

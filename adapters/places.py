"""Where in a model a configuration means: sites by name, by their module's name, or by path."""

import re

from torch import nn

from adapters.parts import Part, layer_numbers
from files.errors import UserError, unknown
from model.language import LanguageModel
from model.sites import Site


def all_sites(model: LanguageModel) -> list[tuple[str, Site]]:
    """(path, site) of every site of the model, adapters or not."""
    return [(path, module) for path, module in model.named_modules() if isinstance(module, Site)]


def find_sites(model: LanguageModel, part: Part) -> list[tuple[str, Site, str, int]]:
    """(path, site, its name, index among the layers chosen) of each place, layer by layer.

    A site goes by its name (q), its module's name (q_proj), or its whole path
    (model.layers.0.self_attn.q_proj), which layers do not apply to. Raises UserError.
    """
    numbers = layer_numbers(part.layers, len(model.blocks))
    inner, outer = [], []
    for name in part.sites:
        known = [s for s, at in model.sites.items() if name in (s, at, at.rpartition(".")[2])]
        if known:
            inner.append((known[0], model.sites[known[0]]))
        else:
            outer.append(outer_site(model, name))
    places = [
        (f"{model.blocks_at}.{layer}.{attribute}", site, index)
        for index, layer in enumerate(numbers)
        for site, attribute in inner
    ]
    places += [(path, site, 0) for path, site in outer]
    paths = [path for path, *_ in places]
    for path in paths:
        if paths.count(path) > 1:
            raise UserError(
                f"{path} is named twice by sites {list(part.sites)} and layers {part.layers}"
            )
    return [(path, model.get_submodule(path), site, index) for path, site, index in places]


def outer_site(model: LanguageModel, name: str) -> tuple[str, str]:
    """(path, name) of a site outside the blocks, or of any site by its path. Raises UserError."""
    for site, path in model.outer_sites.items():
        if name in (site, path, path.rpartition(".")[2]):
            if isinstance(submodule(model, path), Site):
                return path, site
            raise UserError(f"this model has no {site} ({path}): name the others, sites = [...]")
    if isinstance(submodule(model, name), Site):
        return name, name
    raise unknown(f"site of {model.family}", name, [*model.sites, *model.outer_sites])


def site_of(model: LanguageModel, path: str) -> tuple[str, int | None]:
    """(name, layer) of the site at this path, which names itself if it has no name.

    The layer is None outside of the blocks.
    """
    match = re.fullmatch(rf"{re.escape(model.blocks_at)}\.(\d+)\.(.+)", path)
    sites, at = (model.sites, match[2]) if match else (model.outer_sites, path)
    name = next((site for site, attribute in sites.items() if attribute == at), at)
    return name, int(match[1]) if match else None


def submodule(model: LanguageModel, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def named_sites(model: LanguageModel) -> dict[str, Site]:
    """The sites of the first block and those outside of the blocks, by name."""
    sites = {name: submodule(model.blocks[0], at) for name, at in model.sites.items()}
    sites |= {name: submodule(model, path) for name, path in model.outer_sites.items()}
    return {name: site for name, site in sites.items() if isinstance(site, Site)}


def with_article(kind: str) -> str:
    """A kind of site with its article, for messages."""
    if kind == "keys and values":
        return kind
    if kind == "sub-layer":
        return "a whole sub-layer"
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"

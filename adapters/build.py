"""Make the adapters of a configuration, one for each of its places."""

from contextlib import nullcontext

import torch

from adapters.base import Adapter
from adapters.config import METHODS, Part
from adapters.parts import check_options
from adapters.places import find_sites, named_sites, with_article
from files.errors import UserError, unknown
from model.language import LanguageModel


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
    for one in options:
        check_options(one)
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

"""Where an adapter sits, in words and in the drawing of a block."""

import re

from torch import nn

from adapters.attach import adapters_named, once, parts_of
from adapters.config import AdapterConfig


def site_of(model: nn.Module, path: str) -> tuple[str, int | None]:
    """(name, layer) of the site at this path of the model; the layer is None outside of the blocks."""
    inside = re.fullmatch(rf"{re.escape(model.blocks_at)}\.(\d+)\.(.+)", path)
    if inside:
        return next(
            (site for site, attribute in model.sites.items() if attribute == inside[2]), inside[2]
        ), int(inside[1])
    return next(
        (site for site, attribute in model.outer_sites.items() if attribute == path), path
    ), None


def marked_sites(model: nn.Module, name: str = "default") -> set[str]:
    """The names of the sites that hold an adapter in any layer."""
    return {site_of(model, path)[0] for path in adapters_named(model, name)}


def layers_text(layers: list[int], count: int) -> str:
    """[0, 1, 2] of 3 -> "all 3"."""
    if len(layers) == count:
        return f"all {count}"
    if layers == list(range(layers[0], layers[-1] + 1)) and len(layers) > 2:
        return f"{layers[0]} to {layers[-1]}"
    return ", ".join(map(str, layers))


def draw(model: nn.Module, name: str = "default") -> str:
    """The block's drawing with the adapter's sites in {braces}, and a row for each kind of place: layers, tensors, parameters."""
    adapters = adapters_named(model, name)
    config: AdapterConfig = next(iter(adapters.values())).config
    marked = marked_sites(model, name)
    lines = [
        re.sub(
            r"\[(\w+)\]",
            lambda match: f"{{{match[1]}}}" if match[1] in marked else match[0],
            model.picture,
        ),
        "",
    ]
    outside = [site for site in model.outer_sites if site in marked]
    lines += [
        f"{{ }} holds the adapter{'; outside of the blocks: ' + ', '.join(outside) if outside else ''}",
        "",
    ]
    rows: dict[tuple, list[int | None]] = {}
    for path, adapter in adapters.items():
        site, layer = site_of(model, path)
        for _, one in parts_of("", adapter):
            tensors = once(dict(one.named_parameters()))
            shapes = ", ".join(
                f"{leaf} {list(parameter.shape)}" for leaf, parameter in tensors.items()
            )
            kind = config.parts[one.part].kind
            rows.setdefault(
                (site, kind, shapes, sum(parameter.numel() for parameter in tensors.values())), []
            ).append(layer)
    lines.append(f"  {'site':12}{'layers':14}{'method':14}{'parameters of one':>18}  tensors")
    for (site, kind, shapes, total), layers in rows.items():
        where = "" if layers[0] is None else layers_text(sorted(layers), len(model.blocks))
        lines.append(f"  {site:12}{where:14}{kind:14}{total:18,}  {shapes}")
    return "\n".join(lines)


def trained(model: nn.Module, name: str = "default") -> int:
    """Parameters of the adapter; what several sites share counts once."""
    seen = once(
        {
            f"{path}.{leaf}": parameter
            for path, adapter in adapters_named(model, name).items()
            for leaf, parameter in adapter.named_parameters()
        }
    )
    return sum(parameter.numel() for parameter in seen.values())

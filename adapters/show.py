"""Where an adapter sits: in the drawing of a block, and as a table."""

import re
import sys

from adapters.attach import adapters_named
from adapters.base import Adapter
from adapters.in_use import parts_of
from adapters.places import site_of
from model.language import LanguageModel


def marked_sites(model: LanguageModel, name: str = "default") -> set[str]:
    """The names of the sites that hold an adapter in any layer."""
    return {site_of(model, path)[0] for path in adapters_named(model, name)}


def layers_text(layers: list[int], count: int) -> str:
    """[0, 1, 2] of 3 -> "all 3"."""
    if len(layers) == count:
        return f"all {count}"
    if layers == list(range(layers[0], layers[-1] + 1)) and len(layers) > 2:
        return f"{layers[0]} to {layers[-1]}"
    return ", ".join(map(str, layers))


def picture_of(adapter: Adapter) -> str:
    """The picture in the docstring of the method's file; of several, that of its options.

    "" if the file has none.
    """
    text = sys.modules[type(adapter).__module__].__doc__ or ""
    blocks = re.findall(r"(?:^ {4}.*\n?)+", text, re.M)

    def fits(block: str) -> int:  # -1: drawn for other options
        options = re.findall(r'(\w+) = "(\w+)"', block)
        return len(options) if all(getattr(adapter.options, k, v) == v for k, v in options) else -1

    return max(blocks, key=fits, default="").rstrip()


def draw(model: LanguageModel, name: str = "default") -> str:
    """The block's drawing with the adapter's sites in {braces}, and a row for each kind of place.

    A row has layers, method, parameters and tensors. Below: the picture of each method.
    """
    adapters = adapters_named(model, name)
    config = next(iter(adapters.values())).config
    marked = marked_sites(model, name)
    drawing = model.picture
    for site in marked:
        drawing = drawing.replace(f"[{site}]", f"{{{site}}}")
    outside = ", ".join(site for site in model.outer_sites if site in marked)
    also = f"; outside of the blocks: {outside}" if outside else ""
    lines = [drawing, "", f"{{ }} holds the adapter{also}", ""]
    rows: dict[tuple, list[int | None]] = {}
    pictures: dict[str, None] = {}
    for path, adapter in adapters.items():
        site, layer = site_of(model, path)
        for _, part in parts_of("", adapter):
            tensors = dict(part.named_parameters())
            shapes = ", ".join(f"{leaf} {list(tensor.shape)}" for leaf, tensor in tensors.items())
            size = sum(tensor.numel() for tensor in tensors.values())
            row = (site, config.parts[part.part].kind, shapes, size)
            rows.setdefault(row, []).append(layer)
            if picture := picture_of(part):
                pictures[f"{config.parts[part.part].kind}:\n{picture}"] = None
    lines.append(f"  {'site':12}{'layers':14}{'method':14}{'parameters of one':>18}  tensors")
    for (site, kind, shapes, size), layers in rows.items():
        where = "" if layers[0] is None else layers_text(sorted(layers), len(model.blocks))
        lines.append(f"  {site:12}{where:14}{kind:14}{size:18,}  {shapes}")
    return "\n\n".join(["\n".join(lines), *pictures])


def trained(model: LanguageModel, name: str = "default") -> int:
    """The count of the adapter's parameters; what several sites share counts once."""
    adapters = adapters_named(model, name).values()
    sizes = {id(p): p.numel() for adapter in adapters for p in adapter.parameters()}
    return sum(sizes.values())

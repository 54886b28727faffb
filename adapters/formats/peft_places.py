"""Which modules PEFT means by target_modules and its relatives, and the same places by our sites and layers (rules of PEFT 0.21).

["q_proj", "mlp.down_proj"]        every module of that path, or whose path ends with a dot and that
"model.*(q|v)_proj"                every module whose whole path the expression fits
"""

import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from adapters.places import all_sites
from files.errors import UserError, unknown
from model.sites import Site

MODULES = (
    "Linear",
    "embedding",
    "norm",
)  # kinds of site that are modules of their own in other programs


def peft_modules(model: nn.Module) -> dict[str, Site]:
    """The modules that PEFT can replace, by path."""
    return {path: site for path, site in all_sites(model) if site.kind in MODULES}


def fits(targets: str | list[str], path: str) -> bool:
    """Whether an expression, or a list of names, means the module at this path. Raises UserError for an expression that is none."""
    if isinstance(targets, list):
        return path in targets or any(path.endswith(f".{target}") for target in targets)
    return whole_match(targets, path)


def whole_match(pattern: str, path: str) -> bool:
    try:
        return re.fullmatch(pattern, path) is not None
    except (re.error, OverflowError, RecursionError) as error:
        raise UserError(f"{pattern!r:.100} is not a regular expression ({error})") from None


def targeted(
    model: nn.Module,
    targets: str | list[str],
    layers: int | list[int] | None = None,
    pattern: str | list[str] | None = None,
) -> list[str]:
    """The paths that target_modules, layers_to_transform and layers_pattern mean together."""
    modules = peft_modules(model)
    if isinstance(targets, str) and targets.lower() == "all-linear":
        return [
            path
            for path, site in modules.items()
            if site.kind == "Linear" and path != model.outer_sites["head"]
        ]
    found = [path for path in modules if fits(targets, path)]
    if layers is None or layers == []:
        return found
    numbers = [layers] if isinstance(layers, int) else layers
    # PEFT looks at the layer of a module only where its path is not given whole
    return [path for path in found if path in targets or layer_in(path, pattern) in numbers]


@dataclass
class Absent:
    """Names of a field that the model lacks: passed over, as PEFT does, if no tensor needs them."""

    field: str  # target_modules, modules_to_save, layers_to_transform
    names: list

    def unknown(self, model: nn.Module) -> UserError:
        """The error for the first of them, with the nearest name of the model."""
        if self.field == "layers_to_transform":
            layers = f"the model has layers 0 to {len(model.blocks) - 1}"
            return UserError(f"layers_to_transform names layer {self.names[0]!r:.100}: {layers}")
        modules = peft_modules(model)
        what = "target module" if self.field == "target_modules" else "module to save"
        return unknown(
            f"{what} of a {model.family} model",
            self.names[0],
            dict.fromkeys(tail for path in modules for tail in tails(path)),
            listed=f"there is: {', '.join(leaves(modules))}",
        )


def absent_targets(model: nn.Module, targets: str | list[str]) -> list[str]:
    """The targets that mean none of the model's modules."""
    modules = peft_modules(model)
    if isinstance(targets, str):
        some = targets.lower() == "all-linear" or any(fits(targets, path) for path in modules)
        return [] if some else [targets]
    return [target for target in targets if not any(fits([target], path) for path in modules)]


def absent_layers(model: nn.Module, layers: int | list[int] | None) -> list[int]:
    """The numbers in layers_to_transform that are no layers of the model."""
    numbers = [] if layers is None else [layers] if isinstance(layers, int) else layers
    return [number for number in numbers if not 0 <= number < len(model.blocks)]


def pass_over(
    model: nn.Module, absent: list[Absent], keys: Iterable[str], prefixes: Iterable[str], where: str
) -> None:
    """Warn of names that the model lacks, where every key of the file has one of the prefixes.

    Raises UserError otherwise, naming the nearest module.
    """
    absent, prefixes = [one for one in absent if one.names], tuple(prefixes)
    if not absent:
        return
    left = next((key for key in keys if not key.startswith(prefixes)), None)
    if left is not None:
        without = f"Tensor {left!r:.200} of the file has no place without it"
        raise UserError(f"{where}: {absent[0].unknown(model)}. {without}")
    said = [f"{one.field} names {', '.join(map(repr, one.names)):.200}" for one in absent]
    lacks = f"{' and '.join(said)}, which this {model.family} model does not have"
    warnings.warn(
        f"{where}: {lacks}; every tensor of the file has its place, so they are passed "
        "over, as PEFT does",
        stacklevel=2,
    )


def layer_in(path: str, pattern: str | list[str] | None) -> int | None:
    """The number behind the first of these names (of any name, without them) in a module's path."""
    names = ([pattern] if isinstance(pattern, str) else pattern) if pattern else [r"[^.]*"]
    for name in names:
        try:
            match = re.match(rf"(?:^|.*?\.){name}\.(?P<layer>\d+)\.", path)
        except (re.error, OverflowError, RecursionError) as error:
            raise UserError(
                f"layers_pattern = {name!r:.100} is not a regular expression ({error})"
            ) from None
        if match:
            return int(match["layer"])
    return None


def fitting(patterns: dict, path: str) -> list:
    """The values of all patterns that fit the end of the path (rank_pattern, alpha_pattern), in their order: the first one counts."""
    return [
        value for pattern, value in patterns.items() if whole_match(rf"(.*\.)?({pattern})", path)
    ]


def saved(model: nn.Module, names: Iterable[str]) -> list[str]:
    """The paths that modules_to_save means: what ends with a name, and what lies in that."""
    names = tuple(names)
    return [path for path in peft_modules(model) if any(end.endswith(names) for end in ends(path))]


def absent_saved(model: nn.Module, names: Iterable[str]) -> list[str]:
    """The names in modules_to_save that mean none of the model's modules."""
    return [name for name in names if not saved(model, [name])]


def ends(path: str) -> list[str]:
    """model, model.layers, ...: the path of a module and those of the modules it lies in."""
    parts = path.split(".")
    return [".".join(parts[: n + 1]) for n in range(len(parts))]


def with_bias(model: nn.Module) -> list[str]:
    """The paths of all modules with a bias."""
    return [path for path, site in peft_modules(model).items() if site.bias is not None]


def tails(path: str) -> list[str]:
    """mlp.up_proj, up_proj: the ways to name a module by the end of its path, longest first."""
    parts = path.split(".")
    return [".".join(parts[n:]) for n in range(len(parts))]


def leaves(paths: Iterable[str]) -> list[str]:
    """The last names of these paths, each once."""
    return list(dict.fromkeys(path.rpartition(".")[2] for path in paths))


def placement(model: nn.Module, paths: list[str]) -> dict:
    """`sites` and `layers` of these places: names and layers where they are a product of both, otherwise whole paths."""
    inner, outer = split(model, paths)
    names = [site for site in model.sites if any(name == site for name, _ in inner.values())]
    layers = sorted({layer for _, layer in inner.values()})
    if len(inner) != len(names) * len(layers):
        return {"sites": paths, "layers": "all"}
    return {
        "sites": names + list(outer.values()),
        "layers": layers if inner and len(layers) < len(model.blocks) else "all",
    }


def split(
    model: nn.Module, paths: Iterable[str]
) -> tuple[dict[str, tuple[str, int]], dict[str, str]]:
    """(path -> site and layer) of those in the blocks, (path -> site, or the path itself where it has no name) of all others."""
    inner, outer = {}, {}
    names = {attribute: site for site, attribute in model.sites.items()}
    for path in paths:
        match = re.fullmatch(rf"{re.escape(model.blocks_at)}\.(\d+)\.(.+)", path)
        if match and match[2] in names:
            inner[path] = names[match[2]], int(match[1])
        else:
            outer[path] = next((site for site, at in model.outer_sites.items() if at == path), path)
    return inner, outer


def overrides(model: nn.Module, changes: dict[str, dict], sites: list[str]) -> dict[str, dict]:
    """The options that differ at some of the places (path -> those options), by site where it is one of `sites` and all its places agree,
    otherwise by path."""
    inner, outer = split(model, changes)
    found: dict[str, dict] = {}
    for path, site in ({path: site for path, (site, _) in inner.items()} | outer).items():
        same = (
            [changes[other] for other, (name, _) in inner.items() if name == site]
            if path in inner
            else []
        )
        uniform = site in sites and path in inner and all(one == changes[path] for one in same)
        if changes[path]:
            found[site if uniform else re.escape(path)] = changes[path]
    return found


def as_targets(model: nn.Module, paths: list[str], layers: bool = True) -> dict:
    """target_modules for these places, with layers_to_transform (where the method has it) if that says it shorter than whole paths do."""
    wanted, names = set(paths), leaves(paths)
    if set(targeted(model, names)) == wanted:
        return {"target_modules": names}
    numbers = sorted({layer for _, layer in split(model, paths)[0].values()})
    pattern = model.blocks_at.rpartition(".")[2]
    if layers and numbers and set(targeted(model, names, numbers, pattern)) == wanted:
        return {"target_modules": names, "layers_to_transform": numbers, "layers_pattern": pattern}
    return {"target_modules": paths}

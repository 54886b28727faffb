"""Which modules PEFT means by target_modules and its relatives (rules of PEFT 0.21), as our places.

["q_proj", "mlp.down_proj"]        every module of that path, or whose path ends with a dot and that
"model.*(q|v)_proj"                every module whose whole path the expression fits
"""

import re
import warnings
from collections import Counter
from collections.abc import Iterable

from adapters.places import all_sites, site_of
from files.errors import UserError, unknown
from files.patterns import match
from model.language import LanguageModel
from model.sites import Site

Absent = dict[str, list]  # field -> its names that the model lacks: PEFT passes them over
MODULES = ("Linear", "embedding", "norm")  # sites that are modules of their own elsewhere, too


def peft_modules(model: LanguageModel) -> dict[str, Site]:
    """The modules that PEFT can replace, by path."""
    return {path: site for path, site in all_sites(model) if site.kind in MODULES}


def fits(targets: str | list[str], path: str) -> bool:
    """Whether an expression, or a list of names, means the module at this path.

    Raises UserError for an expression that is none.
    """
    if isinstance(targets, list):
        return path in targets or any(path.endswith(f".{target}") for target in targets)
    return match(targets, path) is not None


def targeted(
    model: LanguageModel,
    targets: str | list[str],
    layers: int | list[int] | None = None,
    pattern: str | list[str] | None = None,
) -> list[str]:
    """The paths that target_modules, layers_to_transform and layers_pattern mean together."""
    modules, head = peft_modules(model), model.outer_sites["head"]
    if isinstance(targets, str) and targets.lower() == "all-linear":
        return [path for path in modules if modules[path].kind == "Linear" and path != head]
    paths = [path for path in modules if fits(targets, path)]
    if layers is None or layers == []:
        return paths
    numbers = as_list(layers)
    # PEFT looks at the layer of a module only if its path is not given whole.
    return [path for path in paths if path in targets or layer_in(path, pattern) in numbers]


def as_list(value) -> list:
    """A list, or the one value in a list, or [] for null."""
    return [] if value is None else value if isinstance(value, list) else [value]


def layer_in(path: str, pattern: str | list[str] | None) -> int | None:
    """The number after the first of these names (after any name, without them) in a path."""
    before, after = r"(?:^|.*?\.)", r"\.(?P<layer>\d+)\..*"
    for name in as_list(pattern or None):
        try:
            found = match(name, path, before, after)
        except UserError as error:
            raise UserError(f"layers_pattern = {error}") from None
        if found:
            return int(found["layer"])
    if not pattern and (found := match("", path, f"{before}[^.]*", after)):
        return int(found["layer"])
    return None


def no_such(model: LanguageModel, field: str, names: list) -> UserError:
    """The error for the first name of a field that the model lacks, with its nearest name."""
    if field == "layers_to_transform":
        layers = f"the model has layers 0 to {len(model.blocks) - 1}"
        return UserError(f"layers_to_transform names layer {names[0]!r:.100}: {layers}")
    what = "target module" if field == "target_modules" else "module to save"
    parts = [path.split(".") for path in peft_modules(model)]
    tails = dict.fromkeys(".".join(part[n:]) for part in parts for n in range(len(part)))
    listed = f"choose from {', '.join(leaves(peft_modules(model)))}"
    return unknown(f"{what} of a {model.family} model", names[0], tails, listed=listed)


def absent_names(
    model: LanguageModel, targets: str | list[str], saved_names: list[str], layers
) -> Absent:
    """The names of target_modules, modules_to_save and layers_to_transform that mean nothing."""
    several = [[name] for name in targets] if isinstance(targets, list) else [targets]
    unmeant = [as_list(one)[0] for one in several if not targeted(model, one)]
    unsaved = [name for name in saved_names if not saved(model, [name])]
    beyond = [number for number in as_list(layers) if not 0 <= number < len(model.blocks)]
    found = {"target_modules": unmeant, "modules_to_save": unsaved, "layers_to_transform": beyond}
    return {field: names for field, names in found.items() if names}


def pass_over(
    model: LanguageModel, absent: Absent, keys: Iterable[str], prefixes: tuple[str, ...], where: str
) -> None:
    """Warn of names that the model lacks, if every key of the file has one of the prefixes.

    Raises UserError otherwise, naming the nearest module.
    """
    if not absent:
        return
    left = next((key for key in keys if not key.startswith(prefixes)), None)
    if left is not None:
        first = no_such(model, *next(iter(absent.items())))
        without = f"Tensor {left!r:.200} of the file has no place without it"
        raise UserError(f"{where}: {first}. {without}")
    named = [f"{field} names {', '.join(map(repr, n)):.200}" for field, n in absent.items()]
    warnings.warn(
        f"{where}: {' and '.join(named)}, which this {model.family} model does not have; every "
        "tensor of the file has its place, so they are passed over, as PEFT does",
        stacklevel=2,
    )


def fitting(patterns: dict, path: str) -> list:
    """The values of rank_pattern or alpha_pattern that fit a path's end; the first counts."""
    return [
        value
        for pattern, value in patterns.items()
        if match(pattern, path, r"(.*\.)?(", ")") is not None
    ]


def saved(model: LanguageModel, names: Iterable[str]) -> list[str]:
    """The paths that modules_to_save means: what ends with a name, and what lies in that."""
    names = tuple(names)

    def is_saved(path: str) -> bool:
        parts = path.split(".")  # model, model.layers, ...: the modules it lies in
        return any(".".join(parts[: n + 1]).endswith(names) for n in range(len(parts)))

    return [path for path in peft_modules(model) if is_saved(path)]


def with_bias(model: LanguageModel) -> list[str]:
    """The paths of all modules with a bias."""
    return [path for path, site in peft_modules(model).items() if site.bias is not None]


def leaves(paths: Iterable[str]) -> list[str]:
    """The last names of these paths, each once."""
    return list(dict.fromkeys(path.rpartition(".")[2] for path in paths))


def split(
    model: LanguageModel, paths: Iterable[str]
) -> tuple[dict[str, tuple[str, int]], dict[str, str]]:
    """(path -> site and layer) in the blocks, (path -> site, or itself if unnamed) elsewhere."""
    inner, outer = {}, {}
    for path in paths:
        site, layer = site_of(model, path)
        if layer is not None and site in model.sites:
            inner[path] = site, layer
        else:
            outer[path] = site if layer is None else path
    return inner, outer


def placement(model: LanguageModel, paths: list[str]) -> dict:
    """`sites` and `layers` of these places, or whole paths if they are no product of both."""
    inner, outer = split(model, paths)
    used = {site for site, _ in inner.values()}
    names = [site for site in model.sites if site in used]
    layers = sorted({layer for _, layer in inner.values()})
    if len(inner) != len(names) * len(layers):
        return {"sites": paths, "layers": "all"}
    some = inner and len(layers) < len(model.blocks)
    return {"sites": names + list(outer.values()), "layers": layers if some else "all"}


def overrides(model: LanguageModel, changes: dict[str, dict], sites: list[str]) -> dict[str, dict]:
    """The options that differ at some of the places (path -> those options).

    By site if it is one of `sites` and all its places agree, otherwise by path.
    """
    inner, outer = split(model, changes)
    by_place: dict[str, dict] = {}
    for path in [*inner, *outer]:
        key = re.escape(path)
        if path in inner and inner[path][0] in sites:
            site = inner[path][0]
            if all(changes[other] == changes[path] for other in inner if inner[other][0] == site):
                key = site
        if changes[path]:
            by_place[key] = changes[path]
    return by_place


def part(model: LanguageModel, kind: str, options: dict[str, dict]) -> dict:
    """The table of a method of these options by path: the most frequent ones, and overrides."""
    most = dict(Counter(tuple(here.items()) for here in options.values()).most_common(1)[0][0])
    place = placement(model, list(options))
    changes = {
        path: {key: value for key, value in here.items() if value != most[key]}
        for path, here in options.items()
    }
    different = overrides(model, changes, place["sites"])
    return {"kind": kind, **place, **most} | ({"overrides": different} if different else {})


def as_targets(model: LanguageModel, paths: list[str], layers: bool = True) -> dict:
    """target_modules for these places.

    With layers_to_transform, if the method has it, where that is shorter than whole paths.
    """
    wanted, names = set(paths), leaves(paths)
    if set(targeted(model, names)) == wanted:
        return {"target_modules": names}
    numbers = sorted({layer for _, layer in split(model, paths)[0].values()})
    pattern = model.blocks_at.rpartition(".")[2]
    if layers and numbers and set(targeted(model, names, numbers, pattern)) == wanted:
        return {"target_modules": names, "layers_to_transform": numbers, "layers_pattern": pattern}
    return {"target_modules": paths}

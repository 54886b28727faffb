"""What can be said of a model without its weights: the table of known names, and one block drawn with its sites, shapes and counts."""

from torch import nn

from model.config import describe, family_and_config, skeleton, with_layers
from model.language import LanguageModel
from model.quantize import quantized_weights
from model.registry import POCKET, REGISTRY, cached, pocket_names
from model.sites import Linear


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters()) + quantized_weights(module)


def parameters(family, config) -> int:
    """Of the whole model, counted on one of its blocks."""
    model = skeleton(family, with_layers(family, config, 1))
    return count(model) + (config.shape.layers - 1) * count(model.blocks[0])


def models_text() -> str:
    """A line for each name: family, parameters, bytes of the published weights (two a parameter), repository, and whether it is here."""
    lines = [f"{'name':16}{'family':8}{'parameters':>16}{'16-bit size':>13}  where"]
    for name in pocket_names():
        family, config, _ = describe(name)
        size = (POCKET / name.removeprefix("pocket-") / "model.safetensors").stat().st_size
        lines.append(
            f"{name:16}{config.model_type:8}{parameters(family, config):16,}{size_text(size):>13}  comes with this package"
        )
    for name, entry in REGISTRY.items():
        family, config = family_and_config(entry.config, "registry")
        total = parameters(family, config)
        here = "  (in the cache)" if cached(entry.repo, entry.revision, "weights") else ""
        branch = "" if entry.revision == "main" else f" @ {entry.revision}"
        lines.append(
            f"{name:16}{config.model_type:8}{total:16,}{size_text(2 * total):>13}  {entry.repo}{branch}{here}"
        )
    return "\n".join(
        [
            *lines,
            "",
            "Any other repository of the hub (owner/name) and any folder with config.json and weights will do as well.",
        ]
    )


def size_text(size: float) -> str:
    """Bytes in decimal units, as the hub shows them."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} TB"


def show_text(name: str, revision: str | None = None) -> str:
    """The model's block drawn with its sites, then shape and parameters of each, and the sums. Raises UserError."""
    family, config, where = describe(name, revision)
    model = skeleton(family, config)
    block, depth = model.blocks[0], len(model.blocks)
    rows = []
    for site, path in model.sites.items():
        module = block.get_submodule(path)
        shape = (
            f"{module.in_features} -> {module.out_features}"
            if isinstance(module, Linear)
            else f"{module.out_features}, {module.kind}"
        )
        rows.append((f"[{site}]", path if count(module) else "", shape, count(module)))
    lines = [f"{name}: {config.model_type}, {count(model):,} parameters", f"from {where}", ""]
    lines += [model.picture, "", f"one block of {depth}:"]
    lines += [f"  {site:14}{path:32}{shape:26}{total:>14,}" for site, path, shape, total in rows]
    lines += [f"  {'':72}{count(block):>14,}", "", "the model:"]
    for part, total in parts(model, block, depth):
        lines.append(f"  {part:72}{total:>14,}")
    lines.append(f"  {'all':72}{count(model):>14,}   {size_text(2 * count(model))} in 16 bits")
    lines += [
        "",
        f"heads: {attention_text(model)}",
        f"adapters go to any site above: python run.py --model {name} --adapter lora --set 'adapter.sites=[...]'",
    ]
    return "\n".join(lines)


def parts(model: LanguageModel, block: nn.Module, depth: int) -> list[tuple[str, int]]:
    """The parameters outside of the blocks by their names, and all blocks as one."""
    found = [
        (
            f"{model.outer_sites['embed']} {list(model.input_embedding.weight.shape)}",
            count(model.input_embedding),
        )
    ]
    found.append((f"{depth} blocks", depth * count(block)))
    for path, module in model.named_modules():
        own = sum(parameter.numel() for parameter in module.parameters(recurse=False))
        if own and not f"{path}.".startswith(
            (f"{model.blocks_at}.", f"{model.outer_sites['embed']}.", "lm_head.")
        ):
            found.append((path, own))
    if model.lm_head.weight is model.input_embedding.weight:
        bias = 0 if model.lm_head.bias is None else model.lm_head.bias.numel()
        return [
            *found,
            ("lm_head, the embedding's weight" + (" and its own bias" if bias else ""), bias),
        ]
    return [*found, (f"lm_head {list(model.lm_head.weight.shape)}", count(model.lm_head))]


def attention_text(model: LanguageModel) -> str:
    shape = model.shape
    shared = "" if shape.kv_heads == shape.heads else f", {shape.kv_heads} of keys and values"
    positions = (
        f"positions up to {shape.positions:,}" if shape.positions else "no limit on positions"
    )
    return f"{shape.heads} of {shape.head_size}{shared}; {positions}{window_text(model)}"


def window_text(model: LanguageModel) -> str:
    """Which layers of a model see their last keys alone, where some do."""
    windows = [block.self_attn.window for block in model.blocks] if model.family == "llama" else []
    sliding = [layer for layer, window in enumerate(windows) if window]
    if not sliding:
        return ""
    layers = "all layers" if len(sliding) == len(windows) else f"layers {sliding}"
    return f"; a sliding window of {model.window:,} keys in {layers}"

"""Texts on models without their weights: the table of known names, and a block with its sites."""

from torch import nn

from model.config import describe, family_and_config, skeleton, with_layers
from model.language import LanguageModel
from model.quantize import quantized_weights
from model.registry import POCKET, REGISTRY, cached, pocket_names
from model.sites import Linear


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters()) + quantized_weights(module)


def parameters(family, config) -> int:
    """The number of parameters of the whole model, computed from one block."""
    model = skeleton(family, with_layers(family, config, 1))
    return count(model) + (config.shape.layers - 1) * count(model.blocks[0])


def models_text() -> str:
    """A line for each name: model type, parameters, bytes in 16 bits, repository, if cached."""
    lines = [f"{'name':16}{'family':8}{'parameters':>16}{'16-bit size':>13}  where"]
    for name in pocket_names():
        family, config, _ = describe(name)
        size = (POCKET / name.removeprefix("pocket-") / "model.safetensors").stat().st_size
        total = parameters(family, config)
        row = f"{name:16}{config.model_type:8}{total:16,}{size_text(size):>13}"
        lines.append(f"{row}  comes with this package")
    for name, entry in REGISTRY.items():
        family, config = family_and_config(entry.config, "registry")
        total = parameters(family, config)
        here = "  (in the cache)" if cached(entry.repo, entry.revision, "weights") else ""
        branch = "" if entry.revision == "main" else f" @ {entry.revision}"
        row = f"{name:16}{config.model_type:8}{total:16,}{size_text(2 * total):>13}"
        lines.append(f"{row}  {entry.repo}{branch}{here}")
    more = (
        "Any other repository of the hub (owner/name) and any folder with config.json and weights "
        "will do as well."
    )
    return "\n".join([*lines, "", more])


def size_text(size: float) -> str:
    """Bytes in decimal units, as the hub shows them."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} TB"


def show_text(name: str, revision: str | None = None) -> str:
    """The model's block drawn with its sites, their shapes and parameters. Raises UserError."""
    family, config, where = describe(name, revision)
    model = skeleton(family, config)
    block, depth = model.blocks[0], len(model.blocks)
    rows = []
    for site, path in model.sites.items():
        module = block.get_submodule(path)
        shape = f"{module.out_features}, {module.kind}"
        if isinstance(module, Linear):
            shape = f"{module.in_features} -> {module.out_features}"
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
        f"adapters go to any site above: python run.py --model {name} --adapter lora "
        "--set 'adapter.sites=[...]'",
    ]
    return "\n".join(lines)


def parts(model: LanguageModel, block: nn.Module, depth: int) -> list[tuple[str, int]]:
    """(name, parameters) of the modules outside of the blocks, and of all blocks together."""
    embedding, head, place = model.input_embedding, model.lm_head, model.outer_sites["embed"]
    counts = [
        (f"{place} {list(embedding.weight.shape)}", count(embedding)),
        (f"{depth} blocks", depth * count(block)),
    ]
    counted = (f"{model.blocks_at}.", f"{place}.", "lm_head.")
    for path, module in model.named_modules():
        own = sum(parameter.numel() for parameter in module.parameters(recurse=False))
        if own and not f"{path}.".startswith(counted):
            counts.append((path, own))
    if model.tied:
        bias = 0 if head.bias is None else head.bias.numel()
        name = "lm_head, the embedding's weight" + (" and its own bias" if bias else "")
        return [*counts, (name, bias)]
    return [*counts, (f"lm_head {list(head.weight.shape)}", count(head))]


def attention_text(model: LanguageModel) -> str:
    shape = model.shape
    shared = "" if shape.kv_heads == shape.heads else f", {shape.kv_heads} of keys and values"
    positions = "no limit on positions"
    if shape.positions:
        positions = f"positions up to {shape.positions:,}"
    return f"{shape.heads} of {shape.head_size}{shared}; {positions}{window_text(model)}"


def window_text(model: LanguageModel) -> str:
    """The layers of a model with a sliding window; "" if there are none."""
    windows = [block.self_attn.window for block in model.blocks] if model.family == "llama" else []
    sliding = [layer for layer, window in enumerate(windows) if window]
    if not sliding:
        return ""
    layers = "all layers" if len(sliding) == len(windows) else f"layers {sliding}"
    return f"; a sliding window of {model.window:,} keys in {layers}"

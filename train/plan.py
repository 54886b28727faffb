"""What a run would train, from config.json or the registry alone: nothing is downloaded but, at most, the configuration."""

import argparse

from torch import nn

from adapters import attach
from adapters.attach import adapters_named
from adapters.config import resolve
from adapters.files import native_tensors
from adapters.show import trained
from model.load import describe, skeleton
from model.show import count, size_text
from train.settings import settings


def with_adapter(options: argparse.Namespace) -> nn.Module:
    """The model of --model without memory, and the adapter of --adapter, --config and --set in it. Raises UserError."""
    chosen = {"model": options.model}
    if options.adapter:
        chosen["adapter"] = {"preset": options.adapter}
    made = settings(options.config, None, chosen, options.set)
    family, config, _ = describe(options.model, options.revision)
    model = skeleton(family, config)
    attach(model, resolve(None, **{key: value for key, value in made.adapter.items() if key != "preset"}))
    return model


def plan(options: argparse.Namespace) -> dict:
    """Counts and bytes of the run: parameters, trained ones, the adapter's float32 masters with gradients and AdamW's two moments, its file."""
    model = with_adapter(options)
    adapter = trained(model)
    base = count(model) - adapter
    adapters = adapters_named(model, "default")
    config = next(iter(adapters.values())).config
    stored = sum(tensor.numel() for tensor in native_tensors(config, adapters).values())
    return {
        "model": options.model, "adapter": config.kind, "where": config.place(),
        "parameters": base, "trainable_parameters": adapter, "trainable_share": adapter / base,
        "weight_bytes_16_bit": 2 * base, "adapter_file_bytes": 4 * stored, "trained_state_bytes": 16 * adapter,
    }


def plan_text(facts: dict) -> str:
    rows = [
        ("model", f"{facts['model']}: {facts['parameters']:,} parameters, {size_text(facts['weight_bytes_16_bit'])} in 16 bits"),
        ("adapter", f"{facts['adapter']} at {facts['where']}"),
        ("trained", f"{facts['trainable_parameters']:,} parameters, {100 * facts['trainable_share']:.3f} % of the model"),
        ("memory", f"{size_text(facts['trained_state_bytes'])} for them: float32 masters, gradients and AdamW's two moments"),
        ("file", size_text(facts["adapter_file_bytes"])),
    ]
    return "\n".join(f"{name:9}{text}" for name, text in rows)

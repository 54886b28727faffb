"""Starts of LoRA that look at more than the weight: the training rows (EVA), the files (LoftQ).

    attach(model, "eva")
    begin(model, batches)           # before training; a plain LoRA from here on

A run does that by itself (experiments/prepare.py).
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import fields, replace

import torch
from torch import Tensor

from adapters.attach import adapters_named, attach, remove, setup, switch
from adapters.base import Adapter
from adapters.config import METHODS, AdapterConfig, Part
from adapters.in_use import in_use, parts_of
from adapters.methods.lora import LoRA
from adapters.starts import Start, Started
from files.errors import UserError
from model.language import LanguageModel


def begins(part: Part) -> bool:
    """Whether the part has a start to be made before training."""
    return issubclass(METHODS[part.kind], Started)


def check_begun(model: LanguageModel) -> None:
    """Raise UserError for an adapter in training whose start was not made."""
    for _, name, adapter in in_use(model):
        if isinstance(adapter, Started) and adapter.lora_A.requires_grad:
            kind = type(adapter).__name__
            raise UserError(
                f"adapter {name!r} has no {kind} start yet: call adapters.begin(model, batches) "
                "before training"
            )


def begin(
    model: LanguageModel, batches: Iterable[tuple[Tensor, Tensor]], name: str = "default"
) -> AdapterConfig:
    """Make the starts of this adapter's parts that have one, and return its configuration then.

    batches: of training rows, (ids int64 [B, T], bool [B, T]: the tokens with a loss), padded on
    the right. The parts are LoRA afterwards, with ranks and alphas by site. Raises UserError.
    """
    on, config = setup(model), next(iter(adapters_named(model, name).values())).config
    here: dict[str, dict[str, Adapter]] = {part: {} for part in config.parts}
    for path, adapter in adapters_named(model, name).items():
        for _, one in parts_of("", adapter):
            here[one.part][path] = one
    starts = {
        part: METHODS[of.kind].begin(here[part], model, batches)
        for part, of in config.parts.items()
        if begins(of)
    }
    parts = {
        part: as_lora(of, here[part], starts[part]) if part in starts else of
        for part, of in config.parts.items()
    }
    remove(model, name)
    config = attach(model, AdapterConfig(parts), name)
    switch(model, *on)
    with torch.no_grad():
        for path, adapter in adapters_named(model, name).items():
            for _, one in parts_of("", adapter):
                if one.part in starts:
                    fill(one, starts[one.part][path])
                else:
                    one.load_state_dict(here[one.part][path].state_dict())
    return config


def fill(adapter: LoRA, start: Start) -> None:
    adapter.lora_A.copy_(start.A)
    if start.B is not None:
        adapter.lora_B.copy_(start.B)


def as_lora(part: Part, adapters: dict[str, Adapter], starts: dict[str, Start]) -> Part:
    """The part as LoRA of these ranks and alphas, at the sites that have one.

    What differs from the options of most sites goes into overrides.
    """
    names = [field.name for field in fields(LoRA.Options)]
    options = {
        path: LoRA.Options(**{name: getattr(adapters[path].options, name) for name in names})
        for path in starts
    }
    options = {
        path: replace(options[path], r=start.r, alpha=start.alpha) for path, start in starts.items()
    }
    [(most, _)] = Counter(options.values()).most_common(1)
    overrides = {
        path: {name: value for name, value in vars(o).items() if value != getattr(most, name)}
        for path, o in options.items()
    }
    everywhere = len(starts) == len(adapters)
    return replace(
        part,
        kind="lora",
        options=most,
        sites=part.sites if everywhere else tuple(starts),
        layers=part.layers if everywhere else "all",
        overrides={path: table for path, table in overrides.items() if table},
    )

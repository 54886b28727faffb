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
from adapters.in_use import by_part, in_use
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
    on, adapters = setup(model), adapters_named(model, name)
    config, here = next(iter(adapters.values())).config, by_part(adapters)
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
        for part, new in by_part(adapters_named(model, name)).items():
            for path, adapter in new.items():
                if part not in starts:
                    adapter.load_state_dict(here[part][path].state_dict())
                    continue
                start = starts[part][path]
                adapter.lora_A.copy_(start.A)
                if start.B is not None:
                    adapter.lora_B.copy_(start.B)
    return config


def as_lora(part: Part, adapters: dict[str, Adapter], starts: dict[str, Start]) -> Part:
    """The part as LoRA of these ranks and alphas, at the sites that have one.

    What differs from the options of most sites goes into overrides.
    """
    names, options = [field.name for field in fields(LoRA.Options)], {}
    for path, start in starts.items():
        own = {name: getattr(adapters[path].options, name) for name in names}
        options[path] = LoRA.Options(**own | {"r": start.r, "alpha": start.alpha})
    [(most, _)] = Counter(options.values()).most_common(1)
    overrides = {
        path: {name: value for name, value in vars(o).items() if value != getattr(most, name)}
        for path, o in options.items()
    }
    everywhere = len(starts) == len(adapters)
    place = {} if everywhere else {"sites": tuple(starts), "layers": "all"}
    overrides = {path: table for path, table in overrides.items() if table}
    return replace(part, kind="lora", options=most, overrides=overrides, **place)

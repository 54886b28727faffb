"""What training asks of the adapters that are on: their parameters, rates and schedules."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from adapters.base import Adapter, Scheduled
from adapters.compose import Group, members_of
from adapters.places import all_sites
from model.language import LanguageModel


def in_use(model: LanguageModel) -> Iterator[tuple[str, str, Adapter]]:
    """(path of the adapter, its name, the adapter) of all that is on, the parts one by one."""
    for path, site in all_sites(model):
        on = {id(adapter) for entry in site.active for adapter in members_of(entry)}
        for name, adapter in site.adapters.items():
            if id(adapter) in on:
                for at, part in parts_of(name, adapter):
                    yield f"{path}.adapters.{at}", name, part


def parts_of(name: str, adapter: Adapter) -> list[tuple[str, Adapter]]:
    """(path in the site's `adapters`, adapter) of the parts of a mixture, or of the adapter."""
    if isinstance(adapter, Group):
        return [(f"{name}.parts.{key}", part) for key, part in adapter.parts.items()]
    return [(name, adapter)]


def by_part(adapters: dict[str, Adapter]) -> dict[str, dict[str, Adapter]]:
    """The adapters of one name by path -> those of each of its parts by path."""
    parts = {name: {} for name in next(iter(adapters.values())).config.parts}
    for path, adapter in adapters.items():
        for _, part in parts_of("", adapter):
            parts[part.part][path] = part
    return parts


def named_parameters(model: LanguageModel) -> dict[str, nn.Parameter]:
    """The parameters of the adapters that are on and trained, by path; shared ones once."""
    every = once(model, nn.Module.named_parameters).items()
    return {name: parameter for name, parameter in every if parameter.requires_grad}


def named_buffers(model: LanguageModel) -> dict[str, Tensor]:
    """What else the adapters that are on carry from step to step, by its path; shared ones once."""
    return once(model, nn.Module.named_buffers)


def once(model: LanguageModel, named_tensors) -> dict[str, Tensor]:
    """The tensors of the adapters that are on, by path; what several sites share, once."""
    tensors = {
        f"{path}.{leaf}": tensor
        for path, _, adapter in in_use(model)
        for leaf, tensor in named_tensors(adapter)
    }
    first = {id(tensor): name for name, tensor in reversed(tensors.items())}
    return {name: tensor for name, tensor in tensors.items() if first[id(tensor)] == name}


def parameters(model: LanguageModel) -> list[nn.Parameter]:
    """The parameters of the adapters that are on and trained: what an optimizer gets."""
    return list(named_parameters(model).values())


def rates(model: LanguageModel) -> dict[str, float]:
    """For each of `named_parameters`, its learning rate as a multiple of the run's."""
    every = {
        f"{path}.{leaf}": adapter.rate * adapter.rates.get(leaf, 1.0)
        for path, _, adapter in in_use(model)
        for leaf, _ in adapter.named_parameters()
    }
    return {name: every[name] for name in named_parameters(model)}


def scheduled(model: LanguageModel) -> list[tuple[type[Scheduled], list[Scheduled]]]:
    """(method, its adapters) of those in training that take part in the training loop, the parts
    of each adapter apart."""
    by_part: dict[tuple[str, str, type[Scheduled]], list[Scheduled]] = {}
    for _, name, adapter in in_use(model):
        if isinstance(adapter, Scheduled) and any(p.requires_grad for p in adapter.parameters()):
            by_part.setdefault((name, adapter.part, type(adapter)), []).append(adapter)
    return [(method, adapters) for (_, _, method), adapters in by_part.items()]


def penalty(model: LanguageModel) -> Tensor | None:
    """What the adapters add to the loss of a training step, a scalar: the mean of their terms."""
    terms = [term for method, some in scheduled(model) for term in method.penalties(some)]
    return torch.cat([term.to(terms[0].device) for term in terms]).mean() if terms else None


def after_step(model: LanguageModel, step: int, total: int) -> None:
    """Let the methods that change with time do so, after `step` of `total` training steps."""
    for method, adapters in scheduled(model):
        method.after_step(adapters, step, total)

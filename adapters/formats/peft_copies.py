"""Copies of the base's own embedding and head in PEFT's files (save_embedding_layers).

a copy that is this model's        left out
another one of the same shape      takes the base's place, as in PEFT, with a warning
one of another shape               refused: the vocabulary was changed
"""

import warnings

import torch
from torch import Tensor, nn

from adapters.base import PREFIX
from files.errors import UserError


def base_copies(
    model: nn.Module,
    tensors: dict[str, Tensor],
    owners: dict[str, str],
    paths: list[str],
    kind: str,
    where: str,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(the tensors without such copies; those that take the base's place, by "lm_head.weight").

    `owners` are the keys of what is trained beside the method of this `kind` at `paths`. Raises
    UserError for a copy of another shape, and for one that the adapter would have to start from.
    """
    left = without_replaced(tensors, owners)
    ends = (model.outer_sites["embed"], model.outer_sites["head"])
    bases = {
        f"{path}.{leaf}": parameter.detach()
        for path in ends
        for leaf, parameter in model.get_submodule(path).named_parameters(recurse=False)
    }
    copies: dict[str, Tensor] = {}
    for name, base in bases.items():
        path, _, leaf = name.rpartition(".")
        for key in (f"{PREFIX}{path}.base_layer.{leaf}", f"{PREFIX}{name}"):
            if key in left and key not in owners:
                copies[name] = left.pop(key)
                check_shape(copies[name], base, key, where)
    if model.tied:
        copies = for_both(copies, [f"{path}.weight" for path in ends], where)
    replaced = {owner.removeprefix(f"full:{PREFIX}") for owner in owners.values()}
    changed = {
        name.rpartition(".")[0]
        for name, copy in copies.items()
        if name not in replaced and not same(copy, bases[name])
    }
    if not changed:
        return left, {}
    starts_there = kind in ("dora", "token_rows") and changed & set(paths)
    if starts_there or any(owner.startswith("tokens:") for owner in owners.values()):
        raise UserError(
            f"{where}: its copy of the base's {changed.pop()} is not this model's, and another "
            "part of the adapter starts from it: load the base that the adapter was trained on"
        )
    warnings.warn(
        f"{where} holds its own {' and '.join(sorted(changed))}, other than this model's, and they "
        "take its place, as in PEFT: they were trained too, or the adapter is of another base",
        stacklevel=3,
    )
    taken = {name: base for name, base in bases.items() if name.rpartition(".")[0] in changed}
    return left, taken | {name: copy for name, copy in copies.items() if name in taken}


def without_replaced(tensors: dict[str, Tensor], owners: dict[str, str]) -> dict[str, Tensor]:
    """The tensors without the base's own of modules_to_save, which bias = "all" saves as well."""
    own = ".original_module."
    return {
        key: tensor
        for key, tensor in tensors.items()
        if own not in key or key.replace(own, ".") not in owners
    }


def check_shape(copy: Tensor, base: Tensor, key: str, where: str) -> None:
    """Raises UserError where a copy has another shape than the base's."""
    if copy.shape != base.shape:
        raise UserError(
            f"{where}: {key!r} is a copy of the base's {list(copy.shape)}, and this model's is "
            f"{list(base.shape)}: it is another base, {resized(copy)}"
        )


def resized(tensor: Tensor) -> str:
    """What to do where an embedding or a head has another number of rows than the model's."""
    return (
        "or its vocabulary was changed. Then save the base with as many rows first: "
        f"model.resize_token_embeddings({(*tensor.shape, 0)[0]})"
    )


def check_saved(
    model: nn.Module, tensors: dict[str, Tensor], owners: dict[str, str], where: str
) -> None:
    """Raises UserError where a module of modules_to_save has another shape than the model's.

    `owners`: as for `base_copies`.
    """
    ends = (model.outer_sites["embed"], model.outer_sites["head"])
    for key, owner in owners.items():
        if not owner.startswith("full:"):
            continue
        path, _, leaf = owner.removeprefix(f"full:{PREFIX}").rpartition(".")
        base = getattr(model.get_submodule(path), leaf)
        if tensors[key].shape == base.shape:
            continue
        raise UserError(
            f"{where}: tensor {key!r} (modules_to_save) is {list(tensors[key].shape)}, and this "
            f"model's is {list(base.shape)}: the adapter is of another base"
            + (f", {resized(tensors[key])}" if path in ends else "")
        )


def for_both(copies: dict[str, Tensor], names: list[str], where: str) -> dict[str, Tensor]:
    """The copies of a tied model: one counts for the embedding and the head. Raises UserError."""
    found = [copies[name] for name in names if name in copies]
    if not found:
        return copies
    if not torch.equal(found[0], found[-1]):
        raise UserError(
            f"{where}: its copies of the embedding and the head differ, which are tied here"
        )
    return copies | dict.fromkeys(names, found[0])


def same(copy: Tensor, base: Tensor) -> bool:
    """Whether a copy is the base's, in the precision of either; yes for a model without weights."""
    if base.is_meta:
        return True
    base = base.to(copy.device)
    return torch.equal(copy.to(base.dtype), base) or torch.equal(copy, base.to(copy.dtype))

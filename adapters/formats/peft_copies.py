"""Copies of the base's own embedding and head in PEFT's files (save_embedding_layers).

a copy that is this model's        left out
another one of the same shape      takes the base's place, as in PEFT, with a warning
one of another shape               refused: the vocabulary was changed
"""

import warnings

import torch
from torch import Tensor

from adapters.base import PREFIX
from adapters.formats.peft_fields import File


def base_copies(file: File, owners: dict[str, str], kind: str) -> dict[str, Tensor]:
    """Take such copies out of the file; those that take the base's place, by "lm_head.weight".

    `owners` are the keys of what is trained beside the method of this `kind`. Raises UserError for
    a copy of another shape, and for one that the adapter would have to start from.
    """
    # bias = "all" saves the base's own of modules_to_save as well.
    own = ".original_module."
    file.tensors = left = {
        key: tensor
        for key, tensor in file.tensors.items()
        if own not in key or key.replace(own, ".") not in owners
    }
    bases = {
        f"{path}.{leaf}": parameter.detach()
        for path in file.ends
        for leaf, parameter in file.model.get_submodule(path).named_parameters(recurse=False)
    }
    copies: dict[str, Tensor] = {}
    for name, base in bases.items():
        path, _, leaf = name.rpartition(".")
        for key in (f"{PREFIX}{path}.base_layer.{leaf}", f"{PREFIX}{name}"):
            if key in left and key not in owners:
                copies[name] = copy = left.pop(key)
                if copy.shape != base.shape:
                    raise file.error(
                        f"{key!r} is a copy of the base's {list(copy.shape)}, and this "
                        f"model's is {list(base.shape)}: it is another base, {resized(copy)}"
                    )
    if file.model.tied:
        copies = for_both(file, copies)
    replaced = {owner.removeprefix(f"full:{PREFIX}") for owner in owners.values()}
    changed = {
        name.rpartition(".")[0]
        for name, copy in copies.items()
        if name not in replaced and not same(copy, bases[name])
    }
    if not changed:
        return {}
    starts_there = kind in ("dora", "token_rows") and changed & set(file.paths)
    if starts_there or any(owner.startswith("tokens:") for owner in owners.values()):
        raise file.error(
            f"its copy of the base's {changed.pop()} is not this model's, and another "
            "part of the adapter starts from it: load the base that the adapter was trained on"
        )
    warnings.warn(
        f"{file.where} holds its own {' and '.join(sorted(changed))}, other than this model's, and "
        "they take its place, as in PEFT: they were trained too, or the adapter is of another base",
        stacklevel=3,
    )
    taken = {name: base for name, base in bases.items() if name.rpartition(".")[0] in changed}
    return taken | {name: copy for name, copy in copies.items() if name in taken}


def resized(tensor: Tensor) -> str:
    """What to do if an embedding or a head has another number of rows than the model's."""
    return (
        "or its vocabulary was changed. Then save the base with as many rows first: "
        f"model.resize_token_embeddings({(*tensor.shape, 0)[0]})"
    )


def check_saved(file: File, owners: dict[str, str]) -> None:
    """Raises UserError if a module of modules_to_save has another shape than the model's.

    `owners`: as for `base_copies`.
    """
    for key, owner in owners.items():
        if not owner.startswith("full:"):
            continue
        path, _, leaf = owner.removeprefix(f"full:{PREFIX}").rpartition(".")
        own, base = file.tensors[key], getattr(file.model.get_submodule(path), leaf)
        if own.shape != base.shape:
            hint = f", {resized(own)}" if path in file.ends else ""
            raise file.error(
                f"tensor {key!r} (modules_to_save) is {list(own.shape)}, and this model's is "
                f"{list(base.shape)}: the adapter is of another base{hint}"
            )


def for_both(file: File, copies: dict[str, Tensor]) -> dict[str, Tensor]:
    """The copies of a tied model: one counts for the embedding and the head. Raises UserError."""
    names = [f"{path}.weight" for path in file.ends]
    given = [copies[name] for name in names if name in copies]
    if not given:
        return copies
    if not torch.equal(given[0], given[-1]):
        raise file.error("its copies of the embedding and the head differ, which are tied here")
    return copies | dict.fromkeys(names, given[0])


def same(copy: Tensor, base: Tensor) -> bool:
    """Whether a copy is the base's, in the precision of either; yes for a model without weights."""
    if base.is_meta:
        return True
    base = base.to(copy.device)
    return torch.equal(copy.to(base.dtype), base) or torch.equal(copy, base.to(copy.dtype))

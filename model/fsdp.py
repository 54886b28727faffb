"""Blocks too big for one device: each process holds 1/N of their weights (FSDP2; Zhao et al. 2023, and torch's `fully_shard`).

    process 0   embedding   [rows 0 to k of every weight of every block]   norms, head        block by block, in the forward pass and again in the
    process 1   embedding   [rows k to n of every weight of every block]   norms, head        backward one: gathered, used, freed

Frozen weights have no gradients to scatter; adapters come afterwards, so that they stay whole in every process. What is not a matrix in a block stays
whole, too: it weighs nothing, and adapters start from it.
"""

import torch
from torch import Tensor

from model.language import LanguageModel


def shard(model: LanguageModel, mesh) -> None:
    """Lay the matrices of the blocks over the processes of a one-dimensional DeviceMesh; the model is a skeleton still, on the meta device.

    All processes must from now on make the same passes through the model at the same time.
    """
    from torch.distributed.fsdp import fully_shard

    for block in model.blocks:
        fully_shard(
            block,
            mesh=mesh,
            reshard_after_forward=True,
            ignored_params={one for one in block.parameters() if one.dim() < 2},
        )
    fully_shard(
        model,
        mesh=mesh,
        reshard_after_forward=True,
        ignored_params={one for one in model.parameters() if not is_part(one)},
    )


def is_part(tensor: Tensor) -> bool:
    """Whether the rest of this weight lies in other processes. (A DTensor; the class itself takes a second to import.)"""
    return hasattr(tensor, "full_tensor")


def part_of(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor [out, in] that every process has, laid out as `like` is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    part = distribute_tensor(
        tensor, like.device_mesh, like.placements, src_data_rank=None
    )  # None: nothing is sent, each takes its own rows
    rows = part.to_local().clone()  # a view would keep the whole alive
    return DTensor.from_local(
        rows,
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=tensor.shape,
        stride=tensor.stride(),
    )


def whole(weight: Tensor) -> Tensor:
    """A weight [out, in] with all its rows, gathered where they lie in several processes, all of which must ask at the same time."""
    return weight.full_tensor() if is_part(weight) else weight


@torch.no_grad()
def first_pass(model: LanguageModel) -> None:
    """A pass of one token: what FSDP allocates in its first one is used ever after, and must not be made in inference mode."""
    model.hidden(torch.zeros(1, 1, dtype=torch.long, device=model.device))

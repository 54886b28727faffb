"""Blocks too big for one device: each process holds 1/N of their weights (FSDP2; Zhao et al. 2023).

    process 0   embedding   [rows 0 to k of every weight of every block]   norms, head
    process 1   embedding   [rows k to n of every weight of every block]   norms, head

Each block is gathered, used and freed, in the forward pass and again in the backward pass. Frozen
weights have no gradients to scatter. Every process has the whole adapters, which are attached after
this, and all tensors of the blocks that are no matrices: they are small.
"""

import torch
from torch import Tensor

from model.language import LanguageModel


def shard(model: LanguageModel, mesh) -> None:
    """Shard the matrices of the blocks over the processes of a one-dimensional DeviceMesh.

    model: on the meta device. From here on all processes must make the same passes together.
    """
    from torch.distributed.fsdp import fully_shard

    for block in model.blocks:
        fully_shard(
            block,
            mesh=mesh,
            reshard_after_forward=True,
            ignored_params={p for p in block.parameters() if p.dim() < 2},
        )
    fully_shard(
        model,
        mesh=mesh,
        reshard_after_forward=True,
        ignored_params={p for p in model.parameters() if not is_part(p)},
    )


def is_part(tensor: Tensor) -> bool:
    """Whether this is a DTensor: other processes hold the rest of its rows."""
    return hasattr(tensor, "full_tensor")  # importing the class takes a second


def part_of(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of a tensor [out, in] that every process has, sharded as `like`."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    layout = (like.device_mesh, like.placements)
    part = distribute_tensor(tensor, *layout, src_data_rank=None)  # None: nothing is sent
    rows = part.to_local().clone()  # a view would keep the whole tensor in memory
    shape = {"shape": tensor.shape, "stride": tensor.stride()}
    return DTensor.from_local(rows, *layout, run_check=False, **shape)


def whole(weight: Tensor) -> Tensor:
    """A weight [out, in] with all its rows; if it is sharded, all processes must call this."""
    return weight.full_tensor() if is_part(weight) else weight


@torch.no_grad()
def first_pass(model: LanguageModel) -> None:
    """A pass of one token: FSDP keeps what its first pass allocates, which must not be made in
    inference mode."""
    model.hidden(torch.zeros(1, 1, dtype=torch.long, device=model.device))

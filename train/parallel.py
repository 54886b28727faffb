"""Several processes, on one machine or many, as torchrun starts them: their shares and sums.

    rank 0   micro-batches 0, 2, 4 ... -- gradient --+
                                                     + -- sum -- clip, AdamW, the same everywhere
    rank 1   micro-batches 1, 3, 5 ... -- gradient --+

Seed and step decide the rows of a step, its micro-batches and their dropout; the loss is a sum over
tokens divided by the loss weight of the whole step. So gradients are added, not averaged, and any
number of processes takes the same steps as one, to rounding. torch's DistributedDataParallel is not
used: only the adapters' gradients are added, a few megabytes in one piece a step. With `shard` the
blocks' weights are spread over the processes (model/fsdp.py). Only rank 0 writes and prints.
"""

import hashlib
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from data.batches import Example
from files.errors import UserError
from train.lost import LOST, Lost, first_line, is_reported, lost, signed
from train.watch import Watch

TIMEOUT = timedelta(minutes=30)  # of a collective operation whose other processes hang


@dataclass(frozen=True)
class Processes:
    """This process among `world`; by default the only one."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0  # its number on its machine
    sharded: bool = False  # the blocks' weights are spread over the processes
    watch: Watch | None = field(default=None, compare=False, repr=False)

    @property
    def is_writer(self) -> bool:
        return self.rank == 0

    def share(self, batches: dict[int, Sequence[Example]]) -> dict[int, Sequence[Example]]:
        """This process's micro-batches of a step.

        Sharded processes gather blocks together, so each needs as many passes: those with too few
        micro-batches get one more, of a row without a loss.
        """
        mine = dict(list(batches.items())[self.rank :: self.world])
        if self.sharded and len(mine) < -(-len(batches) // self.world):
            short = list(batches.values())[-1][-1]
            mine[0] = [Example(short.ids, [0.0] * len(short))]
        return mine

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add the gradients of all processes, in one float32 tensor.

        A parameter that has a gradient in no process keeps None.
        """
        if self.world == 1:
            return
        parameters = list(parameters)
        device = parameters[0].device
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        has = [p.grad is not None for p in parameters]
        has = torch.tensor(has, dtype=torch.float32, device=device)
        flat = torch.cat([has, *(gradient.flatten().to(device) for gradient in gradients)])
        dist.all_reduce(flat)
        has, *parts = flat.split([len(parameters), *(p.numel() for p in parameters)])
        for parameter, part, any_has in zip(parameters, parts, has.tolist(), strict=True):
            parameter.grad = part.view_as(parameter).to(parameter.device) if any_has else None

    def gather(self, number: float) -> list[float]:
        """The number of every process, by rank."""
        if self.world == 1:
            return [number]
        numbers = [torch.empty(1, dtype=torch.float64) for _ in range(self.world)]
        dist.all_gather(numbers, torch.tensor([number], dtype=torch.float64))
        return [number.item() for number in numbers]

    def exchange(self, value) -> list:
        """The value of every process, by rank."""
        values = [value] * self.world
        if self.world > 1:
            dist.all_gather_object(values, value)
        return values

    def from_writer(self, make: Callable):
        """What `make` returns in rank 0, in every process; its UserError is raised in all."""
        value, error = None, None
        if self.is_writer:
            try:
                value = make()
            except UserError as raised:
                error = raised
        value, error = self.exchange((value, error))[0]
        if error is not None:
            raise error
        return value

    @contextmanager
    def rescue(self, save: Callable, *arguments) -> Iterator[None]:
        """Within this block rank 0 calls `save` if another process is lost; nothing in the block
        changes what is saved."""
        if self.watch is None or not self.is_writer:
            yield
            return
        self.watch.arm(partial(save, *arguments))
        try:
            yield
        except (UserError, RuntimeError) as error:
            if isinstance(lost(error), Lost):
                self.watch.stop()
                self.watch.rescue()
            raise
        finally:
            self.watch.arm(None)

    def agree(
        self, facts: dict[str, str], weights: dict[str, dict[str, Tensor]] | None = None
    ) -> None:
        """Raise UserError in all processes if one differs from rank 0 in a fact or a weight."""
        if self.world == 1:
            return
        facts = facts | {name: hash_of(tensors) for name, tensors in (weights or {}).items()}
        all_facts = self.exchange(facts)
        for rank, others in enumerate(all_facts):
            different = [key for key in facts if others.get(key) != all_facts[0].get(key)]
            if different:
                raise UserError(
                    f"process {rank} differs from process 0 in: {', '.join(different)}; "
                    "all need the same command, files and versions"
                )

    def mesh(self, device: torch.device):
        """The processes as FSDP's device mesh."""
        from torch.distributed.device_mesh import init_device_mesh

        return init_device_mesh(device.type, (self.world,))

    def barrier(self) -> None:
        """Wait for all processes."""
        self.gather(0.0)


SINGLE = Processes()


def hash_of(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(name.encode() + tensor.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


@contextmanager
def started() -> Iterator[Processes]:
    """Join the processes that torchrun has started; without torchrun there is only this one.

    Rank 0 reports the UserErrors of all; the other processes exit quietly with status 1, unless
    rank 0 reports nothing. Raises UserError.
    """
    environment = os.environ
    if int(environment.get("WORLD_SIZE", 1)) == 1:
        yield SINGLE
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in environment]
    if missing:
        raise UserError(
            f"WORLD_SIZE is {environment['WORLD_SIZE']} and {', '.join(missing)} is not set: "
            "start several processes with torchrun"
        )
    rank, world = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    processes = Processes(rank, world, int(environment.get("LOCAL_RANK", 0)))

    def on_lost() -> None:
        error = Lost(LOST)
        if not is_reported(apart, rank, world, error):
            line = f"{Path(sys.argv[0]).name}: {signed(error, rank)}\n"
            os.write(2, line.encode())

    gpu = torch.cuda.is_available() and processes.local_rank < torch.cuda.device_count()
    if gpu:
        torch.cuda.set_device(processes.local_rank)
    backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
    try:
        store, rank, world = next(dist.rendezvous("env://", timeout=TIMEOUT))
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=TIMEOUT)
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(
            "the processes did not find each other at "
            f"{environment['MASTER_ADDR']}:{environment['MASTER_PORT']}: {first_line(error)}"
        ) from None
    apart = store.clone()  # a connection of its own: the main thread may wait on the other
    watch = Watch(rank, world, on_lost)
    processes = replace(processes, watch=watch)
    try:
        with nullcontext() if processes.is_writer else quiet():
            yield processes
            processes.barrier()
            watch.stop(goodbye=True)
    except (UserError, RuntimeError) as error:
        watch.stop()  # this process ends in its own way
        message = lost(error)
        if not isinstance(message, UserError):
            raise
        if is_reported(store, rank, world, message):
            raise SystemExit(1) from None
        raise signed(message, rank) from error
    except KeyboardInterrupt:
        if processes.is_writer:
            raise
        raise SystemExit(130) from None
    finally:
        watch.stop()
    dist.destroy_process_group()


@contextmanager
def quiet() -> Iterator[None]:
    """Within this block nothing goes to stdout and no warning is shown: rank 0 prints the same."""
    with open(os.devnull, "w") as null, redirect_stdout(null), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

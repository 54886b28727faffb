"""Several processes, on one machine or many, as torchrun starts them: who computes what, and the few things they tell each other.

    rank 0   micro-batches 0, 2, 4 ... ── gradient ─┐
                                                    + ── the gradient of the step ── clip, AdamW, the same in every process
    rank 1   micro-batches 1, 3, 5 ... ── gradient ─┘

Seed and step decide the rows of a step, its micro-batches and their dropout; the loss is a sum over tokens divided by the weight of the whole step. So
gradients are added, not averaged, and any number of processes takes the same steps as one, to rounding. torch's DistributedDataParallel is not used: what
is to be added are the adapters' gradients alone, a few megabytes in one piece a step, and its averaging, no_sync and rules for unused parameters are
for what is not the case here. With `shard` the blocks' weights lie in all processes together (model/fsdp.py). Rank 0 alone writes and prints.
"""

import hashlib
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from data.batches import Example
from files.errors import UserError

TIMEOUT = timedelta(
    minutes=30
)  # until a process that waits for the others gives up: one that ended is noticed at once, one that hangs is not


class Lost(UserError):
    """Another process of the job is gone, or does not answer."""


@dataclass(frozen=True)
class Processes:
    """This process among `world`, the `local_rank`-th on its machine; as it stands, one that is alone."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    sharded: bool = False  # they hold one model together and make all passes at the same time

    @property
    def is_writer(self) -> bool:
        return self.rank == 0

    def share(self, batches: dict[int, Sequence[Example]]) -> dict[int, Sequence[Example]]:
        """This process's micro-batches of a step. Where blocks are gathered from all, the passes of all are as many: some have a row without a loss."""
        mine = dict(list(batches.items())[self.rank :: self.world])
        if self.sharded and len(mine) < -(-len(batches) // self.world):
            short = list(batches.values())[-1][-1]
            mine[0] = [Example(short.ids, [0.0] * len(short))]
        return mine

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add the gradients of all processes, in one float32 piece; what none of them has a gradient for keeps none."""
        if self.world == 1:
            return
        parameters = list(parameters)
        device = parameters[0].device
        gradients = [torch.zeros_like(one) if one.grad is None else one.grad for one in parameters]
        has = torch.tensor(
            [one.grad is not None for one in parameters], dtype=torch.float32, device=device
        )
        flat = torch.cat([has, *(one.flatten().to(device) for one in gradients)])
        dist.all_reduce(flat)
        has, *parts = flat.split([len(parameters), *(one.numel() for one in parameters)])
        for parameter, part, any_has in zip(parameters, parts, has.tolist(), strict=True):
            parameter.grad = part.view_as(parameter).to(parameter.device) if any_has else None

    def gather(self, number: float) -> list[float]:
        """The number of every process, by rank."""
        if self.world == 1:
            return [number]
        found = [torch.empty(1, dtype=torch.float64) for _ in range(self.world)]
        dist.all_gather(found, torch.tensor([number], dtype=torch.float64))
        return [one.item() for one in found]

    def exchange(self, value) -> list:
        """The value of every process, by rank."""
        found = [value] * self.world
        if self.world > 1:
            dist.all_gather_object(found, value)
        return found

    def from_writer(self, make: Callable):
        """What `make` returns in rank 0, in every process; what it raises as a UserError is raised in all."""
        made, error = None, None
        if self.is_writer:
            try:
                made = make()
            except UserError as found:
                error = found
        made, error = self.exchange((made, error))[0]
        if error is not None:
            raise error
        return made

    def agree(
        self, facts: dict[str, str], weights: dict[str, dict[str, Tensor]] | None = None
    ) -> None:
        """Raise UserError in all processes where one has another value than rank 0, or other weights, to the bit, naming what differs."""
        if self.world == 1:
            return
        facts = facts | {what: hash_of(tensors) for what, tensors in (weights or {}).items()}
        for rank, others in enumerate(found := self.exchange(facts)):
            different = [key for key in facts if others.get(key) != found[0].get(key)]
            if different:
                raise UserError(
                    f"process {rank} differs from process 0 in: {', '.join(different)}; all need the same command, files and versions"
                )

    def mesh(self, device: torch.device):
        """The processes as FSDP wants to have them."""
        from torch.distributed.device_mesh import init_device_mesh

        return init_device_mesh(device.type, (self.world,))

    def barrier(self) -> None:
        """Wait for all."""
        self.gather(0.0)


ALONE = Processes()


def hash_of(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(name.encode() + tensor.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


@contextmanager
def started() -> Iterator[Processes]:
    """The processes that torchrun has started; without torchrun this one alone. At the end they wait for each other.

    An error that several processes meet is raised in the first to meet it, the others end quietly (SystemExit 1). Raises UserError.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield Processes()
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UserError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']} and {', '.join(missing)} is not set: start several processes with torchrun"
        )
    processes = Processes(
        int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_RANK", 0))
    )
    gpu = torch.cuda.is_available() and processes.local_rank < torch.cuda.device_count()
    if gpu:
        torch.cuda.set_device(processes.local_rank)
    try:
        store, rank, world = next(dist.rendezvous("env://", timeout=TIMEOUT))
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if gpu else "gloo",
            store=store,
            rank=rank,
            world_size=world,
            timeout=TIMEOUT,
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"the processes did not find each other at {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}: {first_line(error)}"
        ) from None
    try:
        with nullcontext() if processes.is_writer else quiet():
            yield processes
            processes.barrier()
    except (UserError, RuntimeError) as error:
        said = lost(error)
        if not first_to_say(store, processes, said):
            raise SystemExit(1) from None
        if isinstance(said, UserError) and rank > 0:
            said = type(said)(f"process {rank}: {said}")
        raise said from error
    except KeyboardInterrupt:
        if processes.is_writer:
            raise
        raise SystemExit(130) from None
    dist.destroy_process_group()


def first_to_say(store, processes: Processes, error: Exception) -> bool:
    """Whether no other process says this: rank 0 goes first, the others give it some seconds. That another is gone is said where nothing else was.

    As rank 0 may hold the store, it gives the others as long to have read it.
    """
    key, seconds = (
        ("error", 2) if isinstance(error, Lost) else (f"error {error}", 10)
    )  # on a busy machine one may be that much later than another
    try:
        if not processes.is_writer:
            said = within(seconds, lambda: store.check([key]))
            store.add("have read", 1)
            if said:
                return False
        if key != "error":
            store.add("error", 1)
        first = store.add(key, 1) == 1
        if processes.is_writer:
            within(seconds, lambda: store.add("have read", 0) == processes.world - 1)
        return first
    except RuntimeError:  # the store was in the process that is gone
        return True


def within(seconds: float, happens: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while not (there := happens()) and time.monotonic() < end:
        time.sleep(0.05)
    return there


@contextmanager
def quiet() -> Iterator[None]:
    """What rank 0 says, the others need not say again."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def lost(error: Exception) -> Exception:
    """The error itself, or `Lost` where it says that a connection broke."""
    broken = ("gloo", "nccl", "connection closed", "connection reset", "timed out")
    if isinstance(error, UserError) or not (
        isinstance(error, dist.DistError) or any(word in str(error).lower() for word in broken)
    ):
        return error
    return Lost(
        f"another process of this job ended or does not answer; continue from the last checkpoint with --resume ({first_line(error)})"
    )


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]

"""Where the parts of a model lie: on one device, or its layers on several (model/devices.py)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Stage:
    """Blocks first to end - 1 and the device they lie on."""

    device: torch.device
    first: int
    end: int


def moved(x: Tensor, device: torch.device) -> Tensor:
    """x on another device; asynchronous if that is a GPU."""
    return x.to(device, non_blocking=device.type == "cuda")


class Placed(nn.Module):
    """The devices of a model's tensors, by their paths."""

    stages: tuple[Stage, ...]  # of the blocks, if they lie on several devices

    @property
    def device(self) -> torch.device:
        """Where the embedding is, so where ids belong."""
        return self.input_embedding.weight.device

    def place_of(self, path: str) -> int:
        """Where a tensor or module belongs: -1 before the blocks, else the number of its block, or
        the number of blocks for what comes after them."""
        if path.startswith(f"{self.blocks_at}."):
            return int(path.removeprefix(f"{self.blocks_at}.").partition(".")[0])
        head = path.startswith("lm_head") and not self.tied
        return len(self.blocks) if head or f"{path}.".startswith(self.after_blocks) else -1

    def device_of(self, path: str) -> torch.device:
        """The device of a tensor or module of this path."""
        return self.device_at(self.place_of(path)) if self.stages else self.device

    def device_at(self, place: int) -> torch.device:
        """The device of a place as `place_of` counts them, where there are several devices."""
        after = (stage.device for stage in self.stages if place < stage.end)
        return next(after, self.stages[-1].device)

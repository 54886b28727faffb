"""The tensors of an adapter file, each to be taken exactly once."""

import difflib
from copy import copy

import torch
from torch import Tensor

from files.errors import UserError


class Tensors:
    """Tensors by key; `where` is the file they are from, for messages."""

    def __init__(self, tensors: dict[str, Tensor], where: str):
        self.left, self.count, self.where, self.prefix = dict(tensors), len(tensors), where, ""

    def with_prefix(self, prefix: str) -> "Tensors":
        """The same tensors, asked for without the `prefix` of their keys."""
        view = copy(self)
        view.prefix = prefix
        return view

    def pop(self, key: str, floating: bool = True) -> Tensor:
        """The tensor of this key. Raises UserError if it is missing or not finite."""
        key = self.prefix + key
        if key not in self.left:
            near = difflib.get_close_matches(key, self.left, n=1, cutoff=0.8)
            hint = f"; the file has {near[0]!r:.200}" if near else ""
            raise UserError(f"{self.where}: tensor {key!r} is missing{hint}")
        tensor = self.left.pop(key)
        if floating and not tensor.is_floating_point():
            raise UserError(
                f"{self.where}: tensor {key!r} is stored as {tensor.dtype}, not as floating point"
            )
        if not tensor.isfinite().all():
            raise UserError(f"{self.where}: tensor {key!r} holds NaN or infinite values")
        return tensor

    @torch.no_grad()
    def take(self, key: str, into: Tensor) -> None:
        """Copy the tensor of this key into one of the same shape. Raises UserError."""
        tensor = self.pop(key, into.is_floating_point())
        if tensor.shape != into.shape:
            raise UserError(
                f"{self.where}: tensor {self.prefix + key!r} is {list(tensor.shape)}, "
                f"the configuration asks for {list(into.shape)}"
            )
        into.copy_(tensor)

    def check_derived(self, key: str, stored: Tensor, computed: Tensor) -> None:
        """Raises UserError if a stored tensor is not what the file's other tensors compute."""
        if stored.shape != computed.shape or not torch.allclose(
            computed.cpu(), stored.float().cpu(), rtol=1e-4, atol=1e-5
        ):
            raise UserError(f"{self.where}: {key!r} is not what the encoder beside it makes")

    def finish(self) -> None:
        """Raises UserError if a tensor was not used."""
        if self.left:
            raise UserError(
                f"{self.where}: unknown tensor {next(iter(self.left))!r:.200}, which the adapter's "
                f"configuration has no place for ({len(self.left)} of {self.count} are left over)"
            )

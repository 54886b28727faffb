"""Parameters in the dtype of the computation, kept while answers are made."""

import torch
from torch import Tensor, nn


class Casting(nn.Module):
    """A module whose float32 parameters are cast to the dtype of what they meet."""

    def cast(self, tensor: Tensor, x: Tensor, holder: nn.Module | None = None) -> Tensor:
        """A parameter or buffer in the dtype and on the device of x.

        Where no gradient is wanted (answers) `holder`, or the adapter, keeps it until the values
        change, their storage and version tell, or the model is trained or moved.
        """
        if (tensor.dtype, tensor.device) == (x.dtype, x.device):
            return tensor
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or tensor.is_inference():
            return tensor.to(x)  # an inference tensor has no version
        casts = vars(holder or self).setdefault("casts", Casts())
        key = (id(tensor), x.dtype, x.device)
        state = (tensor.data_ptr(), tensor._version)
        if key not in casts or casts[key][0] is not tensor or casts[key][1] != state:
            # its storage is kept so that no other gets the address
            casts[key] = (tensor, state, tensor.untyped_storage(), tensor.to(x))
        return casts[key][-1]

    def train(self, mode: bool = True) -> "Casting":
        for module in self.modules() if mode else ():  # model.eval() keeps them: graphs read them
            vars(module).pop("casts", None)
        return super().train(mode)

    def _apply(self, function, recurse: bool = True) -> "Casting":
        for module in self.modules():
            vars(module).pop("casts", None)
        return super()._apply(function, recurse)


class Casts(dict):
    """What `Casting.cast` keeps; a copy or a pickle has none of it."""

    def __reduce__(self):
        return Casts, ()

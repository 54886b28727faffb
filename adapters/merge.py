"""Fold adapters into the weights beside them."""

import hashlib

import torch
from torch import nn

from adapters.attach import all_sites
from adapters.base import Adapter
from model.errors import UserError
from model.sites import Linear


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Fold every adapter that is switched on into its Linear, in float32, cast once; adapters switched off stay as they are.

    The model is another base from then on: its fingerprint changes, so that adapters made for the old one are not loaded onto it.

    Raises UserError, with the model unchanged, when an adapter that is on cannot be folded.
    """
    for path, site in all_sites(model):
        for adapter in site.active:
            if not isinstance(site, Linear) or type(adapter).merged is Adapter.merged:
                raise UserError(
                    f"the {adapter.config.kind} adapter at {path} is not a linear map of one weight and cannot be merged; evaluate and generate use it unmerged"
                )
    digest = hashlib.sha256(model.fingerprint.encode())
    for path, site in all_sites(model):
        if site.active:
            weight, bias = site.weight.float(), None if site.bias is None else site.bias.float()
            for adapter in site.active:
                weight, bias = adapter.merged(weight, bias)
            site.weight = nn.Parameter(weight.to(site.weight.dtype), requires_grad=False)
            if bias is not None:
                site.bias = nn.Parameter(bias.to(site.weight.dtype), requires_grad=False)
            digest.update(path.encode() + site.weight.flatten()[:: max(1, site.weight.numel() // 64)].float().cpu().numpy().tobytes())
            for name in [name for name, adapter in site.adapters.items() if adapter in site.active]:
                del site.adapters[name]
            site.active = ()
            model.fingerprint = digest.hexdigest()[:16]

"""Fold adapters into the weights beside them.

    x ── · l ── W, b ── + B A ── · m ── ... ── y          W' = diag(m) (W + B A) diag(l)          b' = m b

What adapters do behind a Linear is folded in the order of their application. What scales its input (IA3) comes last, wherever it stands in that
order: all the others see the scaled input too. Norms and embeddings have the same chain without an input part.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from adapters.attach import adapter_names, adapters_named, in_use, remove
from adapters.base import Adapter
from adapters.compose import Average, Composition, Group, Rows
from adapters.methods.bitfit import BitFit
from adapters.methods.dora import DoRA
from adapters.methods.full import Full
from adapters.methods.ia3 import IA3
from adapters.methods.token_rows import TokenRows
from adapters.places import all_sites
from files.errors import UserError
from model.load import fingerprint_of, is_finite, sample_of
from model.quantize import dequantize
from model.sites import Linear, Site

Folded = tuple[Tensor | None, Tensor | None]  # a weight and a bias
UNMERGED = "evaluate and generate use it unmerged"
BIASES = {  # model_type -> setting of config.json -> the part of a path that tells the Linears it gives a bias, all of them
    "llama": {"attention_bias": ".self_attn.", "mlp_bias": ".mlp."},
    "qwen3": {"attention_bias": ".self_attn."},
    "opt": {"enable_bias": ".layers."},
}
OF_THE_BASE = {
    DoRA: ("weight", "bias"),
    BitFit: ("bias",),
    TokenRows: ("weight",),
}  # methods whose `after` looks at these of f, not at y alone


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Fold every adapter that is switched on into the weights beside it, in float32, cast once; adapters switched off stay as they are.

    The model is another base from then on: its fingerprint changes, so that adapters made for the old one are not loaded onto it. A head that was
    tied to the embedding gets a weight of its own where the two differ now; a Linear without a bias gets one where an adapter has one, and with it
    the Linears that the family's config.json cannot give one without. model.config follows. Of a quantised model all weights become plain ones in
    the model's dtype: what they stood for, and what the adapter adds; its answers are those of the quantised model with the adapter, to rounding.

    Raises UserError, with the model unchanged, when an adapter that is on cannot be folded.
    """
    names = check(model)
    if not names:
        return
    dequantize(model)  # rounding the sum again would be another model
    tied = model.tied
    for _, site in active_sites(model):
        weight, bias = folded(site)
        for leaf, value in (("weight", weight), ("bias", bias)):
            if value is not getattr(site, leaf):
                setattr(site, leaf, nn.Parameter(value.detach(), requires_grad=False))
    if tied and not model.tied:
        if torch.equal(
            model.lm_head.weight, model.input_embedding.weight
        ):  # the same was done to both
            model.tie()
        else:
            model.config = replace(model.config, tie_word_embeddings=False)
    fill_biases(model)
    for name in names:
        remove(model, name)
    model.fingerprint = fingerprint(model)


def fill_biases(model: nn.Module) -> None:
    """Zeros where others of the same setting of config.json have got a bias, and the setting."""
    for key, part in BIASES.get(model.config.model_type, {}).items():
        linears = [
            site for path, site in all_sites(model) if isinstance(site, Linear) and part in path
        ]
        if not getattr(model.config, key) and any(site.bias is not None for site in linears):
            model.config = replace(model.config, **{key: True})
            for site in linears:
                if site.bias is None:
                    site.bias = nn.Parameter(
                        site.weight.new_zeros(site.out_features), requires_grad=False
                    )


def merge_and_compare(model: nn.Module, ids: Tensor) -> tuple[float, float]:
    """Merge, and measure what that did to the logits of ids int64 [1, T], in the model's dtype.

    Returns the largest difference of a logit, and the standard deviation of the unmerged logits to compare it with. Raises UserError as `merge` does.
    """
    check(model)
    with torch.inference_mode():
        before = model(ids)
    merge(model)
    with torch.inference_mode():
        return (model(ids) - before).abs().max().item(), before.std().item()


@torch.no_grad()
def check(model: nn.Module) -> list[str]:
    """The names of the adapters that are on, once everything has been computed and nothing kept: that takes no room for a second copy of the weights.

    Raises UserError with the adapter, the place and the reason when something cannot be folded.
    """
    for path, site in active_sites(model):
        try:
            weight, bias = folded(site)
        except UserError as error:
            on = [
                one
                for entry in site.active
                for one in (entry.members if isinstance(entry, Composition) else [entry])
            ]
            names = " and ".join(
                f"{name!r} ({one.config.kind})"
                for name, one in site.adapters.items()
                if any(one is other for other in on)
            )
            raise UserError(
                f"adapter {names} at {path} cannot be merged: {error}; {UNMERGED}"
            ) from None
        if not all(value is None or is_finite(value) for value in (weight, bias)):
            raise UserError(
                f"merged, {path} would hold NaN or infinite values, as {site.weight.dtype}: the adapter is broken, or the dtype too narrow"
            )
    on = list(dict.fromkeys(name for _, name, _ in in_use(model)))
    for name in adapter_names(model):
        built_on = [
            member
            for member in next(iter(adapters_named(model, name).values())).members
            if member in on
        ]
        if built_on and name not in on:
            raise UserError(
                f"adapter {name!r} is built on {built_on[0]!r}, which would be merged: remove it first"
            )
    return on


def active_sites(model: nn.Module) -> Iterator[tuple[str, Site]]:
    return ((path, site) for path, site in all_sites(model) if site.active)


def folded(site: Site) -> Folded:
    """The weight and bias of a site with all that is on in them, in the dtype of the site; the site's own where nothing changes. Raises UserError."""
    own = getattr(site, "weight", None), getattr(site, "bias", None)
    base = tuple(None if value is None else value.float() for value in own)
    weight, bias = base
    for entry in site.active:
        weight, bias = fold(entry, weight, bias, base, site)
    for entry in site.active:
        scale = input_scale(entry)
        weight = weight if scale is None else weight * scale
    dtype = own[0].dtype
    return tuple(
        old if value is start else value.to(dtype)
        for old, value, start in zip(own, (weight, bias), base, strict=True)
    )


def fold(entry, weight: Tensor, bias: Tensor | None, base: Folded, site: Site) -> Folded:
    """What an entry of a site's active tuple does behind f, folded into float32 weight and bias. Raises UserError with the reason alone."""
    if isinstance(entry, Rows):
        raise UserError("each row of a batch has an adapter of its own")
    if isinstance(entry, Average):
        return fold_average(entry, weight, bias, base, site)
    if isinstance(entry, Group):
        for part in entry.parts.values():
            weight, bias = fold(part, weight, bias, base, site)
        return weight, bias
    if type(entry).merged is Adapter.merged:
        raise UserError(f"{type(entry).__name__} is not a linear map of one weight")
    if isinstance(entry, IA3) and entry.options.scales == "input":
        return weight, bias
    leaves = (
        OF_THE_BASE.get(type(entry), ()) if site.kind != "embedding" else ()
    )  # in an embedding, the rows of tokens replace whatever was there
    for leaf, now, start in zip(("weight", "bias"), (weight, bias), base, strict=True):
        if leaf in leaves and now is not start:
            raise UserError(
                f"{type(entry).__name__} starts from the base's {leaf}, which another adapter in front of it has changed; apply it first"
            )
    if isinstance(entry, Full):  # adds what its copies differ from the base by
        return tuple(
            now if own is None else own if now is start else now + (own - start)
            for own, now, start in zip(
                (entry.weight, entry.bias), (weight, bias), base, strict=True
            )
        )
    return entry.merged(weight, bias)


def fold_average(
    entry: Average, weight: Tensor, bias: Tensor | None, base: Folded, site: Site
) -> Folded:
    """The sum of share x what each member changes."""
    new_weight, new_bias = weight, bias
    for member, share in zip(entry.members, entry.shares, strict=True):
        one_weight, one_bias = fold(member, weight, bias, base, site)
        if one_weight is not weight:
            new_weight = new_weight + share * (one_weight - weight)
        if one_bias is not bias:
            change = share * (one_bias if bias is None else one_bias - bias)
            new_bias = change if new_bias is None else new_bias + change
    return new_weight, new_bias


def input_scale(entry) -> Tensor | None:
    """What an entry multiplies the features of f's input with [in], where it does."""
    if isinstance(entry, IA3):
        return entry.ia3_l[0] if entry.options.scales == "input" else None
    if isinstance(entry, Average):
        scales = [
            (input_scale(member), share)
            for member, share in zip(entry.members, entry.shares, strict=True)
        ]
        changes = [share * (scale - 1) for scale, share in scales if scale is not None]
        return 1 + sum(changes) if changes else None
    scales = (
        [scale for part in entry.parts.values() if (scale := input_scale(part)) is not None]
        if isinstance(entry, Group)
        else []
    )
    return torch.stack(scales).prod(dim=0) if scales else None


def fingerprint(model: nn.Module) -> str:
    """That of the merged model, the same that `load_model` finds once it is written. Where a change is so small that no sample shows it (some rows of
    an embedding), the new fingerprint is made from the old one."""
    samples = {
        name: sample_of(parameter)
        for name, parameter in model.named_parameters()
        if ".adapters." not in name
    }
    found = fingerprint_of(model.family, samples)
    return found if found != model.fingerprint else hashlib.sha256(found.encode()).hexdigest()[:16]

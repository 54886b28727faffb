"""Fold adapters into the weights beside them.

    x ── M ── W, b ── + B A ── · m ── ... ── y     W' = diag(m) (W + B A) Mᵀ     b' = m b

The adapters of a site are folded in the order of their application, each by its own hook `fold`.
What changes the input (IA3, OFT) comes last, wherever it stands: all the others see the changed
input too.
Norms and embeddings have the same chain without an input part.
"""

import hashlib
from dataclasses import replace

import torch
from torch import Tensor, nn

from adapters.attach import adapter_names, adapters_named, remove
from adapters.base import Folded
from adapters.compose import members_of
from adapters.in_use import in_use
from adapters.places import all_sites
from files.errors import UserError
from model.language import LanguageModel
from model.load import fingerprint_of, is_finite, sample_of
from model.quantize import dequantize
from model.sites import Linear, Site, base_parameters

UNMERGED = (
    "evaluate and generate use it unmerged; for transformers try export --for transformers, or "
    "make a LoRA of it with distil"
)
BIASES = {  # model_type -> setting of config.json -> part of the paths of the Linears it gives one
    "llama": {"attention_bias": ".self_attn.", "mlp_bias": ".mlp."},
    "qwen3": {"attention_bias": ".self_attn."},
    "opt": {"enable_bias": ".layers."},
}


@torch.no_grad()
def merge(model: LanguageModel) -> None:
    """Fold every adapter that is switched on into its weights, in float32, cast once.

    Adapters switched off stay as they are. The model is another base from then on: its fingerprint
    changes, so that adapters made for the old one are not loaded onto it. A head that was tied to
    the embedding gets a weight of its own if the two differ now. A Linear without a bias gets one
    if an adapter has one, and with it the Linears that config.json cannot give one without;
    model.config follows. All weights of a quantised model become plain ones in the model's dtype:
    its answers are those of the quantised model with the adapter, to rounding.

    Raises UserError, with the model unchanged, if an adapter that is on cannot be folded.
    """
    names = check(model)
    if not names:
        return
    dequantize(model)  # rounding the sum again would be another model
    tied = model.tied
    for _, site in active_sites(model):
        set_values(site, *folded(site))
    if tied and not model.tied:
        if torch.equal(model.lm_head.weight, model.input_embedding.weight):  # both changed alike
            model.tie()
        else:
            model.config = replace(model.config, tie_word_embeddings=False)
    fill_biases(model)
    for name in names:
        remove(model, name)
    model.fingerprint = fingerprint(model)


def fill_biases(model: LanguageModel) -> None:
    """Give zeros to the Linears that share a setting of config.json with one that got a bias."""
    for key, part in BIASES.get(model.config.model_type, {}).items():
        here = [site for path, site in all_sites(model) if part in path]
        linears = [site for site in here if isinstance(site, Linear)]
        if not getattr(model.config, key) and any(site.bias is not None for site in linears):
            model.config = replace(model.config, **{key: True})
            for site in linears:
                if site.bias is None:
                    zeros = site.weight.new_zeros(site.out_features)
                    site.bias = nn.Parameter(zeros, requires_grad=False)


def merge_and_compare(model: LanguageModel, ids: Tensor) -> tuple[float, float]:
    """Merge, and measure what that did to the logits of ids int64 [1, T], in the model's dtype.

    Returns the largest difference of a logit, and the standard deviation of the unmerged logits to
    compare it with. Raises UserError as `merge` does.
    """
    check(model)
    with torch.inference_mode():
        before = model(ids)
    merge(model)
    with torch.inference_mode():
        return (model(ids) - before).abs().max().item(), before.std().item()


@torch.no_grad()
def check(model: LanguageModel) -> list[str]:
    """The names of the adapters that are on, after folding everything once and keeping nothing.

    So no room for a second copy of the weights is taken. Raises UserError with the adapter, the
    place and the reason if something cannot be folded.
    """
    for path, site in active_sites(model):
        try:
            values = folded(site)
        except UserError as error:
            on = [id(adapter) for entry in site.active for adapter in members_of(entry)]
            here = {name: a.config.kind for name, a in site.adapters.items() if id(a) in on}
            names = " and ".join(f"{name!r} ({kind})" for name, kind in here.items())
            wrong = f"adapter {names} at {path} cannot be merged: {error}"
            raise UserError(f"{wrong}; {UNMERGED}") from None
        if not all(value is None or is_finite(value) for value in values):
            raise UserError(
                f"merged, {path} would hold NaN or infinite values, as {site.weight.dtype}: the "
                "adapter is broken, or the dtype too narrow"
            )
    on = list(dict.fromkeys(name for _, name, _ in in_use(model)))
    for name in adapter_names(model):
        members = next(iter(adapters_named(model, name).values())).members
        merged = [member for member in members if member in on]
        if merged and name not in on:
            raise UserError(
                f"adapter {name!r} is built on {merged[0]!r}, which would be merged: "
                "remove it first"
            )
    return on


def active_sites(model: LanguageModel) -> list[tuple[str, Site]]:
    return [(path, site) for path, site in all_sites(model) if site.active]


def folded(site: Site) -> tuple[Tensor | None, Tensor | None]:
    """Weight and bias of a site with all that is on in them, in its dtype. Raises UserError.

    What nothing changes is the site's own tensor.
    """
    own = getattr(site, "weight", None), getattr(site, "bias", None)
    base = tuple(None if value is None else value.float() for value in own)
    f = Folded(site, base, *base)
    for entry in site.active:
        f = entry.fold(f)
    weight = f.through(f.weight)
    return tuple(
        old if value is start else value.to(own[0].dtype)
        for old, value, start in zip(own, (weight, f.bias), base, strict=True)
    )


def set_values(site: Site, weight: Tensor | None, bias: Tensor | None) -> None:
    """Give a site these of its own, where they are other tensors than it has."""
    for leaf, value in (("weight", weight), ("bias", bias)):
        if value is not getattr(site, leaf):
            setattr(site, leaf, nn.Parameter(value.detach(), requires_grad=False))


def fingerprint(model: LanguageModel) -> str:
    """The fingerprint of the merged model, which `load_model` computes once it is written.

    If no sample shows the change (some rows of an embedding), it is made from the old fingerprint.
    """
    samples = {name: sample_of(weight) for name, weight in base_parameters(model).items()}
    new = fingerprint_of(model.family, samples)
    return new if new != model.fingerprint else hashlib.sha256(new.encode()).hexdigest()[:16]

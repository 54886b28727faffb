"""A model with adapters in it as a folder that transformers loads with trust_remote_code=True.

    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)

What can be folded into the weights is folded, site by site. What cannot is written beside them,
with modeling_adapter.py, which computes it: bottlenecks, prefixes, prompts, invertible adapters,
fusions, gates, LoReFT.
"""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from adapters.attach import in_order
from adapters.base import Adapter
from adapters.compose import Composition
from adapters.formats.merged_model import CLASSES, changes, name_tokenizer, write_model
from adapters.in_use import parts_of
from adapters.merge import folded, set_values
from adapters.methods.bottleneck import Bottleneck
from adapters.methods.fusion import Fusion
from adapters.methods.invertible import Invertible
from adapters.methods.lora import LowRank
from adapters.methods.loreft import LoReFT
from adapters.methods.prefix import Prefix
from adapters.methods.prompt import SoftPrompt
from adapters.places import all_sites
from files.errors import UserError
from files.writing import write_text
from model.language import LanguageModel
from model.quantize import dequantize
from model.sites import Linear, Site, base_parameters

MODELING = Path(__file__).with_name("modeling_adapter.py")


class Spec:
    """One part as the folder has it: its kind, its options, its tensors by leaf."""

    def __init__(
        self, kind: str, tensors: dict[str, Tensor], members: "list[Spec]" = (), **options
    ):
        self.kind, self.tensors, self.members, self.options = kind, tensors, members, options

    def table(self) -> dict:
        """What config.json says of it."""
        table = {"kind": self.kind, "shapes": {n: list(t.shape) for n, t in self.tensors.items()}}
        members = {"members": [member.table() for member in self.members]} if self.members else {}
        return table | self.options | members

    def named(self, prefix: str) -> dict[str, Tensor]:
        """Its tensors as the model's files have them."""
        tensors = {f"{prefix}.{name}": tensor for name, tensor in self.tensors.items()}
        for number, member in enumerate(self.members):
            tensors |= member.named(f"{prefix}.members.{number}")
        return tensors


@torch.no_grad()
def export_with_adapters(
    model: LanguageModel, folder: str | Path, shard_bytes: int = 5_000_000_000
) -> list[Path]:
    """Write the model and what is on in it into `folder`, new or empty; returns the files.

    Folds what can be folded into the model's own weights: load it again to go on with it. Raises
    UserError, before anything is written, for an adapter that has no form here, and as
    `export_model` does.
    """
    places, embed, pairs = take_apart(model)
    specs = [spec for place in places for spec in place["parts"]] + embed
    prefix = 0 if pairs is None else pairs.shape[3]
    prompt = sum(len(spec.tensors["prompt"]) for spec in embed if spec.kind == "prompt")
    if (prefix or prompt) and getattr(model.config, "sliding_window", None):
        raise UserError(
            "a sliding window drops the virtual tokens of a prefix or prompt after a while: "
            "transformers would answer otherwise than evaluate and generate"
        )
    base = CLASSES[model.config.model_type]
    config = changes(model, set(base_parameters(model))) | {
        "architectures": ["ModelWithAdapter"],
        "auto_map": {
            "AutoConfig": "modeling_adapter.AdapterConfig",
            "AutoModelForCausalLM": "modeling_adapter.ModelWithAdapter",
        },
        # of its own, so that no program loads the base model and passes over the adapter
        "model_type": f"llm_adapters_{model.config.model_type}",
        "adapter": {
            "places": [
                place | {"parts": [spec.table() for spec in place["parts"]]} for place in places
            ],
            "embed": [spec.table() for spec in embed],
            "prefix": prefix,
            "prefix_shape": None if pairs is None else list(pairs.shape),
            "prompt": prompt,
        },
    }
    tensors = {} if pairs is None else {"adapter_prefix": pairs}
    for number, spec in enumerate(specs):
        tensors |= spec.named(f"adapter_parts.{number}")
    dtype = model.input_embedding.weight.dtype
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}
    folder = Path(folder)
    write_model(model, folder, config, tensors, shard_bytes)
    code = MODELING.read_text(encoding="utf-8").replace('"LlamaForCausalLM"', f'"{base}"')
    write_text(folder / MODELING.name, code)
    name_tokenizer(folder)
    return sorted(folder.iterdir())


def take_apart(model: LanguageModel) -> tuple[list[dict], list[Spec], Tensor | None]:
    """Fold what can be; (places with their parts, parts of the embedding, prefix) of the rest.

    A prefix is [layers, 2, K, length, D], keys and values. Raises UserError.
    """
    if any(isinstance(entry, Composition) for entry in in_order(model)):
        raise UserError(
            "adapters that are averaged or by row have no form in one folder: combine makes one of "
            "them"
        )
    dequantize(model)
    tied = model.tied
    places, embed, prefixes = [], [], {}
    for path, site in all_sites(model):
        parts = [part for entry in site.active for _, part in parts_of("", entry)]
        if site.kind == "keys and values":
            prefixes[path] = parts
        elif site.kind == "embedding":
            rest = [part for part in parts if isinstance(part, SoftPrompt | Invertible)]
            fold(site, [part for part in parts if part not in rest], path, at_least=True)
            embed += [spec_of(part, site, path) for part in rest]
        elif parts:
            rest, bias = fold(site, parts, path)
            specs = bias + [spec_of(part, site, path) for part in rest]
            if specs:
                places.append(place_of(model, path, site) | {"parts": specs})
        site.active = ()
    if tied and not model.tied:
        model.config = replace(model.config, tie_word_embeddings=False)
    return places, embed, prefix_of(prefixes)


def fold(
    site: Site, parts: list[Adapter], path: str, at_least: bool = False
) -> tuple[list[Adapter], list[Spec]]:
    """Fold the first parts of a site into its weight, as many as can be; (the rest, a bias).

    The bias is one that the site had not. at_least: all of them. Raises UserError.
    """
    done = 0
    if hasattr(site, "weight"):
        for done in range(len(parts), -1, -1):
            site.active = tuple(parts[:done])
            try:
                weight, bias = folded(site)
            except UserError:
                if at_least and done == len(parts):
                    raise
            else:
                break
        scales_input = any(part.changes_input for part in parts[:done])
        if scales_input and done < len(parts):
            raise UserError(
                f"{path}: an adapter that scales the input has no form in one folder together with "
                f"a {parts[done].config.kind} adapter there"
            )
        new = bias if site.bias is None and isinstance(site, Linear) else None
        set_values(site, weight, bias if new is None else None)
        if new is not None:
            return parts[done:], [Spec("bias", {"bias": new})]
    return parts[done:], []


def spec_of(part: Adapter, site: Site, path: str) -> Spec:
    """What the folder has of a part that is not folded. Raises UserError if it has no form."""
    if isinstance(part, Bottleneck):
        o, tensors = part.options, {"down": part.adapter_down, "up": part.scale * part.adapter_up}
        gate = {} if part.adapter_gate is None else {"gate": part.adapter_gate}
        return Spec("bottleneck", tensors | gate, reads=o.reads, writes=o.writes, act=o.act)
    if isinstance(part, LowRank):
        try:
            A, B = part.factors()
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        bias, gate = (getattr(part, f"lora_{leaf}", None) for leaf in ("B_bias", "gate"))
        more = {} if bias is None else {"bias": part.scale * bias}
        return Spec("low_rank", {"A": A, "B": B} | more | ({} if gate is None else {"gate": gate}))
    if isinstance(part, Fusion):
        members = [
            spec_of(member, site, path)
            for name in part.members
            for _, member in parts_of("", site.adapters[name])
        ]
        if len(members) == len(part.members):
            tensors = {"query": part.query, "key": part.fusion_key, "value": part.value}
            return Spec("fusion", tensors, members)
    if isinstance(part, Invertible):
        return Spec("invertible", dict(part.named_parameters()), act=part.options.act)
    if isinstance(part, LoReFT):
        R, o = part.rotation(), part.options
        D = part.reft_W - R if o.form == "loreft" else part.reft_W
        tensors = {"R": R, "D": D, "b": part.reft_b}
        return Spec("intervention", tensors, first=o.first, last=o.last)
    if isinstance(part, SoftPrompt):
        return Spec("prompt", {"prompt": part.embeddings()})
    raise UserError(
        f"a {part.config.kind} adapter at {path} has no form in a folder for transformers where it "
        "cannot be folded into the weight; evaluate and generate use it as it is"
    )


def place_of(model: LanguageModel, path: str, site: Site) -> dict:
    """The module that gives a site's input, and that whose output is changed, if another."""
    if hasattr(site, "weight"):
        return {"read": path}
    block, _, name = path.rpartition(".")
    if site.kind == "block":
        return {"read": block, "block": True}
    sites = model.sites
    first = (sites.get("q") or sites["qkv"]) if name == sites["attn"] else sites["up"]
    last = sites["o"] if name == sites["attn"] else sites["down"]
    return {"read": f"{block}.{first}", "write": f"{block}.{last}"}


def prefix_of(layers: dict[str, list[Adapter]]) -> Tensor | None:
    """Keys and values [layers, 2, K, length, D] that the cache starts with. Raises UserError."""
    if not any(layers.values()):
        return None
    stacked = []
    for path, parts in layers.items():
        wrong = next((part for part in parts if not isinstance(part, Prefix)), None)
        if wrong is not None:
            raise UserError(f"a {wrong.config.kind} adapter at {path} has no form in such a folder")
        pairs = [part.pairs().view(part.virtual, 2, part.heads, -1) for part in reversed(parts)]
        stacked.append(torch.cat(pairs).permute(1, 2, 0, 3) if pairs else None)
    if any(pairs is None or pairs.shape != stacked[0].shape for pairs in stacked):
        raise UserError(
            "a prefix in some of the layers has no form in a folder for transformers, whose cache "
            "has one length"
        )
    return torch.stack(stacked)

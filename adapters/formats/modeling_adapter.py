"""A language model with an adapter in it, for transformers (trust_remote_code=True).

Written by LLM-Adapters. config.json says in "adapter" which parts sit where; their weights are in
the model's safetensors under "adapter_parts". What could be merged into the weights is merged.

    Linear        x ── before ── f ── after ── y
    sub-layer     x, the input of its first Linear; y, the output of its last, before the residual
    prefix        keys and values that the cache of every text starts with
    prompt        embeddings in front of every text
    block         its output, at some tokens of the prompt: those of the first pass of a text
"""

import inspect

import torch
import torch.nn.functional as F
import transformers
from torch import nn

BASE = "LlamaForCausalLM"
Base = getattr(transformers, BASE)
NAMES = inspect.signature(Base.forward).parameters
CACHE = "cache" if "cache" in NAMES else "past_key_values"  # transformers before 5.24
ACTIVATIONS = {"tanh": torch.tanh, "relu": F.relu, "gelu": F.gelu, "silu": F.silu}
ACTIVATIONS["none"] = lambda x: x


class Part(nn.Module):
    """Parameters of the given shapes, and hooks that change nothing."""

    def __init__(self, shapes, **options):
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape), requires_grad=False))
        self.has = set(shapes)
        self.options = options

    def before(self, x):
        return x

    def after(self, y, x):
        return y

    def embed(self, x, first):
        return x

    def unembed(self, h):
        return h

    def gated(self, x, delta):
        """delta [B, T, out], times sigmoid(gate x) of each token where there is a gate."""
        return torch.sigmoid(F.linear(x, self.gate)) * delta if "gate" in self.has else delta


class Bottleneck(Part):
    """s · U act(D h), h the input or the output of a computation."""

    def delta(self, h):
        act = ACTIVATIONS[self.options["act"]]
        return self.gated(h, F.linear(act(F.linear(h, self.down)), self.up))

    def before(self, x):
        return x + self.delta(x) if self.options["writes"] == "input" else x

    def after(self, y, x):
        if self.options["writes"] == "input":
            return y
        return y + self.delta(y if self.options["reads"] == "output" else x)


class LowRank(Part):
    """B A x."""

    def after(self, y, x):
        bias = self.bias if "bias" in self.has else None
        return y + self.gated(x, F.linear(F.linear(x, self.A), self.B, bias))


class Intervention(Part):
    """h + Rᵀ (D h + b) at the first and last tokens of the prompt."""

    def after(self, y, places):
        h, *more = y if isinstance(y, tuple) else (y,)
        before, left = places.unbind(-1)
        chosen = (before < self.options["first"]) | (left < self.options["last"])
        chosen &= (before >= 0) & (left >= 0)
        h = torch.where(chosen[..., None], h + F.linear(h, self.D, self.b) @ self.R, h)
        return (h, *more) if isinstance(y, tuple) else h


class Bias(Part):
    """b, beside a Linear that the architecture gives no bias."""

    def after(self, y, x):
        return y + self.bias


class Fusion(Part):
    """sum over i of softmax((Q y) · (K dᵢ)) V dᵢ, dᵢ what adapter i adds to y."""

    def __init__(self, shapes, members):
        super().__init__(shapes)
        self.members = nn.ModuleList(part_of(member) for member in members)

    def after(self, y, x):
        changes = torch.stack([member.after(y, x) - y for member in self.members], dim=-2)
        scores = F.linear(changes, self.key) @ F.linear(y, self.query)[..., None]
        mixed = (scores.float().softmax(dim=-2).to(y.dtype) * changes).sum(dim=-2)
        return y + F.linear(mixed, self.value)


class Prompt(Part):
    """[p; x]."""

    def embed(self, x, first):
        return torch.cat((self.prompt.to(x.dtype).expand(len(x), -1, -1), x), 1) if first else x


class Invertible(Part):
    """A coupling of the halves of the embedding, and its inverse in front of the head."""

    def couple(self, which, x):
        down, up = (getattr(self, f"{which}_{end}") for end in ("down", "up"))
        return F.linear(ACTIVATIONS[self.options["act"]](F.linear(x, down)), up)

    def halves(self, x):
        return x.split((len(self.F_up), len(self.G_up)), dim=-1)

    def embed(self, x, first):
        x1, x2 = self.halves(x)
        y1 = x1 + self.couple("F", x2)
        return torch.cat((y1, x2 + self.couple("G", y1)), dim=-1)

    def unembed(self, h):
        h1, h2 = self.halves(h)
        z2 = h2 - self.couple("G", h1)
        return torch.cat((h1 - self.couple("F", z2), z2), dim=-1)


KINDS = {
    "bottleneck": Bottleneck, "low_rank": LowRank, "bias": Bias, "fusion": Fusion,
    "prompt": Prompt, "invertible": Invertible, "intervention": Intervention,
}  # fmt: skip


def part_of(entry):
    entry = dict(entry)
    return KINDS[entry.pop("kind")](**entry)


class AdapterConfig(Base.config_class):
    model_type = f"llm_adapters_{Base.config_class.model_type}"


class ModelWithAdapter(Base):
    config_class = AdapterConfig

    def __init__(self, config):
        super().__init__(config)
        adapter = config.adapter
        self.adapter_parts = nn.ModuleList()
        places = [[self.add(entry) for entry in place["parts"]] for place in adapter["places"]]
        for place, parts in sorted(  # a sub-layer reads its input before a Linear changes it
            zip(adapter["places"], places, strict=True), key=lambda pair: "write" not in pair[0]
        ):
            self.put(place, parts)
        self.embed_parts = [self.add(entry) for entry in adapter["embed"]]
        self.prefix_length, self.prompt_length = adapter["prefix"], adapter["prompt"]
        if self.prefix_length:  # [layers, 2, heads, length, head size]
            self.adapter_prefix = nn.Parameter(torch.zeros(adapter["prefix_shape"]), False)
        self.get_output_embeddings().register_forward_pre_hook(self.unembed)
        self.post_init()

    def add(self, entry):
        self.adapter_parts.append(part_of(entry))
        return self.adapter_parts[-1]

    def put(self, place, parts):
        """Hooks of the parts at a Linear ("read") or from one Linear to another ("write")."""
        read = self.get_submodule(place["read"])
        seen = {}

        def before(module, inputs):
            x = inputs[0]
            if "write" in place:
                seen["x"] = x
                return None
            for part in parts:
                x = part.before(x)
            return (x, *inputs[1:])

        def after(module, inputs, y):
            x = seen.pop("x", self.places if "block" in place else inputs[0])
            for part in parts:
                y = part.after(y, x)
            return y

        if "block" not in place:
            read.register_forward_pre_hook(before)
        self.get_submodule(place.get("write", place["read"])).register_forward_hook(after)

    def unembed(self, module, inputs):
        h = inputs[0]
        for part in reversed(self.embed_parts):
            h = part.unembed(h)
        return (h, *inputs[1:])

    def forward(
        self, input_ids=None, attention_mask=None, position_ids=None, inputs_embeds=None,
        labels=None, use_cache=None, cache=None, past_key_values=None, logits_to_keep=0, **kwargs,
    ):  # fmt: skip
        cache = past_key_values if cache is None else cache
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        B, T, device = len(inputs_embeds), inputs_embeds.shape[1], inputs_embeds.device
        prefix, prompt = self.prefix_length, self.prompt_length
        virtual = prefix + prompt
        first = cache is None or cache.get_seq_length() == 0
        past = 0 if first else cache.get_seq_length() - virtual
        mask = attention_mask
        if mask is None:
            mask = torch.ones(B, past + T, dtype=torch.long, device=device)
        before = mask.long().cumsum(dim=1)[:, -T:] - 1  # tokens of a row before each
        left = before[:, -1:] - before if first else torch.full_like(before, -1)
        self.places = F.pad(torch.stack((before, left), -1), (0, 0, prompt * first, 0), value=-1)
        for part in self.embed_parts:
            inputs_embeds = part.embed(inputs_embeds, first)
        if first and prefix:
            cache = transformers.DynamicCache() if cache is None else cache
            for layer, pairs in enumerate(self.adapter_prefix.to(inputs_embeds.dtype)):
                keys, values = pairs[:, None].expand(-1, B, -1, -1, -1)
                cache.update(keys, values, layer)
        if virtual:
            position_ids = (before.clamp(min=0) if position_ids is None else position_ids) + virtual
            front = torch.ones(B, virtual, dtype=mask.dtype, device=device)
            attention_mask = torch.cat((front, mask), dim=1)
            if first and prompt:
                own = torch.arange(prefix, virtual, device=device).expand(B, -1)
                position_ids = torch.cat((own, position_ids.expand(B, -1)), dim=1)
                if labels is not None:
                    labels = torch.cat((labels.new_full((B, prompt), -100), labels), dim=1)
        if position_ids is not None and "position_ids" in NAMES:
            kwargs["position_ids"] = position_ids
        output = super().forward(
            inputs_embeds=inputs_embeds, attention_mask=attention_mask, labels=labels,
            use_cache=use_cache, logits_to_keep=logits_to_keep, **{CACHE: cache}, **kwargs,
        )  # fmt: skip
        if output.logits.shape[1] > T:  # those of the prompt
            output.logits = output.logits[:, -T:]
        return output

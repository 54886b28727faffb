"""The paper's adapters as its code computes them, and the files that it writes."""

import json
import re

import torch
from methods import IDS
from torch import nn

from adapters.places import all_sites

FIRST = {
    "llama": ["gate_proj", "up_proj"],
    "bloom": ["dense_h_to_4h"],
    "opt": ["fc1"],
    "gptj": ["fc_in"],
}  # mh_adapter
LAST = {
    "llama": "down_proj",
    "bloom": "dense_4h_to_h",
    "opt": "fc2",
    "gptj": "fc_out",
}  # output_adapter
QKV = {
    "llama": ["q_proj", "k_proj", "v_proj"],
    "bloom": ["query_key_value"],
    "opt": ["q_proj", "k_proj", "v_proj"],
    "gptj": ["q_proj", "k_proj", "v_proj"],
}
ACTS = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "gelu": nn.functional.gelu,
    "silu": nn.functional.silu,
    "swish": nn.functional.silu,
    "linear": lambda x: x,
}
BLOOM_LORA = {
    "peft_type": "LORA",
    "r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.05,
    "target_modules": ["query_key_value"],
    "bias": "none",
    "fan_in_fan_out": False,
    "enable_lora": [True, False, True],
    "merge_weights": False,
    "modules_to_save": None,
}


class Theirs(nn.Module):
    """A Linear with an adapter as the formulas of the paper's code say."""

    def __init__(self, linear, raw: dict, kind: str, down, up, scale):
        super().__init__()
        self.weight, self.bias, self.raw, self.kind, self.down, self.up, self.scale = (
            linear.weight,
            linear.bias,
            raw,
            kind,
            down,
            up,
            scale,
        )

    def forward(self, x):
        def f(h):
            return ACTS[self.raw["non_linearity"]](h @ self.down.T) @ self.up.T * self.scale

        def linear(h):
            return h @ self.weight.T + (0 if self.bias is None else self.bias)

        if self.kind == "mh_adapter":
            return linear(x + f(x))
        return linear(x) + f(linear(x) if self.kind == "output_adapter" else x)


class TheirMerged(nn.Module):
    """A fused Linear with a LoRA on the first third of its rows and one on the last (their
    MergedLinear).
    """

    def __init__(self, linear, A, B, scale):
        super().__init__()
        self.weight, self.bias, self.A, self.B, self.scale = linear.weight, linear.bias, A, B, scale

    def forward(self, x):
        y = x @ self.weight.T + self.bias
        inner = nn.functional.conv1d((x @ self.A.T).transpose(1, 2), self.B, groups=2).transpose(
            1, 2
        )
        first, last = inner.chunk(2, dim=-1)
        return y + self.scale * torch.cat((first, torch.zeros_like(first), last), dim=-1)


def targeted(model, targets) -> list[str]:
    linears = [path for path, site in all_sites(model) if site.kind == "Linear"]
    return [
        path
        for path in linears
        if (
            re.fullmatch(targets, path)
            if isinstance(targets, str)
            else any(path.endswith(one) for one in targets)
        )
    ]


def make(folder, model, **changes):
    """A file as the paper's code leaves it, of random numbers -> the logits that its code
    computes.
    """
    raw = {
        "peft_type": "BOTTLENECK",
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "base_model_name_or_path": "yahma/llama-7b-hf",
        "bottleneck_size": 5,
        "non_linearity": "tanh",
        "adapter_dropout": 0.0,
        "scaling": 1.0,
        "use_parallel_adapter": False,
        "use_adapterp": False,
        "init_weights": "bert",
        "bias": "none",
        "modules_to_save": None,
    } | changes
    generator = torch.Generator().manual_seed(7)
    tensors = {}
    for path in targeted(model, raw["target_modules"]):
        linear = model.get_submodule(path)
        leaf = path.rpartition(".")[2]
        kind = (
            "parallel_adapter"
            if raw["use_parallel_adapter"]
            else "mh_adapter"
            if leaf in FIRST[model.family]
            else "output_adapter"
        )
        read = linear.out_features if kind == "output_adapter" else linear.in_features
        write = linear.in_features if kind == "mh_adapter" else linear.out_features
        down, up = (
            0.3 * torch.randn(5, read, generator=generator),
            0.3 * torch.randn(write, 5, generator=generator),
        )
        tensors[f"base_model.model.{path}.adapter_down.weight"] = down
        tensors[f"base_model.model.{path}.adapter_up.weight"] = up
        scale = raw["scaling"]
        if scale == "learned":
            scale = tensors[f"base_model.model.{path}.adapter_scaling"] = (
                torch.rand(1, generator=generator) + 0.5
            )
        parent, _, leaf = path.rpartition(".")
        setattr(model.get_submodule(parent), leaf, Theirs(linear, raw, kind, down, up, scale))
    write_files(folder, raw, tensors)
    return model(IDS)


def make_merged(folder, model, **changes):
    """The same of BLOOM's LoRA."""
    raw = BLOOM_LORA | changes
    generator = torch.Generator().manual_seed(7)
    tensors = {}
    for layer, block in enumerate(model.transformer.h):
        A, B = (
            0.3 * torch.randn(8, 32, generator=generator),
            0.3 * torch.randn(64, 4, 1, generator=generator),
        )
        path = f"base_model.model.transformer.h.{layer}.self_attention.query_key_value"
        tensors |= {f"{path}.lora_A.weight": A, f"{path}.lora_B.weight": B}
        block.self_attention.query_key_value = TheirMerged(
            block.self_attention.query_key_value, A, B, raw["lora_alpha"] / raw["r"]
        )
    write_files(folder, raw, tensors)
    return model(IDS)


def write_files(folder, raw: dict, tensors: dict) -> None:
    folder.mkdir(exist_ok=True)
    torch.save(tensors, folder / "adapter_model.bin")
    (folder / "adapter_config.json").write_text(json.dumps(raw))

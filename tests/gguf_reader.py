"""The logits of a GGUF file: llama.cpp's computation by the names, layout and fields of the file
only, in plain torch. And what llama.cpp itself makes of it, where it is installed."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

needs_llama_cpp = pytest.mark.skipif(
    find_spec("llama_cpp") is None,
    reason="llama.cpp is not installed: pip install llama-cpp-python",
)


def package():
    """gguf, which takes half a second to import."""
    return pytest.importorskip("gguf", reason="gguf is not installed (requirements-dev.txt)")


class File:
    """A GGUF file: `file[key]` is a field, `tensors` in float32 by name, `types` of the tensors."""

    def __init__(self, path: Path):
        gguf = package()
        reader = gguf.GGUFReader(path)
        self.fields = reader.fields
        self.types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
        self.tensors = {
            tensor.name: torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type))
            for tensor in reader.tensors
        }

    def __getitem__(self, key: str):
        return self.fields[key].contents()

    def get(self, key: str, default=None):
        """A field of the architecture."""
        key = f"{self['general.architecture']}.{key}"
        return self[key] if key in self.fields else default


def logits(path: Path, ids: list[int], lora: Path | None = None) -> Tensor:
    """[T, V] of one text."""
    base, adapter = File(path), File(lora) if lora else None
    architecture, t = base["general.architecture"], base.tensors
    bloom = architecture == "bloom"
    H, K, D = (
        base.get(f"attention.{key}") for key in ("head_count", "head_count_kv", "key_length")
    )
    T = len(ids)
    if adapter:
        assert adapter["general.type"] == "adapter"
        assert adapter["general.architecture"] == architecture

    def pair(name):
        if not adapter or f"{name}.weight.lora_a" not in adapter.tensors:
            return None
        A, B = (adapter.tensors[f"{name}.weight.lora_{leaf}"] for leaf in "ab")
        return A, B * (adapter["adapter.lora.alpha"] / B.shape[1])

    def linear(x, name):
        y = F.linear(x, t[f"{name}.weight"], t.get(f"{name}.bias"))
        return y if pair(name) is None else y + x @ pair(name)[0].T @ pair(name)[1].T

    def norm(x, name):
        if bloom:
            weight, bias = t[f"{name}.weight"], t[f"{name}.bias"]
            return F.layer_norm(
                x, weight.shape, weight, bias, base.get("attention.layer_norm_epsilon")
            )
        eps = base.get("attention.layer_norm_rms_epsilon")
        return x * (x.pow(2).mean(-1, keepdim=True) + eps).rsqrt() * t[f"{name}.weight"]

    def rotate(x):  # [T, heads, D]
        angles = base.get("rope.freq_base") ** (-torch.arange(0, D, 2) / D)
        angles = torch.arange(T)[:, None] * angles / t.get("rope_freqs.weight", torch.ones(()))
        factor = base.get("rope.scaling.attn_factor", 1.0)
        cos, sin = (factor * f(angles)[:, None] for f in (torch.cos, torch.sin))
        first, second = (x[..., ::2], x[..., 1::2]) if architecture == "llama" else x.chunk(2, -1)
        parts = first * cos - second * sin, first * sin + second * cos
        return (
            torch.stack(parts, -1).flatten(-2) if architecture == "llama" else torch.cat(parts, -1)
        )

    x = t["token_embd.weight"][ids]
    if pair("token_embd"):
        x = x + pair("token_embd")[0][ids] @ pair("token_embd")[1].T
    x = norm(x, "token_embd_norm") if bloom else x
    distance = torch.arange(T)[:, None] - torch.arange(T)
    bias = torch.zeros(H, T, T)
    if bloom:  # as ggml makes the slopes
        n, most = 2 ** (H.bit_length() - 1), base.get("attention.max_alibi_bias")
        slopes = [
            2 ** (-most / n * (h + 1)) if h < n else 2 ** (-most / 2 / n * (2 * (h - n) + 1))
            for h in range(H)
        ]
        bias = -torch.tensor(slopes)[:, None, None] * distance
    bias = bias.masked_fill(distance < 0, -torch.inf)
    for i in range(base.get("block_count")):
        h = norm(x, f"blk.{i}.attn_norm")
        if bloom:
            q, k, v = linear(h, f"blk.{i}.attn_qkv").chunk(3, -1)
        else:
            q, k, v = (linear(h, f"blk.{i}.attn_{leaf}") for leaf in "qkv")
        q, k, v = q.view(T, H, D), k.view(T, K, D), v.view(T, K, D)
        if f"blk.{i}.attn_q_norm.weight" in t:
            q, k = norm(q, f"blk.{i}.attn_q_norm"), norm(k, f"blk.{i}.attn_k_norm")
        q, k = (q, k) if bloom else (rotate(q), rotate(k))
        k, v = (y.repeat_interleave(H // K, 1).transpose(0, 1) for y in (k, v))
        scores = q.transpose(0, 1) @ k.transpose(1, 2) / D**0.5 + bias
        x = x + linear(
            (scores.softmax(-1) @ v).transpose(0, 1).reshape(T, -1), f"blk.{i}.attn_output"
        )
        h = norm(x, f"blk.{i}.ffn_norm")
        up = linear(h, f"blk.{i}.ffn_up")
        inner = (
            F.gelu(up, approximate="tanh") if bloom else F.silu(linear(h, f"blk.{i}.ffn_gate")) * up
        )
        x = x + linear(inner, f"blk.{i}.ffn_down")
    return linear(norm(x, "output_norm"), "output" if "output.weight" in t else "token_embd")


class LlamaCpp:
    """llama.cpp with a GGUF file, in float32 throughout; lora: a LoRA on it."""

    def __init__(self, path: Path, lora: Path | None = None, **options):
        import llama_cpp

        self.llama = llama_cpp.Llama(
            str(path), lora_path=str(lora) if lora else None, n_ctx=256, n_threads=1,
            n_threads_batch=1, logits_all=True, type_k=0, type_v=0, verbose=False, **options,
        )  # fmt: skip

    def ids(self, text: str, bos: bool = True) -> list[int]:
        return self.llama.tokenize(text.encode(), add_bos=bos, special=True)

    def logits(self, ids: list[int]) -> Tensor:
        self.llama.reset()
        self.llama.eval(ids)
        return torch.tensor(self.llama.scores[: len(ids)])

    def greedy(self, ids: list[int], count: int) -> list[int]:
        self.logits(ids)
        for n in range(len(ids), len(ids) + count):
            ids = [*ids, int(self.llama.scores[n - 1].argmax())]
            self.llama.eval(ids[-1:])
        return ids[-count:]

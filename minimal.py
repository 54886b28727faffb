"""LLM-Adapters in one file: a frozen LLaMA, an adapter beside its Linears, a training loop.

    python minimal.py [parallel | series | lora]

The model is the pocket LLaMA of this repository (0.9 million parameters). It was trained on word
problems, but on none that divides a sum. The adapter learns these in 120 steps, about 15 seconds
on one CPU core. tests/docs/test_minimal.py holds logits, loss and gradients of this file equal to
the project's. Shapes: B rows, T tokens, C hidden size, H heads, D = C / H, V vocabulary.
"""

import json
import math
import random
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

FOLDER = Path(__file__).parent / "model" / "pocket" / "llama"
EOS, PAD = 896, 897  # token ids


# ---------------------------------------------------------------- adapters
class Linear(nn.Linear):
    """A Linear without bias, with a place for an adapter: y = W x + adapter(x, W x)."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, bias=False)
        self.adapter: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if self.adapter is None else y + self.adapter(x, y)


class Bottleneck(nn.Module):
    """U tanh(D h). Parallel (He et al. 2022): h is the input x. Series (Houlsby et al. 2019): y."""

    def __init__(self, site: Linear, series: bool = False, size: int = 16):
        super().__init__()
        self.series = series
        width = site.out_features if series else site.in_features
        self.adapter_down = nn.Parameter(torch.empty(size, width))
        self.adapter_up = nn.Parameter(torch.zeros(site.out_features, size))  # zeros: no change yet
        nn.init.kaiming_uniform_(self.adapter_down, a=math.sqrt(5))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = F.linear(y if self.series else x, self.adapter_down)
        return F.linear(torch.tanh(h), self.adapter_up)


class LoRA(nn.Module):
    """(alpha / r) B A x: a change of W of rank r (Hu et al. 2021)."""

    def __init__(self, site: Linear, r: int = 16, alpha: float = 16.0):
        super().__init__()
        self.scale = alpha / r
        self.lora_A = nn.Parameter(torch.empty(r, site.in_features))
        self.lora_B = nn.Parameter(torch.zeros(site.out_features, r))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.scale * F.linear(F.linear(x, self.lora_A), self.lora_B)


def attach(model: nn.Module, method: str) -> list[nn.Parameter]:
    """Put an adapter beside every q, k, v and up; returns the parameters to train."""
    adapted = ("q_proj", "k_proj", "v_proj", "up_proj")
    sites = [module for name, module in model.named_modules() if name.endswith(adapted)]
    for site in sites:
        site.adapter = LoRA(site) if method == "lora" else Bottleneck(site, method == "series")
    return [parameter for site in sites for parameter in site.adapter.parameters()]


# ---------------------------------------------------------------- the model
def rotate(x: Tensor) -> Tensor:
    """Rotary positions: the pair (i, i + D/2) of x [B, H, T, D] turns by t * 10000^(-2i/D)."""
    T, D = x.shape[-2:]
    angles = torch.arange(T)[:, None] * 10000.0 ** -(torch.arange(0, D, 2) / D)  # [T, D/2]
    (a, b), cos, sin = x.chunk(2, dim=-1), angles.cos(), angles.sin()
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Attention(nn.Module):
    def __init__(self, C: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (Linear(C, C) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        projected = (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        q, k, v = (y.view(B, T, self.heads, -1).transpose(1, 2) for y in projected)  # [B, H, T, D]
        y = F.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, C))


class MLP(nn.Module):
    def __init__(self, C: int, inner: int):
        super().__init__()
        self.gate_proj, self.up_proj = Linear(C, inner), Linear(C, inner)
        self.down_proj = Linear(inner, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, config: dict):
        super().__init__()
        C, eps = config["hidden_size"], config["rms_norm_eps"]
        self.input_layernorm = nn.RMSNorm(C, eps)
        self.self_attn = Attention(C, config["num_attention_heads"])
        self.post_attention_layernorm = nn.RMSNorm(C, eps)
        self.mlp = MLP(C, config["intermediate_size"])

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class LLaMA(nn.Module):
    """ids [B, T] -> logits [B, T, V]; the attributes are named as in the published checkpoints."""

    def __init__(self, config: dict):
        super().__init__()
        self.embed_tokens = nn.Embedding(config["vocab_size"], config["hidden_size"])
        self.layers = nn.ModuleList(Block(config) for _ in range(config["num_hidden_layers"]))
        self.norm = nn.RMSNorm(config["hidden_size"], config["rms_norm_eps"])

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed_tokens(ids)
        for block in self.layers:
            x = block(x)
        return F.linear(self.norm(x), self.embed_tokens.weight)  # the head is the embedding


def load(folder: Path = FOLDER) -> LLaMA:
    """The checkpoint in float32, frozen."""
    model = LLaMA(json.loads((folder / "config.json").read_text()))
    weights = load_file(folder / "model.safetensors")
    model.load_state_dict({name.removeprefix("model."): w.float() for name, w in weights.items()})
    return model.requires_grad_(False)


# ---------------------------------------------------------------- data
PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n{}\n\n### Response:\n"
)


def problem(rng: random.Random) -> tuple[str, str]:
    """A word problem and its solution: a sum, then a division."""
    a, b = rng.randint(2, 20), rng.randint(2, 20)
    c = rng.choice([n for n in range(2, 7) if (a + b) % n == 0] or [0])
    if c == 0:
        return problem(rng)
    name = rng.choice("Emma Tom Nina Hugo Vera Ben Olga Leo".split())
    g, h = rng.sample("pies cakes muffins tarts buns rolls".split(), 2)
    text = f"{name} baked {a} {g} and {b} {h}. Each box holds {c}. How many boxes does {name} need?"
    steps = f"First, {a} + {b} = {a + b}. Then, {a + b} / {c} = {(a + b) // c}."
    return text, f"{steps} The answer is {(a + b) // c}."


def batch(tokenizer: Tokenizer, rows: list[tuple[str, str]]) -> tuple[Tensor, Tensor]:
    """Problems and solutions -> ids [B, T] padded at the end, and labels; -100 has no loss."""
    ids, labels = [], []
    for text, solution in rows:
        prompt = tokenizer.encode(PROMPT.format(text)).ids
        output = [*tokenizer.encode(solution).ids, EOS]
        ids.append(torch.tensor(prompt + output))
        labels.append(torch.tensor([-100] * len(prompt) + output))
    return pad_sequence(ids, True, PAD), pad_sequence(labels, True, -100)


# ---------------------------------------------------------------- training and answers
def loss_of(model: nn.Module, ids: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy per labelled token; the logits at t predict the token at t + 1."""
    logits = model(ids[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


@torch.no_grad()
def answer(model: nn.Module, tokenizer: Tokenizer, text: str, limit: int = 40) -> str:
    """Greedy decoding up to the end token, without a cache: the texts are short."""
    ids = tokenizer.encode(PROMPT.format(text)).ids
    start = len(ids)
    while len(ids) < start + limit and ids[-1] != EOS:
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return tokenizer.decode(ids[start:])


def main(method: str = "parallel", steps: int = 120, count: int = 50) -> None:
    """Train an adapter for some steps; answer `count` problems before and after."""
    if method not in ("parallel", "series", "lora"):
        sys.exit(f"method {method!r} is unknown: choose from parallel, series, lora")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model, tokenizer = load(), Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    tests = [problem(random.Random(seed)) for seed in range(1000, 1000 + count)]
    before = [answer(model, tokenizer, text) for text, _ in tests]

    parameters = attach(model, method)
    print(f"{method}: {sum(p.numel() for p in parameters):,} parameters to train")
    optimizer = torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.0)
    rng = random.Random(0)
    for step in range(steps):
        for group in optimizer.param_groups:  # 20 steps of warm-up, then a cosine to zero
            group["lr"] = 0.01 * min((step + 1) / 20, 0.5 + 0.5 * math.cos(math.pi * step / steps))
        rows = [row for row in (problem(rng) for _ in range(16)) if row not in tests]
        loss = loss_of(model, *batch(tokenizer, rows))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 10 == 0 or step == steps - 1:
            print(f"step {step:3d}  loss {loss.item():.4f}", flush=True)

    after = [answer(model, tokenizer, text) for text, _ in tests]
    for (text, solution), old, new in list(zip(tests, before, after, strict=True))[:3]:
        print(f"\n{text}\n  before  {old}\n  after   {new}\n  right   {solution}")
    for name, answers in (("before", before), ("after", after)):
        right = sum(a == solution for a, (_, solution) in zip(answers, tests, strict=True))
        print(f"{name}: {right} of {len(tests)} right")


if __name__ == "__main__":
    main(*sys.argv[1:2])

"""The work of benchmarks/work.py by transformers and peft.

The only module that imports them; what uses it asks `missing()` first.
"""

import importlib.util
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.random_weights import named_noise, shaped, write_config
from benchmarks.work import (
    LORA,
    answering,
    prompts,
    rows_of_real_lengths,
    start,
    token_rows,
    training_step,
)
from model.config import describe

Run = Callable[[], dict]
PLACES = {  # model_type -> attention, and where the MLP begins and ends, in a layer
    "llama": ("self_attn", "mlp", "mlp"),
    "opt": ("self_attn", "fc1", "fc2"),
    "bloom": ("self_attention", "mlp", "mlp"),
    "gptj": ("attn", "mlp", "mlp"),
}


def missing() -> str:
    """What to say where the packages are not installed; "" where they are."""
    names = [name for name in ("transformers", "peft") if importlib.util.find_spec(name) is None]
    if not names:
        return ""
    return (
        f"{' and '.join(names)} not installed, so that only this project is measured: "
        "pip install 'transformers>=5,<6' peft"
    )


def base(o: dict) -> nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    dtype = getattr(torch, o["dtype"])
    if not o["random"]:
        return AutoModelForCausalLM.from_pretrained(o["model"], dtype=dtype).to(o["device"])
    ours = shaped(o["model"], dtype, layers=o["layers"])
    with TemporaryDirectory() as folder:
        write_config(describe(o["model"])[0], ours.config, Path(folder))
        config = AutoConfig.from_pretrained(folder)
    for key in ("dropout", "attention_dropout", "hidden_dropout", "resid_pdrop", "attn_pdrop"):
        if hasattr(config, key):  # the frozen base has none here
            setattr(config, key, 0.0)
    with torch.device(o["device"]):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(named_noise(name, parameter, o["device"]))
    return model


class Bottleneck(nn.Module):
    """A parallel adapter: float32 parameters, computed in the dtype of x."""

    def __init__(self, width: int, device: str):
        super().__init__()
        self.down = nn.Linear(width, 256, bias=False, device=device)
        self.up = nn.Linear(256, width, bias=False, device=device)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(F.linear(x, self.down.weight.to(x.dtype)))
        return F.linear(h, self.up.weight.to(x.dtype))


def beside(first: nn.Module, last: nn.Module, adapter: Bottleneck) -> None:
    """Add adapter(input of `first`) to the output of `last`."""
    seen: list[Tensor] = []

    def enter(module, args, kwargs) -> None:
        seen[:] = [args[0] if args else kwargs["hidden_states"]]

    def leave(module, args, output):
        added = adapter(seen.pop())
        if isinstance(output, tuple):
            return (output[0] + added, *output[1:])
        return output + added

    first.register_forward_pre_hook(enter, with_kwargs=True)
    last.register_forward_hook(leave)


def adapted(o: dict) -> tuple[nn.Module, list[nn.Parameter]]:
    """The model with the adapters of the options, and what is trained, in the common order."""
    model = base(o)
    model.config.use_cache = False
    if o["adapter"] == "lora":
        model = with_lora(model, o)
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        trained = [named[name] for name in sorted(named, key=lora_order)]
    else:
        model.requires_grad_(False)
        attention, first, last = PLACES[model.config.model_type]
        decoder = getattr(model.model, "decoder", model.model) if hasattr(model, "model") else None
        layers = model.transformer.h if decoder is None else decoder.layers
        trained = []
        for layer in layers:
            for begin, end in ((attention, attention), (first, last)):
                adapter = Bottleneck(model.config.hidden_size, o["device"])
                beside(getattr(layer, begin), getattr(layer, end), adapter)
                trained += adapter.parameters()
    start(trained)
    return model, trained


def with_lora(model: nn.Module, o: dict) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    fused = model.config.model_type == "bloom"
    config = LoraConfig(
        r=LORA["r"],
        lora_alpha=LORA["alpha"],
        lora_dropout=LORA["dropout"],
        target_modules=["query_key_value"] if fused else ["q_proj", "v_proj"],
        task_type="CAUSAL_LM",
    )
    names = [f"a{number}" for number in range(o["adapters"])]
    model = get_peft_model(model, config, adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, config)
    if names[1:]:
        model.base_model.set_adapter(names)
    return model


def lora_order(name: str) -> tuple:
    """base_model.model.model.layers.3.self_attn.q_proj.lora_A.a0.weight, as this project sorts."""
    parts = name.split(".")
    layer = next(int(part) for part in parts if part.isdigit())
    return layer, "v_proj" in parts, parts[-2], "lora_B" in parts


def step(o: dict) -> Run:
    model, trained = adapted(o)
    model.train()
    if o["checkpointing"]:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    ids = token_rows(o, model.config.vocab_size).to(o["device"])

    def loss_of(first: int) -> Tensor:
        rows = ids[first : first + o["micro"]]
        return model(input_ids=rows, labels=rows).loss * (len(rows) / o["rows"])

    return training_step(trained, loss_of, o)


def epoch(o: dict) -> Run:
    """A plain loop: random order, micro-batches padded to the longest row, with a mask."""
    model, trained = adapted(o)
    model.train()
    rows = rows_of_real_lengths(o, model.config.vocab_size)
    size = min(16, o["rows"])
    optimizer = torch.optim.AdamW(trained, lr=1e-9, weight_decay=0.0)

    def run() -> dict:
        order = random.Random(0).sample(rows, len(rows))
        losses = []
        for first in range(0, len(order), size):
            batch = order[first : first + size]
            labels, total = sum(len(row) - 1 for row in batch), 0.0
            for at in range(0, len(batch), o["micro"]):
                loss = padded_loss(model, batch[at : at + o["micro"]], labels)
                loss.backward()
                total += loss.item()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(total)
        return {"loss": sum(losses) / len(losses), "tokens": sum(map(len, rows))}

    return run


def padded_loss(model: nn.Module, rows: list[list[int]], labels: int) -> Tensor:
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    targets = ids.masked_fill(mask == 0, -100)
    return model(input_ids=ids, attention_mask=mask, labels=targets, num_items_in_batch=labels).loss


def decode(o: dict) -> Run:
    model = adapted(o)[0] if o["adapter"] else base(o)
    model.eval()
    model.config.use_cache = True
    model.generation_config.eos_token_id = None
    ids = prompts(o, model.config.vocab_size).to(o["device"])
    more = {"cache_implementation": "static"} if o["cache"] == "static" else {}

    def generate(new: int) -> list[list[int]]:
        with torch.inference_mode():
            out = model.generate(
                inputs=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new,
                num_beams=o["beams"],
                do_sample=False,
                pad_token_id=0,
                **more,
            )
        return out[:, ids.shape[1] :].tolist()

    return answering(generate, o)

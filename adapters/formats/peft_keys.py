"""The keys of PEFT's tensors as PEFT writes them, whatever wrapped the model when they were saved.

    module.base_model.model.base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight
    -> base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight

Such keys come from scripts that save a state_dict themselves, under DDP, FSDP, DeepSpeed or
torch.compile.
"""

import itertools
import warnings

import torch
from torch import Tensor

from adapters.base import PREFIX
from files.errors import UserError

WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
NAMED = {  # behind these stands the adapter's name in a model, and not in a file
    "lora_A",
    "lora_B",
    "lora_E",
    "lora_embedding_A",
    "lora_embedding_B",
    "lora_magnitude_vector",
    "ia3_l",
    "vera_A",
    "vera_B",
    "vera_lambda_b",
    "vera_lambda_d",
    "ln_tuning_layers",
    "trainable_tokens_delta",
    "adapter_down",
    "adapter_up",
    "adapter_scaling",
}
LEAVES = {"weight", "bias"}
ROOT = PREFIX.rstrip(".").split(".")


def as_saved_by_peft(tensors: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """The tensors by the keys that PEFT would have given them, with a warning if they had others.

    Raises UserError for two different tensors of one key, as where a file holds several adapters,
    and for a file or a tensor that was saved empty.
    """
    if not tensors:
        raise UserError(
            f"{where} holds no tensor at all: the adapter was saved without its weights. Save it "
            "again with PEFT's save_pretrained and no state_dict of your own"
        )
    parts = {key: key.split(".") for key in tensors}
    names = {"default"} | {name for split in parts.values() for name in names_in(split)}
    found: dict[str, Tensor] = {}
    first: dict[str, str] = {}
    changed = []
    for key, tensor in tensors.items():
        if tensor.shape == (0,):  # AdaLoRA's of rank 0 have two dimensions
            raise UserError(
                f"{where}: tensor {key!r:.200} is empty: it was saved from DeepSpeed ZeRO-3 or "
                "FSDP without being gathered, and its values are not in the file"
            )
        plain = plain_key(parts[key], names)
        if plain in found and not torch.equal(found[plain], tensor):
            raise UserError(
                f"{where}: {first[plain]!r:.200} and {key!r:.200} are one tensor, {plain!r:.200}, "
                f"with different values{several(names)}"
            )
        if plain not in (key, without_copy(key)) and plain not in found:
            changed.append((key, plain))
        found[plain] = tensor
        first.setdefault(plain, key)
    if changed:
        key, plain = changed[0]
        warnings.warn(
            f"{where}: {len(changed)} of {len(tensors)} keys are not as PEFT writes them, such as "
            f"{key!r:.200}; read as {plain!r:.200}",
            stacklevel=2,
        )
    return found


def names_in(parts: list[str]) -> list[str]:
    """The adapter's names in a key."""
    return [
        name for leaf, name in itertools.pairwise(parts) if leaf in NAMED and name not in LEAVES
    ]


def several(names: set[str]) -> str:
    """What to do about a file with several adapters."""
    own = sorted(names - {"default"})
    return f": the file holds several adapters ({', '.join(own):.200}); save one" if own else ""


def without_copy(key: str) -> str:
    """Without modules_to_save, which PEFT leaves in the keys of biases."""
    return key.replace(".modules_to_save.", ".")


def plain_key(parts: list[str], names: set[str]) -> str:
    """The key that PEFT gives a tensor, from the parts of another one."""
    kept: list[str] = []
    saved = False  # whether modules_to_save stands just before
    for part in parts:
        behind = kept[-1] if kept else ""
        if (
            part in WRAPPERS
            or (behind in NAMED and part not in LEAVES)
            or (saved and part in names)
        ):
            saved = False
            continue
        saved = part == "modules_to_save"
        if not saved:
            kept.append(part)
    if kept[-2:] == ["lora_magnitude_vector", "weight"]:
        kept.pop()
    if len(kept) < 2:
        return ".".join(kept or parts)  # prompt_embeddings
    while kept[: len(ROOT)] == ROOT and len(kept) > len(ROOT):
        kept = kept[len(ROOT) :]
    shared = kept[0] == ROOT[0] and kept[-1] in NAMED  # base_model.vera_A
    return ".".join(kept) if shared else PREFIX + ".".join(kept)

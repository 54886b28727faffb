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
# After these the adapter's name stands in a model, and not in a file.
NAMED = set(
    """lora_A lora_B lora_E lora_embedding_A lora_embedding_B lora_magnitude_vector ia3_l vera_A
    vera_B vera_lambda_b vera_lambda_d hira_A hira_B miss_block road_theta road_alpha oft_R
    shira_weight shira_indices ln_tuning_layers trainable_tokens_delta adapter_down
    adapter_up adapter_scaling""".split()
)
LEAVES = {"weight", "bias"}
ROOT = PREFIX.rstrip(".").split(".")


def as_saved_by_peft(tensors: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """The tensors by the keys that PEFT would have given them, with a warning if they had others.

    Raises UserError for two different tensors of one key, as in a file of several adapters, and
    for a file or a tensor that was saved empty.
    """
    if not tensors:
        raise UserError(
            f"{where} holds no tensor at all: the adapter was saved without its weights. Save it "
            "again with PEFT's save_pretrained and no state_dict of your own"
        )
    parts = {key: key.split(".") for key in tensors}
    names = {"default"} | {
        name
        for split in parts.values()
        for leaf, name in itertools.pairwise(split)
        if leaf in NAMED and name not in LEAVES
    }
    plain: dict[str, Tensor] = {}
    first: dict[str, str] = {}
    changed = []
    for key, tensor in tensors.items():
        if tensor.shape == (0,):  # AdaLoRA's of rank 0 have two dimensions
            raise UserError(
                f"{where}: tensor {key!r:.200} is empty: it was saved from DeepSpeed ZeRO-3 or "
                "FSDP without being gathered, and its values are not in the file"
            )
        new = plain_key(parts[key], names)
        if new in plain and not torch.equal(plain[new], tensor):
            own = ", ".join(sorted(names - {"default"}))
            several = f": the file holds several adapters ({own:.200}); save one" if own else ""
            raise UserError(
                f"{where}: {first[new]!r:.200} and {key!r:.200} are one tensor, {new!r:.200}, "
                f"with different values{several}"
            )
        # PEFT itself leaves modules_to_save in the keys of biases.
        if new not in (key, key.replace(".modules_to_save.", ".")) and new not in plain:
            changed.append((key, new))
        plain[new] = tensor
        first.setdefault(new, key)
    if changed:
        key, new = changed[0]
        warnings.warn(
            f"{where}: {len(changed)} of {len(tensors)} keys are not as PEFT writes them, such as "
            f"{key!r:.200}; read as {new!r:.200}",
            stacklevel=2,
        )
    return plain


def plain_key(parts: list[str], names: set[str]) -> str:
    """The key that PEFT gives a tensor, from the parts of another one."""
    kept: list[str] = []
    saved = False  # whether modules_to_save stands just before
    for part in parts:
        named = kept[-1:] and kept[-1] in NAMED and part not in LEAVES
        skip = part in WRAPPERS or named or (saved and part in names)
        saved = part == "modules_to_save" and not skip
        if not skip and not saved:
            kept.append(part)
    if kept[-2:] == ["lora_magnitude_vector", "weight"]:
        kept.pop()
    if len(kept) < 2:
        return ".".join(kept or parts)  # prompt_embeddings
    while kept[: len(ROOT)] == ROOT and len(kept) > len(ROOT):
        kept = kept[len(ROOT) :]
    shared = kept[0] == ROOT[0] and kept[-1] in NAMED  # base_model.vera_A
    return ".".join(kept) if shared else PREFIX + ".".join(kept)

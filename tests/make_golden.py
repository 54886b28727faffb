"""Write tests/golden: tiny random checkpoints and the logits transformers computes for them. Run
once: python tests/make_golden.py
"""

import torch
import transformers
from conftest import write_checkpoint
from families import MISTRAL, QWEN2, QWEN3, SIDES, WINDOW, batch
from reference import GOLDEN, positions_of
from safetensors.torch import save_file

from model.config import MODEL_TYPES

LLAMA = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
SMALL = {  # folder -> what is changed of the tiny config of its family (tests/families.py)
    "llama": LLAMA,
    "mistral": LLAMA | MISTRAL,
    "qwen2": LLAMA | QWEN2 | WINDOW | {"max_window_layers": 1},
    "qwen3": LLAMA | QWEN3 | {"tie_word_embeddings": True},
    "bloom": {"hidden_size": 20, "n_head": 5, "n_layer": 2},
    "opt": {
        "hidden_size": 16,
        "ffn_dim": 24,
        "num_hidden_layers": 2,
        "do_layer_norm_before": False,
        "word_embed_proj_dim": 12,
    },
    "gptj": {"n_embd": 16, "n_layer": 2, "n_head": 2},
}


def main() -> None:
    for name, changes in SMALL.items():
        family = MODEL_TYPES[name]
        folder = write_checkpoint(GOLDEN / name, family, seed=7, **changes)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        tensors = {}
        for side in SIDES:
            ids, mask = batch(side)
            with torch.no_grad():
                logits = model(ids, attention_mask=mask, **positions_of(model, mask)).logits
            tensors |= {
                f"{side}.ids": ids,
                f"{side}.mask": mask,
                f"{side}.logits": logits.contiguous(),
            }
        save_file(tensors, str(folder / "expected.safetensors"))


if __name__ == "__main__":
    main()

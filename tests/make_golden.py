"""Write tests/golden: a tiny random checkpoint and the logits transformers computes for it. Run once: python tests/make_golden.py"""

from pathlib import Path

import torch
import transformers
from conftest import write_checkpoint
from safetensors.torch import save_file
from test_llama import GOLDEN, batch


def main() -> None:
    folder = write_checkpoint(Path(GOLDEN), seed=7, hidden_size=16, intermediate_size=24, num_hidden_layers=2)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    tensors = {}
    for side in ("plain", "left", "right"):
        ids, mask = batch(side)
        with torch.no_grad():
            logits = model(ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
        tensors |= {f"{side}.ids": ids, f"{side}.mask": mask, f"{side}.logits": logits.contiguous()}
    save_file(tensors, str(folder / "expected.safetensors"))


if __name__ == "__main__":
    main()

"""Shared by all tests: tiny random checkpoints on disk, and no network."""

import json
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors: more threads only wait for each other

import pytest
import torch
from safetensors.torch import save_file

from model import llama, load_model

TINY = {
    "model_type": "llama", "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "eos_token_id": 2, "pad_token_id": 0,
}

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"))]


def write_checkpoint(folder: Path, seed: int = 0, dtype: torch.dtype = torch.float32, **changes) -> Path:
    """A tiny LLaMA folder with every weight random, norms and biases too: fresh zeros and ones would hide mistakes."""
    folder.mkdir(parents=True, exist_ok=True)
    raw = TINY | changes
    (folder / "config.json").write_text(json.dumps(raw))
    names = set(llama.Config.__dataclass_fields__)
    model = llama.Model(llama.Config(**{key: value for key, value in raw.items() if key in names}))
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        weights[name] = ((1 + 0.3 * noise) if "norm" in name else 0.25 * noise).to(dtype)
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_checkpoint(tmp_path / "tiny")


@pytest.fixture
def tiny(folder):
    return load_model(str(folder))

"""Checkpoints: every tensor used exactly once, every mistake named in one line, nothing read
outside the folder.
"""

import json
import sys

import processes
import pytest
import torch
from conftest import write_checkpoint
from processes import ROOT
from safetensors.torch import load_file, save_file
from stored import shard

from model import UserError, load_model
from model.weights import tensors

IDS = torch.tensor([[3, 4, 5, 6]])


def test_shards_give_the_same_model(folder):
    whole = load_model(str(folder))
    shard(folder)
    parts = load_model(str(folder))
    assert torch.equal(whole(IDS), parts(IDS))
    assert whole.fingerprint == parts.fingerprint


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("asked", [None, torch.float32, torch.bfloat16])
def test_any_stored_dtype_into_any_asked_for(tmp_path, stored, asked):
    model = load_model(str(write_checkpoint(tmp_path, dtype=stored)), dtype=asked)
    assert {p.dtype for p in model.parameters()} == {asked or stored}
    assert model.dtype == (asked or stored)
    assert not any(p.requires_grad for p in model.parameters())
    assert not model.training


def test_the_fingerprint_is_of_the_stored_weights(tmp_path):
    one = write_checkpoint(tmp_path / "one", dtype=torch.bfloat16)
    assert load_model(str(one)).fingerprint == load_model(str(one), dtype=torch.float32).fingerprint
    assert (
        load_model(str(one)).fingerprint
        != load_model(
            str(write_checkpoint(tmp_path / "two", seed=1, dtype=torch.bfloat16))
        ).fingerprint
    )


def test_one_tensor_of_the_file_at_a_time(folder):
    """A tensor is read when it is asked for: what stands further back in the file may still
    change.
    """
    path = folder / "model.safetensors"
    whole, pairs = (
        {key: tensor.clone() for key, tensor in load_file(str(path)).items()},
        tensors(folder),
    )
    found = dict([next(pairs)])
    raw = path.read_bytes()
    with open(path, "r+b") as file:  # zeros over the last tensor's bytes
        file.seek(len(raw) - 64)
        file.write(b"\0" * 64)
    found |= dict(pairs)
    assert found.keys() == whole.keys()
    assert sum(not torch.equal(found[key], whole[key]) for key in whole) == 1


MEASURE = """
import sys; sys.path.insert(0, {root!r})
from pathlib import Path
from model import load_model
def peak():
    return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
load_model("pocket-llama")
before = peak()
model = load_model({folder!r})
print((peak() - before) / sum(p.numel() * p.element_size() for p in model.parameters()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_loading_holds_one_copy_of_the_model(tmp_path):
    folder = write_checkpoint(
        tmp_path, vocab_size=100_000, hidden_size=256, num_hidden_layers=1, tie_word_embeddings=True
    )  # 103 MB
    code = MEASURE.format(root=str(ROOT), folder=str(folder))
    done = processes.finish("-c", code)
    assert done.returncode == 0, done.stderr
    assert 0.8 < float(done.stdout) < 1.3


def test_a_weight_too_large_for_the_asked_dtype_is_refused(folder):
    path = str(folder / "model.safetensors")
    weights = load_file(path)
    weights["model.norm.weight"][0] = 1e6
    save_file(weights, path)
    load_model(str(folder))
    with pytest.raises(UserError, match=r"NaN or infinite values, as torch\.float16"):
        load_model(str(folder), dtype=torch.float16)


def test_the_spelling_of_the_config_does_not_change_the_fingerprint(folder):
    before = load_model(str(folder)).fingerprint
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"head_dim": 8, "rope_theta": 10000, "max_position_embeddings": 99})
    )
    assert load_model(str(folder)).fingerprint == before


def test_a_folder_has_no_revisions(folder):
    with pytest.raises(UserError, match="only repositories of the hub have revisions"):
        load_model(str(folder), revision="v2")


def test_a_file_replaced_after_loading_does_not_reach_the_model(folder):
    model = load_model(str(folder))
    before = model(IDS)
    (folder / "model.safetensors").write_bytes(
        b"\0" * (folder / "model.safetensors").stat().st_size
    )
    assert torch.equal(model(IDS), before)


PREFIXES = {"llama": "model.", "bloom": "transformer.", "opt": "model.", "gptj": "transformer."}
BUFFERS = {
    "llama": ["model.layers.1.self_attn.rotary_emb.inv_freq"],
    "gptj": ["transformer.h.0.attn.bias", "transformer.h.2.attn.masked_bias"],
}


@pytest.mark.parametrize("family", PREFIXES)
@pytest.mark.parametrize("spelling", ["without prefix", "wrapped", "with buffers"])
def test_spellings_of_published_names(tmp_path, family, spelling):
    folder = write_checkpoint(tmp_path, family)
    path = str(folder / "model.safetensors")
    expected, weights = load_model(str(folder)), load_file(path)
    if spelling == "without prefix":
        weights = {key.removeprefix(PREFIXES[family]): value for key, value in weights.items()}
    if spelling == "wrapped":
        weights = {f"module.{key}": value for key, value in weights.items()}
    if spelling == "with buffers":
        weights |= {key: torch.ones(2, 2, dtype=torch.uint8) for key in BUFFERS.get(family, [])}
    save_file(weights, path)
    found = load_model(str(folder))
    assert torch.equal(found(IDS), expected(IDS))
    assert found.fingerprint == expected.fingerprint
    weights["transformer.h.0.attn.extra_bias"] = torch.ones(
        2
    )  # only the known buffers are passed over
    save_file(weights, path)
    with pytest.raises(UserError, match="unknown tensor"):
        load_model(str(folder))


@pytest.mark.parametrize("dtype", ["float32", "float33", 32])
def test_a_dtype_is_one_of_torch(dtype):
    with pytest.raises(UserError, match="is not a dtype of torch"):
        load_model("pocket-llama", dtype=dtype)

"""Checkpoints: every tensor used exactly once, every mistake named in one line, nothing read outside the folder."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import write_checkpoint
from safetensors.torch import load_file, save_file

from model import UserError, load_model
from model.files import tensors

IDS = torch.tensor([[3, 4, 5, 6]])


def shard(folder, count: int = 3) -> None:
    """Turn model.safetensors into shards with an index."""
    whole = load_file(str(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    names = [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    where = {key: names[i % count] for i, key in enumerate(sorted(whole))}
    for name in names:
        save_file({key: whole[key] for key in whole if where[key] == name}, str(folder / name))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


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
    assert load_model(str(one)).fingerprint != load_model(str(write_checkpoint(tmp_path / "two", seed=1, dtype=torch.bfloat16))).fingerprint


def test_one_tensor_of_the_file_at_a_time(folder):
    """A tensor is read when it is asked for: what stands further back in the file may still change."""
    path = folder / "model.safetensors"
    whole, pairs = {key: tensor.clone() for key, tensor in load_file(str(path)).items()}, tensors(folder)
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
    folder = write_checkpoint(tmp_path, vocab_size=100_000, hidden_size=256, num_hidden_layers=1, tie_word_embeddings=True)  # 103 MB
    code = MEASURE.format(root=str(Path(__file__).parent.parent), folder=str(folder))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
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
    (folder / "config.json").write_text(json.dumps(config | {"head_dim": 8, "rope_theta": 10000, "max_position_embeddings": 99}))
    assert load_model(str(folder)).fingerprint == before


def test_a_folder_has_no_revisions(folder):
    with pytest.raises(UserError, match="only repositories of the hub have revisions"):
        load_model(str(folder), revision="v2")


def test_a_file_replaced_after_loading_does_not_reach_the_model(folder):
    model = load_model(str(folder))
    before = model(IDS)
    (folder / "model.safetensors").write_bytes(b"\0" * (folder / "model.safetensors").stat().st_size)
    assert torch.equal(model(IDS), before)


def test_a_tied_head_that_is_also_in_the_file(tmp_path):
    folder = write_checkpoint(tmp_path, tie_word_embeddings=True)
    tied = load_model(str(folder))
    path = str(folder / "model.safetensors")
    weights = load_file(path)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, path)
    loaded = load_model(str(folder))
    assert loaded.lm_head.weight is loaded.input_embedding.weight
    assert load_model(str(folder)).fingerprint == tied.fingerprint
    weights["lm_head.weight"] *= 2
    save_file(weights, path)
    with pytest.warns(UserWarning, match="differs from the embedding"):
        untied = load_model(str(folder))
    torch.testing.assert_close(untied(IDS), 2 * tied(IDS))
    assert untied.fingerprint != tied.fingerprint
    for wrong, said in ((torch.ones(7, 32), "config asks for"), (torch.full((61, 32), torch.nan), "NaN"), (torch.ones(61, 32).long(), "floating point")):
        weights["lm_head.weight"] = wrong
        save_file(weights, path)
        with pytest.raises(UserError, match=said):
            load_model(str(folder))


def test_saved_buffers_and_missing_prefixes(folder):
    path = str(folder / "model.safetensors")
    expected = load_model(str(folder))(IDS)
    weights = {key.removeprefix("model."): value for key, value in load_file(path).items()}
    weights["layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(weights, path)
    assert torch.equal(load_model(str(folder))(IDS), expected)


def edit(folder, what: str) -> None:
    path = folder / "model.safetensors"
    weights, config = load_file(str(path)), json.loads((folder / "config.json").read_text())
    if what == "missing":
        del weights["model.norm.weight"]
    if what == "extra":
        weights["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(32)
    if what == "shape":
        weights["model.norm.weight"] = torch.ones(31)
    if what == "nan":
        weights["model.norm.weight"][3] = torch.nan
    if what == "integers":
        weights["model.norm.weight"] = torch.ones(32, dtype=torch.int64)
    if what == "twice":
        weights["norm.weight"] = weights["model.norm.weight"].clone()
    save_file(weights, str(path))
    raw = path.read_bytes()
    if what == "truncated":
        path.write_bytes(raw[: len(raw) // 2])
    if what == "header length":
        path.write_bytes(struct.pack("<Q", 2**62) + raw[8:])
    if what == "no weights":
        path.unlink()
    if what == "not json":
        (folder / "config.json").write_text("{")
    if what == "list":
        (folder / "config.json").write_text("[]")
    if what == "utf-8":
        (folder / "config.json").write_bytes(b"\xff\xfe{}")
    if what == "no config":
        (folder / "config.json").unlink()
    if what == "no type":
        del config["model_type"]
        (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("missing", "1 tensors are missing, the first is 'model.norm.weight'"), ("extra", "unknown tensor"), ("shape", "the config asks for"),
        ("nan", "NaN or infinite"), ("integers", "floating point"), ("twice", "twice"), ("truncated", "cannot be read"),
        ("header length", "cannot be read"), ("no weights", "neither model.safetensors nor"), ("not json", "cannot be read as JSON"),
        ("list", "not a JSON object"), ("utf-8", "cannot be read as JSON"), ("no config", "config.json is missing"), ("no type", "model_type None"),
    ],
)
def test_broken_checkpoints_are_named(folder, what, said):
    edit(folder, what)
    with pytest.raises(UserError, match=said) as error:
        load_model(str(folder))
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


ONE = '"model.norm.weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}'


@pytest.mark.parametrize(
    "header",
    [
        "{" + ONE + ', "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}',  # overlapping
        "{" + ONE + ', "b": {"dtype": "F32", "shape": [2], "data_offsets": [8, 99]}}',  # past the end
        "{" + ONE + ', "b": {"dtype": "F32", "shape": [3], "data_offsets": [8, 16]}}',  # shape and extent differ
        "{" + ONE + ', "b": {"dtype": "F32", "shape": [-2], "data_offsets": [8, 16]}}',
        "{" + ONE + ', "b": {"dtype": "F32", "shape": [2.0], "data_offsets": [8, 16]}}',
        "{" + ONE + ', "b": {"dtype": "F9", "shape": [2], "data_offsets": [8, 16]}}',  # unknown type
        "{" + ONE + ', "b": {"dtype": "F32", "shape": [2]}}',
        "{" + ONE + ", " + ONE + "}",  # twice
        "{" + ONE + "}",  # data left over
        "{" + ONE + ', "b": 7}',
        "[" * 100_000,
        "[1]", "{", "\udcff",
    ],
)
def test_malformed_headers_are_refused(folder, header):
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode("utf-8", "surrogateescape") + b"\0" * 16)
    with pytest.raises(UserError, match=r"model\.safetensors"):
        load_model(str(folder))


@pytest.mark.parametrize("name", ["../model-1.safetensors", "/etc/passwd", "sub/model.safetensors", ""])
def test_an_index_may_not_leave_its_folder(folder, name):
    shard(folder)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.norm.weight"] = name
    path.write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"which is not a \.safetensors file of this folder"):
        load_model(str(folder))


def test_a_missing_shard_is_named(folder):
    shard(folder)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(UserError, match=r"model-00002-of-00003\.safetensors is missing"):
        load_model(str(folder))

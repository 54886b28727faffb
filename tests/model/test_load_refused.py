"""Checkpoints that are broken or malformed: each mistake is named in one line."""

import json
import struct

import pytest
import torch
from conftest import write_checkpoint
from safetensors.torch import load_file, save_file
from stored import shard

from model import UserError, load_model

IDS = torch.tensor([[3, 4, 5, 6]])


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
    for wrong, said in (
        (torch.ones(7, 32), "config asks for"),
        (torch.full((61, 32), torch.nan), "NaN"),
        (torch.ones(61, 32).long(), "floating point"),
    ):
        weights["lm_head.weight"] = wrong
        save_file(weights, path)
        with pytest.raises(UserError, match=said):
            load_model(str(folder))


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
        ("missing", "1 tensors are missing, the first is 'model.norm.weight'"),
        ("extra", "unknown tensor"),
        ("shape", "the config asks for"),
        ("nan", "NaN or infinite"),
        ("integers", "floating point"),
        ("twice", "twice"),
        ("truncated", "cannot be read"),
        ("header length", "cannot be read"),
        ("no weights", "neither model.safetensors nor"),
        ("not json", "cannot be read as JSON"),
        ("list", "not a JSON object"),
        ("utf-8", "cannot be read as JSON"),
        ("no config", "config.json is missing"),
        ("no type", "model_type None"),
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
        "{"
        + ONE
        + ', "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}',  # overlapping
        "{"
        + ONE
        + ', "b": {"dtype": "F32", "shape": [2], "data_offsets": [8, 99]}}',  # past the end
        "{"
        + ONE
        # shape and extent differ
        + ', "b": {"dtype": "F32", "shape": [3], "data_offsets": [8, 16]}}',
        "{" + ONE + ', "b": {"dtype": "F32", "shape": [-2], "data_offsets": [8, 16]}}',
        "{"
        + ONE
        + ', "b": {"dtype": "F32", "shape": [0, 1'
        + "0" * 99
        + '], "data_offsets": [8, 8]}}',
        "{" + ONE + ', "b": {"dtype": "F32", "shape": [2.0], "data_offsets": [8, 16]}}',
        "{"
        + ONE
        + ', "b": {"dtype": "F9", "shape": [2], "data_offsets": [8, 16]}}',  # unknown type
        "{" + ONE + ', "b": {"dtype": "F32", "shape": [2]}}',
        "{" + ONE + ", " + ONE + "}",  # twice
        "{" + ONE + "}",  # data left over
        "{" + ONE + ', "b": 7}',
        "[" * 100_000,
        "[1]",
        "{",
        "\udcff",
    ],
)
def test_malformed_headers_are_refused(folder, header):
    path = folder / "model.safetensors"
    path.write_bytes(
        struct.pack("<Q", len(header)) + header.encode("utf-8", "surrogateescape") + b"\0" * 16
    )
    with pytest.raises(UserError, match=r"model\.safetensors"):
        load_model(str(folder))


@pytest.mark.parametrize(
    "name", ["../model-1.safetensors", "/etc/passwd", "sub/model.safetensors", ""]
)
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


PREFIXES = {"llama": "model.", "bloom": "transformer.", "opt": "model.", "gptj": "transformer."}


@pytest.mark.parametrize("family", PREFIXES)
@pytest.mark.parametrize("held", ["embedding", "both", "head"])
def test_a_tied_head_absent_doubled_or_alone(tmp_path, family, held):
    folder = write_checkpoint(tmp_path, family, tie_word_embeddings=True)
    path = str(folder / "model.safetensors")
    expected, weights = load_model(str(folder)), load_file(path)
    embedding = next(
        key
        for key in weights
        if key.endswith(("embed_tokens.weight", "word_embeddings.weight", "wte.weight"))
    )
    if held != "embedding":
        weights["lm_head.weight"] = weights[embedding].clone()
    if held == "head":
        del weights[embedding]
    save_file(weights, path)
    found = load_model(str(folder))
    assert found.lm_head.weight is found.input_embedding.weight
    assert torch.equal(found(IDS), expected(IDS))
    assert found.fingerprint == expected.fingerprint

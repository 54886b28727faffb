"""Checkpoints: every tensor used exactly once, every mistake named in one line, nothing read
outside the folder.
"""

import json
import os
import struct
import sys
import zipfile
from pathlib import Path

import processes
import pytest
import torch
from conftest import write_checkpoint
from safetensors.torch import load_file, save_file

from model import UserError, load_model, load_tokenizer
from model.weights import tensors

IDS = torch.tensor([[3, 4, 5, 6]])


def shard(folder, count: int = 3) -> None:
    """Turn model.safetensors into shards with an index."""
    whole = load_file(str(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    names = [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    where = {key: names[i % count] for i, key in enumerate(sorted(whole))}
    for name in names:
        save_file({key: whole[key] for key in whole if where[key] == name}, str(folder / name))
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": where})
    )


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
    code = MEASURE.format(root=str(Path(__file__).parent.parent), folder=str(folder))
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


def as_bin(folder: Path, shards: int = 1, **options) -> Path:
    """Turn model.safetensors into torch's own format."""
    whole = load_file(str(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    if shards == 1:
        torch.save(whole, folder / "pytorch_model.bin", **options)
        return folder
    names = [f"pytorch_model-{i + 1:05}-of-{shards:05}.bin" for i in range(shards)]
    where = {key: names[i % shards] for i, key in enumerate(sorted(whole))}
    for name in names:
        torch.save(
            {key: whole[key] for key in whole if where[key] == name}, folder / name, **options
        )
    (folder / "pytorch_model.bin.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": where})
    )
    return folder


@pytest.mark.parametrize("family", ["llama", "bloom", "opt", "gptj"])
@pytest.mark.parametrize(
    "options",
    [{}, {"shards": 3}, {"_use_new_zipfile_serialization": False}],
    ids=["one", "shards", "before torch 1.6"],
)
def test_torchs_own_files_give_the_same_model(tmp_path, family, options):
    folder = write_checkpoint(tmp_path, family, dtype=torch.float16)
    expected = load_model(str(folder))
    found = load_model(str(as_bin(folder, **options)))
    assert found.fingerprint == expected.fingerprint
    assert torch.equal(found(IDS), expected(IDS))


def test_safetensors_come_before_bin(folder):
    torch.save({"nothing": torch.ones(1)}, folder / "pytorch_model.bin")
    load_model(str(folder))


def test_tensors_of_a_bin_are_views_strides_and_parameters(folder):
    """What published files hold: parameters, slices of larger storages, transposed tensors; each
    becomes a plain tensor of its own.
    """
    expected = load_model(str(folder))(IDS)
    whole = load_file(str(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    big = torch.zeros(100, 32)
    big[7:68] = whole["lm_head.weight"]
    whole["lm_head.weight"] = big[7:68]
    whole["model.layers.0.self_attn.q_proj.weight"] = (
        whole["model.layers.0.self_attn.q_proj.weight"].t().contiguous().t()
    )
    whole = {key: torch.nn.Parameter(value) for key, value in whole.items()}
    torch.save(whole, folder / "pytorch_model.bin")
    model = load_model(str(folder))
    assert torch.equal(model(IDS), expected)
    assert all(
        p.is_contiguous() and p.untyped_storage().nbytes() == p.numel() * 4
        for p in model.parameters()
    )


class Evil:
    def __reduce__(self):
        return (os.system, (f"touch {EXECUTED}",))


EXECUTED = "/tmp/llm-adapters-a-pickle-was-executed"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda: {"model.norm.weight": Evil()}, "refused, it holds more than tensors"),
        (lambda: [torch.ones(2)], "not tensors by name"),
        (lambda: {"model.norm.weight": [1.0]}, "is not a plain tensor"),
        (lambda: {7: torch.ones(2)}, "is not a plain tensor"),
        (lambda: {"model.norm.weight": torch.ones(2).to_sparse()}, "holds more than tensors"),
        (lambda: {"model.norm.weight": torch.ones(1).expand(10**12)}, "repeats its elements"),
        (lambda: {}, "tensors are missing"),
    ],
)
def test_what_a_bin_may_not_hold(folder, content, said):
    (folder / "model.safetensors").unlink()
    torch.save(content(), folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=said) as error:
        load_model(str(folder))
    assert "\n" not in str(error.value)
    assert not Path(EXECUTED).exists()


def test_broken_bins_are_named(folder):
    as_bin(folder)
    path = folder / "pytorch_model.bin"
    raw = path.read_bytes()
    with (
        zipfile.ZipFile(path) as old,
        zipfile.ZipFile(folder / "packed", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    for content, said in (
        (raw[: len(raw) // 2], "cannot be read"),
        (b"", "cannot be read"),
        (b"PK\x03\x04" + b"x" * 50, "cannot be read"),
        (b"x" * 1000, "pytorch_model.bin"),
        ((folder / "packed").read_bytes(), "is compressed"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=said) as error:
            load_model(str(folder))
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


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


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "config.json",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ],
)
def test_links_out_of_the_folder_are_not_followed(folder, tmp_path, name):
    if name == "model.safetensors.index.json":
        shard(folder)
    outside = tmp_path / "outside"
    outside.write_text(
        (folder / name).read_text() if name.endswith("json") and (folder / name).exists() else "{}"
    )
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(outside)
    with pytest.raises(UserError, match=r"is a link to .*outside the model's folder"):
        (load_tokenizer if name.startswith("tokenizer") else load_model)(str(folder))


def test_links_inside_and_those_of_the_hubs_cache_are_followed(folder, tmp_path):
    (folder / "model.safetensors").rename(folder / "weights")
    (folder / "model.safetensors").symlink_to("weights")
    load_model(str(folder))
    cache = tmp_path / "models--a--b"
    (cache / "blobs").mkdir(parents=True)
    snapshot = cache / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    for name, source in (("config.json", "config.json"), ("model.safetensors", "weights")):
        (folder / source).rename(cache / "blobs" / name)
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    load_model(str(snapshot))


def test_circles_of_links_folders_and_pipes_are_named(folder):
    path = folder / "model.safetensors"
    path.unlink()
    for make in (lambda: path.symlink_to("model.safetensors"), path.mkdir, lambda: os.mkfifo(path)):
        make()
        with pytest.raises(UserError, match=r"model\.safetensors"):
            load_model(str(folder))
        path.rmdir() if path.is_dir() else path.unlink()

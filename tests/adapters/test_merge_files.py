"""Merged models on the disk: precision, files of several shards, and what is not written."""

import json
from itertools import product

import pytest
import torch
from conftest import write_checkpoint
from merged import (
    apart,
    merged_and_exported,
    seeded,  # noqa: F401
    transformers_logits,
)
from methods import IDS, MERGEABLE, attach_small, linear_sites, randomise
from safetensors import safe_open

from adapters import attach, merge, use
from adapters.formats.merged_model import export_model
from adapters.merge import merge_and_compare
from model import UserError, load_model


# ---------------------------------------------------------------- precision and files
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_folded_in_float32_and_rounded_once(any_folder, tmp_path, dtype):
    model, exact = (load_model(str(any_folder), dtype=one) for one in (dtype, torch.float32))
    for one in (model, exact):
        torch.manual_seed(0)
        attach(one, "lora", name="one", r=3, sites=linear_sites(one), dropout=0.0)
        attach(one, "ia3", name="two")
        randomise(one)
    site = model.blocks[1].get_submodule(model.sites["down"])
    one, two = site.adapters["one"], site.adapters["two"]
    expected = (
        (site.weight.double() + one.scale * one.lora_B.double() @ one.lora_A.double())
        * two.ia3_l.double()
    ).to(dtype)
    unmerged = (model(IDS).float() - exact(IDS)).abs().mean()
    merge(model)
    wrong = site.weight != expected  # float64 may be on the other side of a tie
    assert wrong.float().mean() < 1e-2
    assert (site.weight.double() - expected.double()).abs().max() <= 2 * torch.finfo(
        dtype
    ).eps * expected.double().abs().max()
    assert (model(IDS).float() - exact(IDS)).abs().mean() < 2 * unmerged
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    export_model(model, tmp_path / "merged")
    again = load_model(str(tmp_path / "merged"))
    assert again.dtype == dtype
    assert torch.equal(again(IDS), model(IDS))
    assert apart(transformers_logits(tmp_path / "merged", dtype), model(IDS).float()) < 0.2


@pytest.mark.parametrize("method", [*MERGEABLE, "bitfit"])
def test_every_mergeable_method_in_bfloat16(tmp_path, method):
    folder = write_checkpoint(tmp_path / "base", "opt", dtype=torch.bfloat16)
    model, exact = load_model(str(folder)), load_model(str(folder), dtype=torch.float32)
    for one in (model, exact):
        torch.manual_seed(0)
        attach_small(one, method)
        randomise(one, 0.1)
    merge(model)
    assert ((model(IDS) - exact(IDS)).abs().mean() / exact(IDS).std()).item() < 0.02
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_the_dtype_in_config_json_is_that_of_the_weights(tmp_path):
    raw = {"torch_dtype": "float16", "rope_theta": 777.0, "transformers_version": "4.1"}
    model = load_model(
        str(write_checkpoint(tmp_path / "base", dtype=torch.float16, **raw)), dtype=torch.float32
    )
    attach(model, "lora", r=2)
    randomise(model)
    merged_and_exported(model, tmp_path / "merged")
    before, after = (
        json.loads((tmp_path / name / "config.json").read_text()) for name in ("base", "merged")
    )
    assert after == before | {"torch_dtype": "float32", "architectures": ["LlamaForCausalLM"]}


@pytest.mark.parametrize(
    ("any_family", "shard_bytes"),
    [("llama", 1), ("llama", 5000), ("llama", 20_000), *product(("bloom", "opt", "gptj"), [5000])],
)
def test_shards(any_tiny, tmp_path, shard_bytes):
    model = any_tiny
    files = export_model(model, tmp_path / "out", shard_bytes=shard_bytes)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    shards = [path for path in files if path.suffix == ".safetensors"]
    assert sorted(set(index["weight_map"].values())) == [path.name for path in shards]
    assert len(shards) > 1
    found = {}
    for number, path in enumerate(shards, start=1):
        assert path.name == f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"format": "pt"}
            inside = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        assert all(index["weight_map"][name] == path.name for name in inside)
        assert sum(tensor.nbytes for tensor in inside.values()) <= shard_bytes or len(inside) == 1
        found |= inside
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in found.values())
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        name: tensor.tolist() for name, tensor in model.named_parameters()
    }
    assert torch.equal(load_model(str(tmp_path / "out"))(IDS), model(IDS))
    assert load_model(str(tmp_path / "out")).fingerprint == model.fingerprint
    assert apart(transformers_logits(tmp_path / "out"), model(IDS)) < 1e-4


def test_nothing_is_written_where_something_is_wrong(tiny, tmp_path, monkeypatch):
    attach(tiny, "lora", r=2)
    out = tmp_path / "out"
    with pytest.raises(
        UserError,
        match=r"an adapter is on at model.layers.0.self_attn.q_proj: merge\(model\) first",
    ):
        export_model(tiny, out)
    use(tiny, [])
    with pytest.raises(UserError, match="shards of 0 bytes"):
        export_model(tiny, out, shard_bytes=0)
    weight = tiny.lm_head.weight
    tiny.lm_head.weight = torch.nn.Parameter(torch.full_like(weight, torch.nan))
    with pytest.raises(UserError, match=r"lm_head.weight holds NaN or infinite values"):
        export_model(tiny, out)
    tiny.lm_head.weight = weight
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
        with pytest.raises(UserError, match=r"the disk has 0\.0 MB left"):
            export_model(tiny, out)
    assert not out.exists()
    out.mkdir()
    (out / "mine").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        export_model(tiny, out)
    with pytest.raises(UserError, match="is not a folder"):
        export_model(tiny, out / "mine")
    assert [path.name for path in out.iterdir()] == ["mine"]


def test_a_folder_that_was_not_finished_is_no_model(tiny, tmp_path, monkeypatch):
    from model import shards

    write, count = shards.write_safetensors, iter(range(100))

    def full(*all_of_it):
        if next(count) == 2:
            raise OSError(28, "No space left on device")
        write(*all_of_it)

    monkeypatch.setattr(shards, "write_safetensors", full)
    with pytest.raises(UserError, match="No space left"):
        export_model(tiny, tmp_path / "out", shard_bytes=20_000)
    assert not list((tmp_path / "out").glob(".*"))
    with pytest.raises(UserError, match="holds neither"):
        load_model(str(tmp_path / "out"))


def test_a_disk_that_does_not_keep_what_was_written_is_noticed(tiny, tmp_path, monkeypatch):
    from model import shards

    write = shards.write_safetensors
    monkeypatch.setattr(
        shards,
        "write_safetensors",
        lambda path, tensors, values: write(path, tensors, lambda tensor: 2 * values(tensor)),
    )
    with pytest.raises(UserError, match="does not hold what was written"):
        export_model(tiny, tmp_path / "out")


def test_the_difference_is_that_of_the_logits(folder):
    models = [load_model(str(folder), dtype=torch.bfloat16) for _ in range(2)]
    for model in models:
        torch.manual_seed(0)
        attach(model, "lora", r=3, sites=["q", "v", "down"], dropout=0.0)
        randomise(model)
    before = models[0](IDS[:1])
    merge(models[0])
    largest, deviation = merge_and_compare(models[1], IDS[:1])
    assert largest == (models[0](IDS[:1]) - before).abs().max().item() > 0
    assert deviation == pytest.approx(before.std().item())


def test_tokenizer_files_are_copied_byte_for_byte(folder, tmp_path):
    tiny = load_model(str(folder))
    names = (
        "tokenizer.json",
        "tokenizer.model",
        "vocab.json",
        "merges.txt",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "generation_config.json",
    )
    for number, name in enumerate(names):
        (folder / name).write_bytes(bytes([number, 255, 10, 13]) * 9)
    (folder / "pytorch_model.bin").write_bytes(b"old")
    (folder / "notes.txt").write_text("mine")
    files = export_model(tiny, tmp_path / "out")
    assert {path.name for path in files} == {*names, "config.json", "model.safetensors"}
    assert all(
        (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes() for name in names
    )

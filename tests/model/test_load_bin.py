"""Checkpoints of torch.save: read as safetensors are, and nothing in them is executed."""

import os
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import write_checkpoint
from safetensors.torch import load_file
from stored import as_bin

from model import UserError, load_model

IDS = torch.tensor([[3, 4, 5, 6]])


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

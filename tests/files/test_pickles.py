"""Pickles and tensors are measured before torch gets them."""

import io
import json
import os
import pickle
import re
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from adapters import attach, load_adapter, save_adapter
from adapters.formats.stored import read_tensors
from files.errors import UserError
from files.pickles import LARGEST, Refused, all_within, check_pickle, follow
from model import load_model
from model.weights import safetensors


# ---------------------------------------------------------------- pickles
def bomb(depth: int = 60) -> bytes:
    """A dictionary whose key is a tuple that unfolds to 2^depth elements."""
    return b"\x80\x02}" + b")" + b"q\x00h\x00\x86" * depth + b"K\x01s."


def zipped(path: Path, content: bytes, **data: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", content)
        file.writestr("archive/version", "3\n")
        for key, value in data.items():
            file.writestr(f"archive/data/{key}", value)
    return path


def storage(count: int, kind: str = "FloatStorage", key: str = "0") -> bytes:
    """A pickle of a tensor of so many elements in the storage of this key."""
    return b"\x80\x02" + reference(count, kind, key) + b"."


def reference(count: int, kind: str = "FloatStorage", key: str = "0") -> bytes:
    """The opcodes of a storage."""
    place = ("storage", key, "cpu", count)
    parts = [pickle.dumps(value, 2)[2:-1].split(b"q\x00")[0] for value in place]
    return b"(" + parts[0] + f"ctorch\n{kind}\n".encode() + b"".join(parts[1:]) + b"tQ"


def tensor(offset: int, shape: tuple, strides: tuple) -> bytes:
    """A pickle of a tensor of a storage of two float32."""
    numbers = [pickle.dumps(value, 2)[2:-1] for value in (offset, shape, strides)]
    inner = reference(2) + re.sub(rb"q.", b"", b"".join(numbers))
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + inner + b"\x89NtR."


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (bomb(), "a key that is neither a text nor a number"),
        (b"\x80\x02" + b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.", "builtins bytearray"),
        (b"\x80\x02ctorch\nTensor\n\x8a\x05\x00\x00\x00\x00\x10\x85R.", "torch Tensor"),
        (
            b"\x80\x02ctorch.storage\nUntypedStorage\n\x8a\x05\x00\x00\x00\x00\x10\x85R.",
            "a call of",
        ),
        (b"\x80\x02ccollections\nCounter\n(\x85R.", "collections Counter"),
        (b"\x80\x02ccollections\nOrderedDict\n]q\x00(K\x01K\x02\x86e\x85R.", "of values"),
        (b"\x80\x02\x8f(K\x01\x90.", "the opcode EMPTY_SET"),
        (b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.", "posix|os system"),
        (storage(10**12), "storage 0 of 1,000,000,000,000 elements, which are not in the file"),
        (storage(3), "storage 0 of 3 elements"),
        (storage(2, "QInt8Storage"), "torch QInt8Storage"),
    ],
)
def test_a_pickle_is_looked_at_before_torch_gets_it(tmp_path, content, said):
    for path in (zipped(tmp_path / "a.bin", content, **{"0": bytes(8)}), tmp_path / "old.bin"):
        if not path.exists():
            path.write_bytes(content)
        if path.name == "a.bin" or b"storage" not in content[:40]:
            with pytest.raises(UserError, match=f"{path} is refused, it holds more than.*({said})"):
                check_pickle(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            b"\x80\x02}\x8a\x08" + (2**62).to_bytes(8, "little") + b"Ns.",
            "a text nor a number of 32",
        ),
        (b"\x80\x02" + b")" * LARGEST + b".", "a pickle of 4,000,003 bytes"),
        (tensor(0, (2,), (1,)), None),
        (tensor(1, (2,), (1,)), r"a tensor \[2\] of a storage of 2 elements"),
        (tensor(0, (2**40,), (1,)), r"a tensor \[1099511627776\] of"),
        (tensor(0, (2,), (-1,)), "a shape that is none"),
        (tensor(0, (2, 2), (0, 2)), r"a tensor \[2, 2\] of"),
    ],
    ids=["key", "long", "fits", "offset", "size", "stride", "strides"],
)
def test_a_tensor_lies_within_its_storage(tmp_path, content, said):
    """torch would enlarge the storage to what the pickle says."""
    path = zipped(tmp_path / "a.bin", content, **{"0": bytes(8)})
    if said is None:
        check_pickle(path)
        return
    with pytest.raises(UserError, match=f"{path} is refused, it holds more than.*({said})"):
        check_pickle(path)


def test_an_old_file_holds_all_its_storages():
    follow(io.BytesIO(storage(10)), all_within(40))
    holds = all_within(60)
    follow(io.BytesIO(storage(10)), holds)
    follow(io.BytesIO(storage(10)), holds)  # the same one
    with pytest.raises(Refused, match="storage 1 of 10 elements"):
        follow(io.BytesIO(storage(10, key="1")), holds)


def test_a_pipe_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "a.bin")
    with pytest.raises(UserError, match=r"a\.bin is not a file"):
        check_pickle(tmp_path / "a.bin")


def test_a_pickle_with_a_zip_behind_it_is_read_as_torch_reads_it(tmp_path):
    path = zipped(tmp_path / "a.bin", pickle.dumps({}, 2))
    path.write_bytes(bomb() + path.read_bytes())
    with pytest.raises(UserError, match="neither a text nor a number"):
        check_pickle(path)


def test_two_pickles_in_one_zip(tmp_path):
    path = zipped(tmp_path / "a.bin", pickle.dumps({}, 2))
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("other/data.pkl", bomb())
    with pytest.raises(UserError, match="its zip holds other files than torch writes"):
        check_pickle(path)


# ---------------------------------------------------------------- shapes before memory
def sparse(path: Path, elements: int) -> Path:
    """A safetensors file with a hole of so many float32 elements."""
    table = {"a": {"dtype": "F32", "shape": [elements], "data_offsets": [0, 4 * elements]}}
    header = json.dumps(table).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + 4 * elements)
    return path


def test_a_tensor_is_measured_before_there_is_memory_for_it(tmp_path, monkeypatch):
    path = sparse(tmp_path / "adapter_model.safetensors", 10**9)
    model = load_model("pocket-llama")
    monkeypatch.setattr(torch, "empty_like", lambda *_: pytest.fail("memory was taken"))
    with pytest.raises(UserError, match=r"tensor 'a' is \[1000000000\], which is larger than all"):
        list(safetensors(path, 10**8))
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(UserError, match="larger than all"):
        load_adapter(model, tmp_path)


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.safetensors"])
def test_all_tensors_of_an_adapter_are_bounded_together(tmp_path, name):
    table = {f"k{n}": torch.zeros(10) for n in range(4)}
    if name.endswith(".bin"):  # views of one storage
        torch.save(dict.fromkeys(table, table["k0"]), tmp_path / name)
    else:
        save_file(table, tmp_path / name)
    assert len(read_tensors(tmp_path, 40)) == 4
    with pytest.raises(UserError, match="holds more values than the model has a place for"):
        read_tensors(tmp_path, 39)


@pytest.mark.parametrize("change", [{"r": 400_000}, {"r": 2**31}])
def test_an_adapter_asks_for_no_more_than_its_file_holds(tmp_path, change):
    model = load_model("pocket-llama")
    attach(model, "lora", r=2)
    save_adapter(model, tmp_path / "lora")
    path = tmp_path / "lora" / "adapter_config.json"
    table = json.loads(path.read_text())
    table["llm_adapters"]["adapter"] |= change
    path.write_text(json.dumps(table))
    model = load_model("pocket-llama")
    with pytest.raises(UserError, match="and its configuration asks for an adapter of"):
        load_adapter(model, tmp_path / "lora")

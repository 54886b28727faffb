"""int8 and nf4 models on the disk: loaded a tensor at a time, saved to the bit, malformed."""

import copy
import json
import sys
from pathlib import Path

import processes
import pytest
import torch
from conftest import write_checkpoint
from methods import IDS, attach_small, randomise
from quantised import bits, same
from safetensors.torch import load_file, save_file

from adapters import attach, merge, use
from adapters.attach import adapter_names
from adapters.formats.merged_model import export_model
from adapters.merge import merge_and_compare
from model import UserError, load_model
from model.quantize import STORED_AS, dequantize, quantized, save_quantized

HOW = list(STORED_AS)


# ---------------------------------------------------------------- loading, saving
MEASURE = """
import ctypes, gc, sys
from benchmarks.machine import held, peak_of, reset_peak
from model import load_model
M_MMAP_THRESHOLD = -3  # what is freed goes back: counted is what is alive, not what glibc keeps
ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1_000_000)
for how in ("int8", "nf4"):
    load_model("pocket-llama", quantize=how)
    gc.collect()
    before = held("cpu")
    reset_peak("cpu")
    model = load_model(sys.argv[1], quantize=how)
    stored = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    print((peak_of("cpu") - before - stored) / 1e6)
    del model
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_loading_holds_the_quantised_model_and_one_tensor(tmp_path):
    """Six tensors of 16.8 MB: quantised while they come, they are never there together."""
    folder = write_checkpoint(
        tmp_path,
        dtype=torch.bfloat16,
        hidden_size=512,
        intermediate_size=16384,
        num_hidden_layers=2,
    )
    done = processes.finish("-c", MEASURE, folder)
    assert done.returncode == 0, done.stderr
    more = [float(line) for line in done.stdout.split()]
    assert len(more) == 2
    # the tensor, and float32 copies of the part in work
    assert all(0.5 * 16.8 < each < 1.5 * 16.8 for each in more)


@pytest.mark.parametrize(
    ("any_family", "how"),
    [*(("llama", how) for how in HOW), ("bloom", "nf4"), ("opt", "int8"), ("gptj", "nf4")],
)
def test_saved_and_loaded_to_the_bit(any_folder, tmp_path, how):
    model = load_model(str(any_folder), quantize=how)
    attach(model, "lora")
    with pytest.raises(UserError, match="an adapter is on"):
        save_quantized(model, tmp_path / "out")
    use(model, [])
    files = save_quantized(model, tmp_path / "out", shard_bytes=9000)
    assert sum(path.suffix == ".safetensors" for path in files) > 1
    again = load_model(str(tmp_path / "out"))
    assert same(bits(again), bits(model))
    assert torch.equal(again(IDS), model(IDS))
    assert (again.quantize, again.fingerprint, again.dtype) == (how, model.fingerprint, model.dtype)
    assert load_model(str(tmp_path / "out"), dtype=torch.bfloat16).dtype == torch.bfloat16
    assert same(
        bits(load_model(str(any_folder), quantize=how, dtype=torch.bfloat16)), bits(model)
    )  # made from the values as stored
    with pytest.raises(UserError, match="is not empty"):
        save_quantized(model, tmp_path / "out")


def test_what_cannot_be_done_says_so(folder, tmp_path):
    plain = load_model(str(folder))
    with pytest.raises(UserError, match="not quantised"):
        save_quantized(plain, tmp_path / "out")
    with pytest.raises(UserError, match="did you mean 'nf4'"):
        load_model(str(folder), quantize="nf5")
    model = load_model(str(folder), quantize="nf4")
    with pytest.raises(UserError, match=r"dequantize\(model\)"):
        export_model(model, tmp_path / "out")
    save_quantized(model, tmp_path / "out")
    assert load_model(str(tmp_path / "out"), quantize="nf4").quantize == "nf4"
    with pytest.raises(UserError, match="stored as nf4 and cannot become int8"):
        load_model(str(tmp_path / "out"), quantize="int8")
    save_quantized(load_model(str(folder), quantize="int8"), tmp_path / "int8")
    assert (
        load_model(str(tmp_path / "int8"), quantize="llm-int8").quantize == "llm-int8"
    )  # stored alike


def change(folder: Path, key: str, value) -> None:
    path = folder / "config.json"
    raw = json.loads(path.read_text())
    raw["quantization_config"] = (
        raw["quantization_config"] | {key: value} if isinstance(key, str) else value
    )
    path.write_text(json.dumps(raw))


def tensor(leaf: str, edit):
    def act(folder: Path) -> None:
        path = str(folder / "model.safetensors")
        weights = load_file(path)
        name = f"model.layers.1.self_attn.q_proj.{leaf}"
        weights[name] = edit(weights[name])
        save_file({key: value for key, value in weights.items() if value is not None}, path)

    return act


MALFORMED = {  # name -> (how it is stored, what is done to the folder, what the message names)
    "scale NaN": ("int8", tensor("scale", lambda t: t * torch.nan), "q_proj.scale.* NaN"),
    "scale negative": ("int8", tensor("scale", lambda t: -t), "negative"),
    "scale in half": ("int8", tensor("scale", lambda t: t.half()), "torch.float16"),
    "scale short": ("int8", tensor("scale", lambda t: t[:-1]), "config asks for"),
    "code -128": ("int8", tensor("codes", lambda t: t.fill_(-128)), "-128"),
    "codes missing": ("int8", tensor("codes", lambda t: None), "missing.*q_proj.codes"),
    "codes as floats": ("int8", tensor("codes", lambda t: t.float()), "torch.float32"),
    "nf4 codes signed": ("nf4", tensor("codes", lambda t: t.view(torch.int8)), "torch.int8"),
    "nf4 least infinite": ("nf4", tensor("least", lambda t: t + torch.inf), "infinite"),
    "nf4 scales infinite": (
        "nf4",
        tensor("step", lambda t: t + 1e9),
        "q_proj holds scales that are not finite",
    ),
    "nf4 step NaN": ("nf4", tensor("step", lambda t: t * torch.nan), "NaN"),
    "nf4 absmax signed": ("nf4", tensor("absmax", lambda t: t.view(torch.int8)), "torch.int8"),
    "said to be the other": (
        "nf4",
        lambda folder: change(folder, "how", "int8"),
        "unknown tensor .*least",
    ),
    "unknown form": ("nf4", lambda folder: change(folder, "how", "nf3"), "should hold how"),
    "unknown field": ("nf4", lambda folder: change(folder, "blocks", 32), "should hold how"),
    "no fingerprint": ("nf4", lambda folder: change(folder, "fingerprint", 7), "fingerprint"),
    "GPTQ": (
        "nf4",
        lambda folder: change(folder, None, {"quant_method": "gptq", "bits": 4}),
        "'gptq'.*give the model as it was before",
    ),
    "bitsandbytes": (
        "nf4",
        lambda folder: change(folder, None, {"quant_method": "bitsandbytes", "load_in_8bit": True}),
        "'bitsandbytes'",
    ),
    "a list": ("nf4", lambda folder: change(folder, None, [4]), "quantization_config"),
    "plain weights": (
        "nf4",
        lambda folder: save_file(
            dict(load_model(str(folder.parent / "tiny")).named_parameters()),
            str(folder / "model.safetensors"),
        ),
        "q_proj.weight|unknown tensor",
    ),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_folders(folder, tmp_path, case):
    how, edit, said = MALFORMED[case]
    save_quantized(load_model(str(folder), quantize=how), tmp_path / "out")
    edit(tmp_path / "out")
    with pytest.raises(UserError, match=said) as caught:
        load_model(str(tmp_path / "out"))
    assert str(tmp_path / "out") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_that_are_not_finite_are_refused(folder):
    path = str(folder / "model.safetensors")
    weights = load_file(path)
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = 1e6
    save_file(weights, path)
    load_model(str(folder), quantize="nf4")
    with pytest.raises(
        UserError, match=r"up_proj.weight' holds NaN or infinite values, as torch\.float16"
    ):
        load_model(str(folder), quantize="nf4", dtype=torch.float16)


# ---------------------------------------------------------------- merging, commands
@pytest.mark.parametrize(
    ("any_family", "method", "how"),
    [
        *(("llama", name, how) for name in ("lora", "dora", "pissa") for how in ("int8", "nf4")),
        *(("llama", "full head", "nf4"), ("bloom", "ia3", "nf4")),
        *(("bloom", "lora", "int8"), ("opt", "dora", "nf4"), ("gptj", "pissa", "int8")),
    ],
)
def test_merging_makes_plain_weights(any_folder, tmp_path, how, method):
    model = load_model(str(any_folder), quantize=how)
    attach(model, "parallel", name="other", size=3)
    use(model, [])
    attach_small(model, method)
    randomise(model, 0.1)
    use(model, ["default"])
    difference, deviation = merge_and_compare(copy.deepcopy(model), IDS)
    assert difference / deviation < 1e-4
    merge(model)
    assert model.quantize == ""
    assert not quantized(model)
    assert adapter_names(model) == ["other"]
    use(model, ["other"])
    model(IDS)
    use(model, [])
    export_model(model, tmp_path / "out")
    assert torch.equal(load_model(str(tmp_path / "out"))(IDS), model(IDS))


def test_a_folder_that_was_quantised_and_merged_is_plain(folder, tmp_path):
    save_quantized(load_model(str(folder), quantize="nf4"), tmp_path / "nf4")
    model = load_model(str(tmp_path / "nf4"))
    before = model(IDS)
    dequantize(model)
    assert (model(IDS) - before).abs().max() / before.std() < 1e-4
    export_model(model, tmp_path / "plain")
    assert "quantization_config" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    assert load_model(str(tmp_path / "plain")).quantize == ""

"""GGUF files: a reader in plain torch (tests/gguf_reader.py) computes from their names, layout and
fields the logits that the model has, and so does llama.cpp, where it is installed."""

import pytest
import torch
from conftest import write_checkpoint
from families import CONFIGS
from gguf_reader import File, LlamaCpp, logits, needs_llama_cpp
from merged import apart
from methods import attach_small, randomise

from adapters import attach, merge, use
from adapters.formats.gguf_model import write_lora, write_model
from files.errors import UserError
from model import load_model, load_tokenizer

TOKENIZER = load_tokenizer("pocket-llama")
IDS = [5, 899, 17, 3, 88, 250, 7, 431, 16]
MORE = {
    "biases": {"attention_bias": True, "mlp_bias": True},
    "theta and eps": {"rope_theta": 500000, "rms_norm_eps": 0.1},
    "qwen3, tied": CONFIGS["llama"]["qwen3"] | {"tie_word_embeddings": True},
}
COMPUTED = [
    *(("llama", name) for name in (
        "multi-query", "explicit head_dim", "rope linear, old spelling", "rope llama3",
        "rope yarn, attention factor", "qwen2", *MORE,
    )),
    ("bloom", "seven heads"),
]  # fmt: skip
REFUSED = {
    ("llama", "gelu"): "hidden_act gelu",
    ("llama", "rope dynamic"): "rope type dynamic",
    ("llama", "qwen3, tied, with biases"): "no place for .*bias",
    ("bloom", "residual behind the norm"): "apply_residual",
    ("opt", "plain"): "no opt models",
    ("gptj", "plain"): "no gptj models",
}


def tiny(folder, family="llama", dtype=torch.float32, **changes):
    """A tiny model with the vocabulary of the pocket models."""
    write_checkpoint(folder, family, dtype=dtype, **{"vocab_size": 900} | changes)
    return load_model(str(folder))


def write(model, path, template=None):
    write_model(model, TOKENIZER, path, template)
    return path


@torch.no_grad()
def equal(model, path, lora=None):
    assert apart(logits(path, IDS, lora), model(torch.tensor([IDS]))[0].float()) < 1e-4


@torch.no_grad()
def equal_in_llama_cpp(model, path, lora=None):
    """BLOOM's gelu is a table of float16 there."""
    bound = 2e-2 if model.family == "bloom" else 1e-4
    assert apart(LlamaCpp(path, lora).logits(IDS), model(torch.tensor([IDS]))[0].float()) < bound


READERS = pytest.mark.parametrize(
    "reads", [equal, pytest.param(equal_in_llama_cpp, marks=needs_llama_cpp)]
)


@pytest.mark.parametrize(("family", "name"), COMPUTED)
@READERS
def test_the_file_computes_what_the_model_does(family, name, reads, tmp_path):
    model = tiny(tmp_path / "m", family, **(MORE | CONFIGS[family])[name])
    reads(model, write(model, tmp_path / "m.gguf"))


@pytest.mark.parametrize(("family", "name"), REFUSED)
def test_what_llama_cpp_cannot_compute_is_refused(family, name, tmp_path):
    model = tiny(tmp_path / "m", family, **CONFIGS[family][name])
    with pytest.raises(UserError, match=REFUSED[family, name]):
        write(model, tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.parametrize("name", ["rope yarn", "rope linear, old spelling"])
def test_qwen_has_no_table_of_frequencies(name, tmp_path):
    model = tiny(tmp_path / "m", **CONFIGS["llama"][name] | {"model_type": "qwen2"})
    with pytest.raises(UserError, match="rope type"):
        write(model, tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("dtype", "name", "number"), [(torch.float16, "F16", 1), (torch.bfloat16, "BF16", 32)]
)
def test_matrices_have_the_dtype_and_vectors_are_float32(dtype, name, number, tmp_path):
    model = tiny(tmp_path / "m", dtype=dtype)
    file = File(write(model, tmp_path / "m.gguf"))
    assert file["general.file_type"] == number
    assert {file.types["token_embd.weight"], file.types["blk.0.attn_q.weight"]} == {name}
    assert file.types["output_norm.weight"] == "F32"
    embedding = model.input_embedding.weight.float()
    assert torch.equal(file.tensors["token_embd.weight"], embedding)  # to the bit


def test_a_window_bounds_the_length(tmp_path):
    """llama.cpp has no window in LLaMA: up to its length there is no difference."""
    changes = {"model_type": "mistral", "sliding_window": 32, "max_position_embeddings": 64}
    file = File(write(tiny(tmp_path / "m", **changes), tmp_path / "m.gguf"))
    assert file.get("context_length") == 32
    changes |= {"sliding_window": None, "rope_scaling": {"type": "linear", "factor": 2.0}}
    file = File(write(tiny(tmp_path / "n", **changes), tmp_path / "n.gguf"))
    assert file.get("context_length") == 128


LORAS = {  # the adapter -> what else there is
    "llama": ["lora everywhere", "pissa", "lora on the embedding", "lora on the head"],
    "bloom": ["lora everywhere", "vera"],
}


@pytest.mark.parametrize(
    ("family", "name"), [(family, name) for family, names in LORAS.items() for name in names]
)
@READERS
def test_a_lora_on_its_base(family, name, reads, tmp_path):
    model = tiny(tmp_path / "m", family, tie_word_embeddings=False)
    base = write(model, tmp_path / "base.gguf")
    attach_small(model, name)
    randomise(model)
    write_lora(model, tmp_path / "lora.gguf")
    reads(model.eval(), base, tmp_path / "lora.gguf")
    assert float(File(tmp_path / "lora.gguf")["adapter.lora.alpha"]).is_integer()
    use(model, [])
    with pytest.raises(AssertionError):
        reads(model, base, tmp_path / "lora.gguf")  # it does something


def test_merged_with_a_bias_that_the_base_has_not(tmp_path):
    model = tiny(tmp_path / "m", "llama")
    attach_small(model, "lora-bias")
    randomise(model)
    before = model.eval()(torch.tensor([IDS]))[0]
    merge(model)
    assert apart(logits(write(model, tmp_path / "m.gguf"), IDS), before) < 1e-4
    model = tiny(tmp_path / "n", "llama", model_type="qwen2")
    attach(model, "lora", bias=True, r=2, sites=["o"])
    randomise(model)
    merge(model)
    with pytest.raises(UserError, match=r"no place for .*o_proj\.bias"):
        write(model, tmp_path / "n.gguf")


@pytest.mark.parametrize(
    ("name", "tied", "why"),
    [("dora", False, "dora"), ("parallel", False, "bottleneck"), ("prefix", False, "prefix"),
     ("lora-bias", False, "lora"), ("lora on the embedding", True, "head is its embedding"),
     ("lora on the head", True, "head is its embedding"), ("unipelt", False, "")],
)  # fmt: skip
def test_what_is_no_lora_is_refused(name, tied, why, tmp_path):
    model = tiny(tmp_path / "m", tie_word_embeddings=tied)
    attach_small(model, name)
    with pytest.raises(UserError, match=f"{why}.*--gguf merged"):
        write_lora(model, tmp_path / "lora.gguf")
    assert not (tmp_path / "lora.gguf").exists()


def test_weights_that_are_not_finite_are_refused(tmp_path):
    model = tiny(tmp_path / "m")
    model.lm_head.weight.data[3, 4] = torch.inf
    with pytest.raises(UserError, match="holds NaN or infinite values"):
        write(model, tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()

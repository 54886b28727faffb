"""Checkpoints and tokenizers of random content: read, or refused in one line."""

import io
import json
import shutil
import struct
import tempfile
from pathlib import Path

import pytest
import torch
from bad_input import check, write_header
from conftest import write_checkpoint
from families import CONFIGS, config_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from model.registry import POCKET


@pytest.fixture(params=[25, pytest.param(400, marks=pytest.mark.slow)])
def fuzz(request):
    """How a function is called with that many examples."""
    how = settings(
        max_examples=request.param,
        deadline=20_000,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
        database=None,
    )
    return lambda *examples: lambda function: how(given(*examples)(function))()


# ---------------------------------------------------------------- fuzzing

NUMBERS = st.one_of(
    st.integers(-3, 70),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.sampled_from([0, 1, 2, 3, 4, 8, 16, 31, 32, 61, 64, 2**24, 2**31, 2**63, 10**400, 1e308]),
)
JSON = st.recursive(
    st.one_of(
        st.none(),
        NUMBERS,
        st.text(max_size=8),
        st.sampled_from(["linear", "yarn", "dynamic", "llama3", "gelu", "relu", "BF16", "F32"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)
ROPE = st.dictionaries(
    st.sampled_from(["type", "rope_type", "factor", "low_freq_factor", "high_freq_factor",
        "original_max_position_embeddings", "beta_fast", "beta_slow",
                     "mscale", "mscale_all_dim", "truncate", "attention_factor", "rope_theta"]),
    st.one_of(st.sampled_from(["linear", "yarn", "dynamic", "llama3", "default"]), NUMBERS),
    max_size=6,
)  # fmt: skip


@pytest.fixture(scope="module")
def checkpoints():
    """A checkpoint of each family that the fuzzers may spoil and restore."""
    with tempfile.TemporaryDirectory() as work:
        folders = {family: write_checkpoint(Path(work) / family, family) for family in CONFIGS}
        yield folders


@pytest.mark.parametrize("family", CONFIGS)
def test_fuzzed_configs(fuzz, checkpoints, family):
    fields = sorted({*config_of(family), *CONFIG_FIELDS[family]})

    @fuzz(
        st.dictionaries(st.sampled_from(fields), JSON, min_size=1, max_size=2),
        st.one_of(st.none(), ROPE),
        st.booleans(),
    )
    def _(changes, rope, spelled_new):
        config = config_of(family) | changes
        if rope is not None and family == "llama":
            config["rope_parameters" if spelled_new else "rope_scaling"] = rope
        (checkpoints[family] / "config.json").write_text(json.dumps(config))
        check(checkpoints[family])


CONFIG_FIELDS = {
    "llama": [
        "model_type",
        "sliding_window",
        "use_sliding_window",
        "max_window_layers",
        "layer_types",
        "architectures",
        "head_dim",
        "hidden_act",
        "rope_theta",
        "rope_scaling",
        "attention_bias",
        "mlp_bias",
        "rms_norm_eps",
        "num_key_value_heads",
    ],
    "bloom": [
        "n_embed",
        "num_attention_heads",
        "num_hidden_layers",
        "layer_norm_epsilon",
        "slow_but_exact",
        "pretraining_tp",
        "n_inner",
    ],
    "opt": [
        "word_embed_proj_dim",
        "do_layer_norm_before",
        "enable_bias",
        "activation_function",
        "_remove_final_layer_norm",
        "layer_norm_elementwise_affine",
    ],
    "gptj": [
        "n_inner",
        "rotary_dim",
        "activation_function",
        "layer_norm_epsilon",
        "hidden_size",
        "num_attention_heads",
    ],
}


def test_fuzzed_headers(fuzz, folder):
    """The header of a real file with entries changed, and arbitrary bytes in front of the data."""
    raw = (folder / "model.safetensors").read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    entry = st.fixed_dictionaries({}, optional={"dtype": JSON, "shape": JSON, "data_offsets": JSON})
    places = st.sampled_from(["dtype", "shape", "data_offsets"])

    @fuzz(
        st.dictionaries(st.sampled_from(sorted(header)),
            st.one_of(entry, JSON, st.tuples(places, JSON)), min_size=1, max_size=3),
        st.one_of(st.none(), st.binary(max_size=40)), st.integers(0, len(raw) + 8),
    )  # fmt: skip
    def _(changes, noise, at):
        made = dict(header)
        for name, change in changes.items():
            made[name] = (
                {**header[name], change[0]: change[1]}
                if isinstance(change, tuple) and "dtype" in header[name]
                else change
            )
        write_header(folder, json.dumps(made).encode(), data)
        check(folder)
        if noise is not None:
            (folder / "model.safetensors").write_bytes(raw[:at] + noise + raw[at + len(noise) :])
            check(folder)


def test_fuzzed_bins_and_indexes(fuzz, folder):
    raw = io.BytesIO()
    torch.save(
        {key: tensor[:1] for key, tensor in load_file(str(folder / "model.safetensors")).items()},
        raw,
    )
    raw = raw.getvalue()
    (folder / "model.safetensors").unlink()

    @fuzz(st.binary(min_size=1, max_size=30), st.integers(0, len(raw)), st.booleans(), JSON)
    def _(noise, at, cut, index):
        (folder / "pytorch_model.bin").write_bytes(
            raw[:at] + noise + (b"" if cut else raw[at + len(noise) :])
        )
        check(folder)
        (folder / "pytorch_model.bin").unlink()
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
        check(folder)
        (folder / "pytorch_model.bin.index.json").unlink()


def test_fuzzed_tokenizers(fuzz, tmp_path):
    folder = tmp_path / "pocket"
    shutil.copytree(POCKET / "llama", folder)
    raw = (folder / "tokenizer.json").read_bytes()
    made = json.loads(raw)
    model = made.pop("model")

    @fuzz(
        st.dictionaries(st.sampled_from(sorted(made)), JSON, max_size=2),
        st.dictionaries(st.sampled_from(sorted(model)), JSON, max_size=2),
        st.dictionaries(st.sampled_from(["bos_token", "eos_token", "pad_token", "add_bos_token"]),
            JSON, max_size=2),
        st.binary(max_size=20), st.integers(0, len(raw)),
    )  # fmt: skip
    def _(outer, inner, names, noise, at):
        (folder / "tokenizer_config.json").write_text(json.dumps(names))
        (folder / "tokenizer.json").write_text(json.dumps(made | outer | {"model": model | inner}))
        check(folder, "--prompt", "Tom has 3 pens.")
        (folder / "tokenizer.json").write_bytes(raw[:at] + noise + raw[at + len(noise) :])
        check(folder, "--prompt", "Tom has 3 pens.")


def test_fuzzed_sentencepiece_models(fuzz, tmp_path):
    """A small model made for the test, with bytes changed."""
    import sentencepiece

    made, folder = io.BytesIO(), tmp_path / "pocket"
    shutil.copytree(POCKET / "llama", folder)
    (folder / "tokenizer.json").unlink()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sat on the mat"] * 50),
        model_writer=made,
        vocab_size=270,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=2,
        hard_vocab_limit=False,
    )
    raw = made.getvalue()

    @fuzz(st.binary(min_size=1, max_size=8), st.integers(0, len(raw)))
    def _(noise, at):
        (folder / "tokenizer.model").write_bytes(raw[:at] + noise + raw[at + len(noise) :])
        check(folder, "--prompt", "Tom has 3 pens.")

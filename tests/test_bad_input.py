"""What is malformed ends in one line on stderr and a non-zero status: never a traceback, never a
hang, nothing executed.

All of it is driven by `run.py generate --model FOLDER --prompt-ids 5,6,7 --max-new-tokens 2`, as
a user would meet it.
"""

import contextlib
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import processes
import pytest
import torch
from conftest import write_checkpoint
from families import CONFIGS, config_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import run as command_line
from model.registry import POCKET

ROOT = Path(__file__).parent.parent
FUZZ = settings(
    max_examples=75,
    deadline=20_000,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    database=None,
)


def generate(folder: Path, *what: str) -> tuple[int, str]:
    """(exit status, stderr) of the command, in this process."""
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        limit = () if "--max-new-tokens" in what else ("--max-new-tokens", "2")
        status = command_line.main(
            ["generate", "--model", str(folder), *(what or ("--prompt-ids", "5,6,7")), *limit]
        )
    return status, errors.getvalue()


def check(folder: Path, *what: str) -> str:
    """Run it: either it works, or it says why in one line. Returns that line."""
    began = time.process_time()
    status, errors = generate(folder, *what)
    assert time.process_time() - began < 20
    if status == 0:
        return ""
    assert status == 1
    assert errors.startswith("run.py: ")
    assert errors.count("\n") == 1
    assert len(errors) < 2000
    return errors


@pytest.mark.parametrize("family", CONFIGS)
def test_a_folder_without_a_tokenizer_works(tmp_path, family):
    status, _ = generate(write_checkpoint(tmp_path, family))
    assert status == 0


def change_config(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def write_header(
    folder: Path, header: bytes, data: bytes = b"\0" * 16, length: int | None = None
) -> None:
    (folder / "model.safetensors").write_bytes(
        struct.pack("<Q", len(header) if length is None else length) + header + data
    )


def sparse(path: Path, size: int) -> None:
    with open(path, "wb") as file:
        file.truncate(size)


CASES = {
    "config: not JSON": (lambda f: (f / "config.json").write_text("{"), "cannot be read as JSON"),
    "config: empty": (lambda f: (f / "config.json").write_text(""), "cannot be read as JSON"),
    "config: a list": (lambda f: (f / "config.json").write_text("[]"), "not a JSON object"),
    "config: bad UTF-8": (lambda f: (f / "config.json").write_bytes(b'{"model_type": "\xff"}'),
        "cannot be read as JSON"),
    "config: a key twice": (lambda f: (f / "config.json").write_text(
        '{"model_type": "llama", "model_type": "opt"}'), "twice"),
    "config: deep": (lambda f: (f / "config.json").write_text('{"a":' * 50_000),
        "cannot be read as JSON"),
    "config: one giant line": (lambda f: sparse(f / "config.json", 2 * 10**9),
        "too many for what it should hold"),
    "config: missing": (lambda f: (f / "config.json").unlink(), "config.json is missing"),
    "config: a folder": (lambda f: ((f / "config.json").unlink(), (f / "config.json").mkdir()),
        "is not a file"),
    "config: NaN": (lambda f: change_config(f, rms_norm_eps=float("nan")), "rms_norm_eps"),
    "config: infinite": (lambda f: change_config(f, rope_theta=float("inf")), "rope_theta"),
    "config: 10^9 layers": (lambda f: change_config(f, num_hidden_layers=10**9),
        "num_hidden_layers"),
    "config: 10^400 layers": (lambda f: change_config(f, num_hidden_layers=10**400),
        "num_hidden_layers"),
    "config: 999 layers": (lambda f: change_config(f, num_hidden_layers=999),
        "tensors are missing"),
    "config: negative": (lambda f: change_config(f, hidden_size=-32), "hidden_size"),
    "config: huge": (lambda f: change_config(f, vocab_size=2**23, hidden_size=2**16, head_dim=8),
        "config asks for"),
    "config: a string": (lambda f: change_config(f, hidden_size="32"), "hidden_size"),
    "config: true for a number": (lambda f: change_config(f, hidden_size=True), "hidden_size"),
    "config: model type": (lambda f: change_config(f, model_type="mamba"), "mamba"),
    "config: a model type without end": (lambda f: change_config(f, model_type="m" * 10**6), "mmm"),
    "config: model type a list": (lambda f: change_config(f, model_type=["llama"]), "model_type"),
    "config: no model type": (lambda f: change_config(f, model_type=None), "model_type"),
    "config: rope type": (lambda f: change_config(f, rope_scaling={"rope_type": "longrope"}),
        "longrope"),
    "config: rope type a list": (lambda f: change_config(f, rope_scaling={"rope_type": []}),
        "rope type"),
    "config: rope factor missing": (lambda f: change_config(f,
        rope_scaling={"rope_type": "linear"}), "factor"),
    "config: rope factor a string": (lambda f: change_config(f,
        rope_scaling={"rope_type": "linear", "factor": "2"}), "factor"),
    "config: rope of another type": (lambda f: change_config(f,
        rope_scaling={"rope_type": "linear", "factor": 2, "beta_fast": 2}), "beta_fast"),
    "config: partial rotary": (lambda f: change_config(f,
        rope_scaling={"rope_type": "default", "partial_rotary_factor": 0.5}),
        "partial_rotary_factor"),
    "config: rope ends reversed": (
        lambda f: change_config(f, rope_scaling={"rope_type": "llama3", "factor": 2,
            "low_freq_factor": 4, "high_freq_factor": 1}), "high_freq_factor",
    ),
    "config: activation": (lambda f: change_config(f, hidden_act="swish9"), "swish9"),
    "config: unknown field": (lambda f: change_config(f, sliding_window=5), "sliding_window"),
    "config: quantized": (lambda f: change_config(f, quantization_config={"bits": 4}),
        "quantization_config"),
    "weights: none": (lambda f: (f / "model.safetensors").unlink(),
        "neither model.safetensors nor pytorch_model.bin"),
    "weights: empty": (lambda f: (f / "model.safetensors").write_bytes(b""), "cannot be read"),
    "weights: cut short": (lambda f: (f / "model.safetensors").write_bytes(
        (f / "model.safetensors").read_bytes()[:999]), "cannot be read"),
    "weights: header past the end": (lambda f: write_header(f, b"{}", length=2**63),
        "cannot be read"),
    "weights: zeros": (lambda f: sparse(f / "model.safetensors", 2 * 10**9),
        "invalid JSON in header"),
    "weights: a shape that is no number": (
        lambda f: write_header(f, (
            b'{"a": {"dtype": "F32", "shape": ["a", 1500000000], "data_offsets": '
b'[0, 16]}}')), "cannot be read",
    ),
    "weights: a shape without end": (
        lambda f: write_header(f,
            b'{"a": {"dtype": "F32", "shape": [' + b"9" * 18 + b",1" * 10**6
            + b'], "data_offsets": [0, 16]}}'), "cannot be read",
    ),
    "weights: a header of nests": (lambda f: write_header(f,
        b'{"a": [' + b"[]," * 10**7 + b"[]]}"), "cannot be read"),
    "weights: a name without end": (lambda f: write_header(f, b'{"' + b"a" * 10**7 + b'": 7}'),
        "cannot be read"),
    "weights: no tensors": (lambda f: write_header(f, b"{}", b""), "tensors are missing"),
    "index: a shard outside": (
        lambda f: ((f / "model.safetensors").unlink(),
            (f / "model.safetensors.index.json").write_text(
                '{"weight_map": {"a": "../x.safetensors"}}')),
        "not a .safetensors file of this folder",
    ),
    "index: a shard missing": (
        lambda f: ((f / "model.safetensors").unlink(),
            (f / "model.safetensors.index.json").write_text(
                '{"weight_map": {"a": "x.safetensors"}}')),
        "is missing",
    ),
    "index: millions of shards": (
        lambda f: ((f / "model.safetensors").unlink(),
            (f / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {str(i): f"{i}.safetensors" for i in range(300_000)}}))),
        "too many for a checkpoint",
    ),
    "index: no map": (lambda f: ((f / "model.safetensors").unlink(),
        (f / "model.safetensors.index.json").write_text('{"weight_map": []}')), "weight_map"),
    "index: a name with a zero": (
        lambda f: ((f / "model.safetensors").unlink(),
            (f / "model.safetensors.index.json").write_text(
                '{"weight_map": {"a": "\\u0000.safetensors"}}')),
        "not a .safetensors file",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_each_is_named_in_one_line(folder, name):
    edit, said = CASES[name]
    edit(folder)
    assert said in check(folder)


FAMILY_SETTINGS = [
    ("bloom", {"n_head": 5}, "n_head"), ("bloom", {"slow_but_exact": True, "pretraining_tp": 2},
        "slow_but_exact"), ("bloom", {"n_inner": 7}, "n_inner"),
    ("bloom", {"n_embed": 64}, "two spellings"), ("opt", {"activation_function": "swish9"},
        "swish9"), ("opt", {"num_attention_heads": 5}, "num_att"),
    ("opt", {"scale_embeddings": True}, "scale_embeddings"),
    ("gptj", {"rotary_dim": 5}, "rotary_dim"), ("gptj", {"rotary_dim": 10}, "rotary_dim"),
    ("gptj", {"rotary_dim": None}, "rotary_dim"), ("gptj", {"activation_function": 7},
        "activation_function"), ("gptj", {"scale_attn_weights": False}, "scale"),
]  # fmt: skip


@pytest.mark.parametrize(("family", "changes", "named"), FAMILY_SETTINGS)
def test_settings_of_a_family_that_cannot_be_computed(tmp_path, family, changes, named):
    folder = write_checkpoint(tmp_path, family)
    change_config(folder, **changes)
    assert named in check(folder)


def test_the_command_as_a_user_runs_it(folder):
    """In a process of its own: status, one line, no traceback, memory; --debug shows the
    traceback.
    """
    command = [
        sys.executable,
        str(ROOT / "run.py"),
        "generate",
        "--model",
        str(folder),
        *"--prompt-ids 5,6,7 --max-new-tokens 2".split(),
    ]
    good = processes.finish(*command[1:])
    assert good.returncode == 0
    assert len(good.stdout.strip().split(",")) == 2
    sparse(folder / "model.safetensors", 3 * 10**9)
    bad = subprocess.run([sys.executable, "-c", MEASURED, *command], capture_output=True, text=True)
    status, peak = map(int, bad.stdout.split())
    assert status == 1
    assert peak < 10**9
    assert bad.stderr.startswith("run.py: ")
    assert bad.stderr.count("\n") == 1
    assert "Traceback" in processes.finish(*command[1:], "--debug").stderr


MEASURED = """
import os, sys
child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
_, status, usage = os.wait4(child, 0)
print(os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024)
"""


def test_a_pickle_is_not_executed(folder):
    mark = folder / "executed"
    (folder / "model.safetensors").unlink()

    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(mark),))

    torch.save({"model.norm.weight": Evil()}, folder / "pytorch_model.bin")
    assert "refused" in check(folder)
    assert not mark.exists()


# ---------------------------------------------------------------- tokenizers


def with_words(folder: Path, **files: str) -> Path:
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)
    return folder


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "holds no tokenizer"),
        ({"tokenizer__json": "{}"}, "tokenizer.json cannot be read"),
        ({"tokenizer__json": ""}, "tokenizer.json cannot be read"),
        (
            {
                "tokenizer__json": (
                    '{"model": {"type": "BPE", "vocab": {"a": 4294967299}, "merges": []}}'
                )
            },
            "tokenizer.json cannot be read",
        ),
        ({"tokenizer__model": "x"}, "tokenizer.model cannot be read"),
        ({"vocab__json": '{"a": 0}'}, "merges.txt is missing"),
        ({"vocab__json": '{"a": 0}', "merges__txt": "a b c"}, "merges.txt cannot be read"),
        ({"tokenizer_config__json": "[1]"}, "tokenizer_config.json holds"),
        ({"special_tokens_map__json": "{"}, "special_tokens_map.json cannot be read"),
        (
            {
                "tokenizer__json": '{"version":"1.0","model":'
                '{"type":"WordLevel","vocab":{"a":0},"unk_token":"[UNK]"}}'
            },
            "cannot be read",
        ),
        (
            {"tokenizer__model": "x", "tokenizer_config__json": '{"add_prefix_space": false}'},
            "add_prefix_space",
        ),
        (
            {"vocab__json": '{"a": 0}', "merges__txt": "", "added_tokens__json": '{"b": 7}'},
            "added_tokens.json",
        ),
        (
            {"vocab__json": '{"a": 0}', "merges__txt": "", "added_tokens__json": '{"b": "c"}'},
            "added_tokens.json",
        ),
        ({"tokenizer__model": "x", "added_tokens__json": '{"": 1}'}, "added_tokens.json"),
    ],
)
def test_broken_tokenizers_are_named(folder, files, said):
    assert said in check(with_words(folder, **files), "--prompt", "hello")


def test_a_tokenizer_larger_than_the_embedding(folder):
    shutil.copy(POCKET / "llama" / "tokenizer.json", folder)
    assert "the tokenizer has 896 entries, the embedding only 61" in check(
        folder, "--prompt", "hello"
    )


def test_added_tokens_beyond_the_embedding_are_an_error_only_where_they_are_used(tmp_path):
    """Published: Llama-2 and CodeLlama repositories whose tokenizer has a pad or fill-in token
    more than the embedding has rows.
    """
    folder = tmp_path / "pocket"
    shutil.copytree(POCKET / "llama", folder)
    made = json.loads((folder / "tokenizer.json").read_text())
    made["added_tokens"].append(made["added_tokens"][1] | {"id": 900, "content": "<PAD2>"})
    (folder / "tokenizer.json").write_text(json.dumps(made))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<eos>", "pad_token": "<PAD2>"}')
    assert check(folder, "--prompt", "Tom has 3 pens.") == ""
    assert "the model's embedding has 900 rows" in check(folder, "--prompt", "Tom has <PAD2> pens.")


@pytest.mark.parametrize(
    "what",
    [
        ("--prompt", "a\udcff"),
        ("--instruction", "a\udcff"),
        ("--prompt-ids", "5", "--max-new-tokens", "100000000000"),
    ],
)
def test_options_that_cannot_be_carried_out(what):
    assert check(Path("pocket-llama"), *what)


def test_a_name_too_long_for_a_folder():
    assert "is not a model" in check(Path("a" * 300))


def test_a_sparse_tokenizer_of_a_gigabyte_is_not_read(folder):
    for name in ("tokenizer.json", "tokenizer.model", "merges.txt"):
        sparse(folder / name, 10**9)
        assert "too many for a tokenizer" in check(folder, "--prompt", "hello")
        (folder / name).unlink()


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
def test_fuzzed_configs(checkpoints, family):
    fields = sorted({*config_of(family), *CONFIG_FIELDS[family]})

    @FUZZ
    @given(
        st.dictionaries(st.sampled_from(fields), JSON, min_size=1, max_size=2),
        st.one_of(st.none(), ROPE),
        st.booleans(),
    )
    def fuzz(changes, rope, spelled_new):
        config = config_of(family) | changes
        if rope is not None and family == "llama":
            config["rope_parameters" if spelled_new else "rope_scaling"] = rope
        (checkpoints[family] / "config.json").write_text(json.dumps(config))
        check(checkpoints[family])

    fuzz()


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


def test_fuzzed_headers(folder):
    """The header of a real file with entries changed, and arbitrary bytes in front of the data."""
    raw = (folder / "model.safetensors").read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    entry = st.fixed_dictionaries({}, optional={"dtype": JSON, "shape": JSON, "data_offsets": JSON})
    places = st.sampled_from(["dtype", "shape", "data_offsets"])

    @FUZZ
    @given(
        st.dictionaries(st.sampled_from(sorted(header)),
            st.one_of(entry, JSON, st.tuples(places, JSON)), min_size=1, max_size=3),
        st.one_of(st.none(), st.binary(max_size=40)), st.integers(0, len(raw) + 8),
    )  # fmt: skip
    def fuzz(changes, noise, at):
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

    fuzz()


def test_fuzzed_bins_and_indexes(folder):
    raw = io.BytesIO()
    torch.save(
        {key: tensor[:1] for key, tensor in load_file(str(folder / "model.safetensors")).items()},
        raw,
    )
    raw = raw.getvalue()
    (folder / "model.safetensors").unlink()

    @settings(FUZZ, max_examples=40)
    @given(st.binary(min_size=1, max_size=30), st.integers(0, len(raw)), st.booleans(), JSON)
    def fuzz(noise, at, cut, index):
        (folder / "pytorch_model.bin").write_bytes(
            raw[:at] + noise + (b"" if cut else raw[at + len(noise) :])
        )
        check(folder)
        (folder / "pytorch_model.bin").unlink()
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
        check(folder)
        (folder / "pytorch_model.bin.index.json").unlink()

    fuzz()


def test_fuzzed_tokenizers(tmp_path):
    folder = tmp_path / "pocket"
    shutil.copytree(POCKET / "llama", folder)
    raw = (folder / "tokenizer.json").read_bytes()
    made = json.loads(raw)
    model = made.pop("model")

    @settings(FUZZ, max_examples=40)
    @given(
        st.dictionaries(st.sampled_from(sorted(made)), JSON, max_size=2),
        st.dictionaries(st.sampled_from(sorted(model)), JSON, max_size=2),
        st.dictionaries(st.sampled_from(["bos_token", "eos_token", "pad_token", "add_bos_token"]),
            JSON, max_size=2),
        st.binary(max_size=20), st.integers(0, len(raw)),
    )  # fmt: skip
    def fuzz(outer, inner, names, noise, at):
        (folder / "tokenizer_config.json").write_text(json.dumps(names))
        (folder / "tokenizer.json").write_text(json.dumps(made | outer | {"model": model | inner}))
        check(folder, "--prompt", "Tom has 3 pens.")
        (folder / "tokenizer.json").write_bytes(raw[:at] + noise + raw[at + len(noise) :])
        check(folder, "--prompt", "Tom has 3 pens.")

    fuzz()


def test_fuzzed_sentencepiece_models(tmp_path):
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

    @settings(FUZZ, max_examples=40)
    @given(st.binary(min_size=1, max_size=8), st.integers(0, len(raw)))
    def fuzz(noise, at):
        (folder / "tokenizer.model").write_bytes(raw[:at] + noise + raw[at + len(noise) :])
        check(folder, "--prompt", "Tom has 3 pens.")

    fuzz()

"""What is malformed ends in one line on stderr and a non-zero status: never a traceback, never a
hang, nothing executed.

All of it is driven by `run.py generate --model FOLDER --prompt-ids 5,6,7 --max-new-tokens 2`, as
a user would meet it.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import processes
import pytest
import torch
from bad_input import change_config, check, generate, write_header
from conftest import write_checkpoint
from families import CONFIGS
from processes import ROOT

from model.registry import POCKET


@pytest.mark.parametrize("family", CONFIGS)
def test_a_folder_without_a_tokenizer_works(tmp_path, family):
    status, _ = generate(write_checkpoint(tmp_path, family))
    assert status == 0


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
    "config: 99 layers": (lambda f: change_config(f, num_hidden_layers=99),
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
    "index: very many shards": (
        lambda f: ((f / "model.safetensors").unlink(),
            (f / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {str(i): f"{i}.safetensors" for i in range(30_000)}}))),
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

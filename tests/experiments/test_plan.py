"""The plan of a run: its table, what to change, and what malformed options say."""

import json

import pytest
import torch
from conftest import write_checkpoint
from plans import (
    command,
    shallow,  # noqa: F401
)

from adapters import attach, named_parameters, save_adapter
from files.errors import UserError
from model import load_model
from model.onednn import is_usable
from model.quantize import save_quantized
from train.plan.advice import parse_memory, parse_rate

SHAPE = {"hidden_size": 128, "intermediate_size": 344, "vocab_size": 900}  # of pocket-llama


def test_the_table_and_what_to_change(capsys):
    small = ("plan", "--model", "smollm2-135m", "--adapter", "lora", "--set", "eval.batch_size=2")
    assert command(*small, "--memory", "24GB", "--flops", "1T", "--rows", "1600") == 0
    text = capsys.readouterr().out
    assert "fits                   yes" in text
    assert "300 steps" in text  # 3 epochs of 100
    assert "to fit" not in text
    assert command(*small, "--memory", "800MB", "--json") == 1
    facts = json.loads(capsys.readouterr().out)
    assert facts["fits"] is False
    assert facts["advice"] == "--set train.checkpointing=block"
    assert (
        command(*small, "--memory", "800MB", "--set", "train.checkpointing=block") == 0
    )  # the advice is good


@pytest.mark.parametrize(
    "words",
    [(), pytest.param(("--quantize", "int8"), marks=pytest.mark.slow), ("--processes", "2")],
)
def test_a_folder_that_is_quantised_stays_so_whatever_would_fit(capsys, tmp_path, words):
    write_checkpoint(tmp_path / "plain", num_hidden_layers=2, **SHAPE)
    save_quantized(load_model(str(tmp_path / "plain"), quantize="int8"), tmp_path / "int8")
    little, more = ("1336MB", "1350MB") if "--processes" in words else ("557MB", "570MB")
    words = ("--model", tmp_path / "int8", "--adapter", "lora", *words)
    found = facts_of(capsys, *words, "--memory", little, status=1)
    assert found["quantize"] == "int8"
    assert found["advice"] is None
    found = facts_of(capsys, *words, "--memory", more, status=1)
    assert found["advice"].startswith("--set")


def test_copies_of_weights_for_answers_are_planned(capsys, tmp_path):
    write_checkpoint(tmp_path / "one", num_hidden_layers=1, num_key_value_heads=4, **SHAPE)
    small = ("--model", tmp_path / "one", "--dtype", "bfloat16", "--set", "eval.batch_size=1")

    def device(*words):
        return facts_of(capsys, *small, *words)["devices"][0]

    plain = device("--device", "cpu", "--set", "eval.decode_memory=plain")
    auto = device("--device", "cpu")
    packed = device("--device", "cpu", "--set", "eval.decode_memory=packed")
    linears = 4 * 128 * 128 + 3 * 128 * 344 + 900 * 128
    expected = 2 * linears if is_usable(torch.bfloat16) else None
    assert "packed_bytes" not in plain
    assert auto.get("packed_bytes") == packed.get("packed_bytes") == expected
    assert auto["answering_bytes"] == plain["answering_bytes"]
    assert packed["answering_bytes"] == plain["answering_bytes"] + (expected or 0)
    assert "packed_bytes" not in device("--device", "cuda")
    quantised = device("--device", "cuda", "--quantize", "nf4")
    assert quantised["packed_bytes"] == 2 * (linears - 900 * 128)  # not the head


@pytest.mark.slow
def test_where_nothing_helps_the_plan_says_so(capsys):
    assert (
        command(
            *(
                "plan --model smollm2-135m --adapter lora --set eval.batch_size=2 --memory 600MB"
            ).split()
        )
        == 1
    )
    assert "none of the changes tried is enough" in capsys.readouterr().out


def facts_of(capsys, *words, status: int = 0) -> dict:
    assert command("plan", *words, "--json") == status
    return json.loads(capsys.readouterr().out)


def test_an_adapter_to_load_is_there_and_not_trained(capsys, tmp_path):
    model = load_model("pocket-llama", dtype=torch.float32)
    attach(model, "parallel", "one")
    save_adapter(model, tmp_path / "one", "one")
    words = (*"--model pocket-llama --adapter lora --device cpu --dtype float32".split(),)
    plain, stacked = (
        facts_of(capsys, *words),
        facts_of(capsys, *words, "--load", f"one={tmp_path / 'one'}"),
    )
    assert all(plain[key] == stacked[key] for key in ("parameters", "trainable_parameters"))
    plain, stacked = plain["devices"][0], stacked["devices"][0]
    assert all(
        plain[key] == stacked[key]
        for key in ("weights_bytes", "gradients_bytes", "optimizer_bytes")
    )
    assert stacked["adapter_bytes"] - plain["adapter_bytes"] == 4 * sum(
        one.numel() for one in named_parameters(model).values()
    )
    assert (
        stacked["training_bytes"]
        > plain["training_bytes"] + stacked["adapter_bytes"] - plain["adapter_bytes"]
    )
    fused = facts_of(
        capsys,
        *words[:2],
        *words[4:],
        "--adapter",
        "fusion",
        "--set",
        'adapter.of=["one", "two"]',
        "--set",
        'adapter.sites=["attn", "mlp"]',
        "--load",
        f"one={tmp_path / 'one'}",
        "--load",
        f"two={tmp_path / 'one'}",
    )
    assert fused["adapter"] == "fusion"
    assert fused["devices"][0]["adapter_bytes"] > 8 * sum(
        one.numel() for one in named_parameters(model).values()
    )


def test_sizes_and_rates_are_read_strictly():
    assert parse_memory("24GB,24GiB,24000MB, 24") == [
        24 * 10**9,
        24 * 2**30,
        24 * 10**9,
        24 * 10**9,
    ]
    assert parse_rate("150T") == parse_rate("150e12") == 150e12
    for text in (
        "",
        "24gb",
        "GB",
        "-24GB",
        "24GB,",
        "24 G B",
        "1e3GB",
        "0GB",
        "24KB",
        "nan",
        "inf",
        "٣GB",
    ):
        with pytest.raises(UserError, match="24GiB"):
            parse_memory(text)
    for text in ("", "T", "-1T", "0", "1e99", "150 tera", "inf", "nan", "150t"):
        with pytest.raises(UserError, match="150T"):
            parse_rate(text)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--memory", "24gb"), "24GiB"),
        (("--memory", "24GB", "--device", "cuda:0,cuda:1"), "1 given, for the devices of the plan"),
        (("--device", "tpu"), "a plan is for cpu"),
        (("--device", "cpu,cuda"), "a plan is for cpu"),
        (("--device", "cuda:1\N{ARABIC-INDIC DIGIT THREE}"), "a plan is for cpu"),
        (("--device", "cuda:100", "--memory", "2GB,2GB"), "the plan: cuda:100"),
        (("--length", "1"), "2 or more"),
        (("--labelled", "0"), "share"),
        (("--labelled", "nan"), "share"),
        (("--rows", "0"), "1 or more"),
        (("--flops", "fast"), "150T"),
        (("--dtype", "int4"), "int4"),
        (("--quantize", "int4"), "int4"),
        (("--memory", "24GB,24GB", "--set", "layers_per_device=[30,1]"), "4 layers"),
        (("--set", "load={ a = 'b' }"), "no adapter folder"),
        (("--load", "a"), "NAME=FOLDER"),
        (("--shard",), "--processes 8"),
        (("--processes", "0"), "1 or more"),
        (("--processes", "2", "--memory", "24GB,24GB"), "give one device"),
        (("--processes", "2", "--shard", "--quantize", "nf4"), "do not go together"),
    ],
)
def test_malformed_options_are_one_line(words, said, capsys):
    assert command("plan", "--model", "smollm2-135m", *words) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1

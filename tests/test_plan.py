"""A plan is a count: of a step on a model without memory, which must be what the same step makes
with memory.
"""

import json
import sys
from dataclasses import replace

import pytest
import torch

from adapters import attach, named_parameters, remove, save_adapter
from adapters.config import resolve
from benchmarks import plan_check
from files.errors import UserError
from model import load_model
from model.config import family_and_config, skeleton
from model.load import put
from model.onednn import is_usable
from model.quantize import save_quantized
from model.registry import REGISTRY
from run import main as run_main
from tests.families import TINY, config_of
from train.plan.advice import parse_memory, parse_rate, usable
from train.plan.dry_run import answer, training_step
from train.settings import Eval, Train

ROWS, LENGTH = 3, 16
LAYERS = 4


@pytest.fixture(autouse=True)
def shallow(monkeypatch) -> None:
    """A plan takes as long as the model has layers: SmolLM2 has 4 here, in place of 30."""
    monkeypatch.setitem(REGISTRY["smollm2-135m"].config, "num_hidden_layers", LAYERS)


def model_of(
    family: str,
    adapter: str = "lora",
    dtype: torch.dtype = torch.float32,
    memory: bool = False,
    **changes,
):
    """A tiny model with an adapter; memory=False: on the meta device."""
    module, config = family_and_config(config_of(family, **changes), "test")
    model = skeleton(module, config).to(dtype)
    model.dtype = dtype
    if memory:
        tied = model.tied
        for name, parameter in list(model.named_parameters()):
            put(model, name, torch.randn(parameter.shape, dtype=dtype) / 8)
        if tied:
            model.tie()
    attach(model, adapter)
    return model


def step_of(model, device: str = "cpu", share: float = 1.0, length: int = LENGTH, **changes):
    s = Train(**({"micro_batch_size": ROWS, "batch_size": 2 * ROWS} | changes))
    return training_step(model, s, length, share, device)


def peak(found) -> int:
    return found.phase.peak([0] * len(found.weights))[0]


def command(*words) -> int:
    return run_main([str(word) for word in words])


def test_known_figures_by_hand():
    """LLaMA, hidden 32, 3 layers, LoRA of rank 8 on q (32 -> 32) and v (32 -> 16), float32: bytes
    that a pencil gives as well.
    """
    model = model_of("llama")
    found = step_of(model)
    block = 32 * 32 + 2 * 16 * 32 + 32 * 32 + 3 * 32 * 48 + 2 * 32
    lora = 8 * (32 + 32) + 8 * (32 + 16)
    assert found.weights == [4 * 61 * 32, *[4 * block] * 3, 4 * (61 * 32 + 32)]
    assert found.adapter == found.gradients == [0, *[4 * lora] * 3, 0]
    counters = 2 * 2 * 2 * 4  # AdamW counts steps for each parameter, in a float32
    assert found.optimizer == [0, *[8 * lora + counters // 2] * 3, 0]
    assert peak(found) > sum(found.static)
    # what is left of a step: ids, weights, places of the packed tokens; places, ids and weights of
    # the labels. The gradients that it began with are gone
    left = ROWS * LENGTH * (8 + 4 + 8) + ROWS * (LENGTH - 1) * (8 + 8 + 4)
    assert sum(size for _, size in found.phase.events) == left - sum(found.gradients)


@pytest.mark.parametrize("checkpointing", ["none", "block", "every 2"])
@pytest.mark.parametrize("family", TINY)
def test_a_step_without_memory_counts_what_a_step_with_memory_makes(family, checkpointing):
    for adapter, share in (("lora", 1.0), ("parallel", 1.0)):
        dry, wet = (
            step_of(
                model_of(family, adapter, memory=memory), share=share, checkpointing=checkpointing
            )
            for memory in (False, True)
        )
        assert peak(dry) == peak(wet)
        assert dry.phase.kept == wet.phase.kept
        assert dry.phase.flops == wet.phase.flops > 0
        assert dry.gradients == wet.gradients
        assert (dry.weights, dry.adapter, dry.optimizer) == (
            wet.weights,
            wet.adapter,
            wet.optimizer,
        )


@pytest.mark.parametrize("family", TINY)
def test_in_bfloat16_up_to_the_norms_statistics(family):
    """Torch's CPU kernel keeps a LayerNorm's mean and deviation in bfloat16, its meta kernel
    counts float32: 4 bytes a token and norm.
    """
    dry, wet = (
        step_of(model_of(family, dtype=torch.bfloat16, memory=memory)) for memory in (False, True)
    )
    assert 0 <= peak(dry) - peak(wet) <= 2 * 2 * ROWS * LENGTH * 8
    assert (peak(dry) == peak(wet)) == (family == "llama")


@pytest.mark.parametrize("family", TINY)
def test_answers_too(family):
    s = Eval(batch_size=2, max_new_tokens=5)
    for beams in (1, 3):
        dry, wet = (
            answer(model_of(family, memory=memory), Eval(**(vars(s) | {"beams": beams})), 9)
            for memory in (False, True)
        )
        assert dry.peak([0] * 5) == wet.peak([0] * 5)


def test_the_cache_of_answers_is_there():
    """Twice as many answers need at least their keys and values more: layers x 2 x rows x kv
    heads x tokens x head size x 4 bytes.
    """
    one, two = (
        answer(model_of("llama"), Eval(batch_size=rows, max_new_tokens=40), 9).peak([0] * 5)[0]
        for rows in (4, 8)
    )
    assert two - one >= 3 * 2 * 4 * 2 * 49 * 8 * 4


def test_activations_grow_with_the_rows_and_checkpointing_makes_them_less():
    one, two, three = (
        sum(step_of(model_of("llama"), micro_batch_size=rows, batch_size=20).phase.kept)
        for rows in (1, 2, 3)
    )
    assert 0 < three - two == two - one
    none, some, block = (
        sum(step_of(model_of("llama"), checkpointing=word).phase.kept)
        for word in ("none", "every 2", "block")
    )
    assert none > some > block > 0
    work = [
        step_of(model_of("llama"), checkpointing=word).phase.flops for word in ("none", "block")
    ]
    assert work[0] < work[1] < 1.5 * work[0]  # one more forward pass through the blocks


def test_fewer_labels_make_fewer_logits():
    whole, half = (step_of(model_of("llama"), share=share) for share in (1.0, 0.5))
    assert whole.phase.kept[-1] > 1.8 * half.phase.kept[-1] > 0
    assert whole.phase.kept[1:-2] == half.phase.kept[1:-2]
    assert whole.phase.kept[-2] > half.phase.kept[-2]  # the last block computes labels only


def test_what_is_offloaded_is_not_on_the_device():
    here, there = (
        step_of(
            model_of("llama"),
            "cuda",
            length=64,
            micro_batch_size=16,
            batch_size=16,
            offload=offload,
        )
        for offload in (False, True)
    )
    assert sum(there.phase.kept) < 0.5 * sum(here.phase.kept)
    assert there.weights == here.weights


def test_the_kernels_of_a_card_are_counted_as_such():
    """On a CPU attention to few keys keeps its probabilities, T x T for each of 4 heads; a card's
    keeps its output of 64 numbers a token instead.
    """
    kept = {
        device: sum(
            step_of(
                model_of("opt", dtype=torch.bfloat16, hidden_size=64), device, length=48
            ).phase.kept
        )
        for device in ("cpu", "cuda")
    }
    assert kept["cpu"] - kept["cuda"] > 3 * ROWS * 48 * (4 * 48 - 64) * 2


def test_devices_share_the_bytes_and_the_first_keeps_more_micro_batches():
    found = step_of(model_of("llama"))
    stage = [0, 0, 0, 1, 1]  # the embedding and two blocks; a block and the head
    alone, piped = found.phase.peak(stage), found.phase.peak(stage, batches=8)
    assert piped[0] - alone[0] == sum(
        found.phase.kept[:3]
    )  # two devices: a second micro-batch is in the first
    assert piped[1] == alone[1]
    assert max(alone) < peak(found) <= sum(alone)


def test_a_card_pads_a_mask_whose_rows_are_no_multiple_of_8_in_every_layer():
    """Memory-efficient attention takes BLOOM's bias so; it is kept for the backward pass."""
    per_layer = {}
    for length in (41, 48):
        found = step_of(model_of("bloom", dtype=torch.bfloat16), "cuda", length=length)
        per_layer[length] = found.phase.kept[2] / length**2
    heads = model_of("bloom").shape.heads
    padded = ROWS * heads * 41 * 48 * 2 / 41**2  # bytes of the copy
    assert per_layer[41] > per_layer[48] + 0.9 * padded


def test_what_tensors_can_have_of_a_device():
    assert usable(24_000_000_000) == 21_100_000_000  # 10% and the context of CUDA
    assert usable(24_000_000_000, "cuda", 8) == 20_400_000_000  # and the buffers of NCCL
    assert usable(24_000_000_000, "cpu", 8) == 22_300_000_000


def test_a_plan_counts_the_pinned_memory_of_offloaded_activations(capsys):
    words = "--model smollm2-135m --adapter lora --memory 24GB --length 64 --dtype bfloat16".split()
    assert facts_of(capsys, *words)["host_bytes"] == 0
    offload = ("--set", "train.offload=true", "--set", "train.micro_batch_size=3")
    block = ("--set", "train.checkpointing=block", "--labelled", "0.01")
    # of each block its input, 3 x 64 x 576 in 16 bits: 221 kB, pinned in pieces of 256 KiB
    assert LAYERS * 2**18 <= facts_of(capsys, *words, *offload, *block)["host_bytes"] < 15 * 2**18
    assert command("plan", *words, *offload) == 0
    assert "of the CPU's memory, pinned, for offloaded activations" in capsys.readouterr().out


def test_a_plan_leaves_the_model_and_torch_as_they_were():
    model = model_of("llama", memory=True)
    before = {
        name: parameter.clone()
        for name, parameter in model.named_parameters()
        if ".adapters." not in name
    }
    kernel = torch.nn.functional.scaled_dot_product_attention
    step_of(model, checkpointing="block")
    assert torch.nn.functional.scaled_dot_product_attention is kernel
    assert model.checkpointing == 0
    assert all(parameter.grad is None for parameter in named_parameters(model).values())
    assert all(
        torch.equal(parameter, before[name])
        for name, parameter in model.named_parameters()
        if name in before
    )


@pytest.mark.parametrize("how", ["int8", "nf4"])
def test_weights_in_fewer_bits(how, capsys):
    assert (
        command(
            *"plan --model smollm2-135m --adapter lora --dtype bfloat16 --quantize".split(),
            how,
            "--json",
        )
        == 0
    )
    facts = json.loads(capsys.readouterr().out)
    blocks = facts["parameters"] - 49152 * 576  # but for the embedding, which is the head
    assert (
        {"int8": 1.0, "nf4": 0.5}[how] * blocks
        < facts["devices"][0]["weights_bytes"] - 2 * 49152 * 576
        < {"int8": 1.01, "nf4": 0.53}[how] * blocks
    )
    assert facts["parameters"] == 42_472_512


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
    save_quantized(load_model("pocket-llama", quantize="int8"), tmp_path / "int8")
    little, more = ("1337MB", "1350MB") if "--processes" in words else ("557MB", "575MB")
    words = ("--model", tmp_path / "int8", "--adapter", "lora", *words)
    found = facts_of(capsys, *words, "--memory", little, status=1)
    assert found["quantize"] == "int8"
    assert found["advice"] is None
    found = facts_of(capsys, *words, "--memory", more, status=1)
    assert found["advice"].startswith("--set")


def test_copies_of_weights_for_answers_are_planned(capsys):
    small = ("--model", "pocket-llama", "--dtype", "bfloat16", "--set", "eval.batch_size=1")

    def device(*words):
        return facts_of(capsys, *small, *words)["devices"][0]

    plain = device("--device", "cpu", "--set", "eval.decode_memory=plain")
    auto = device("--device", "cpu")
    packed = device("--device", "cpu", "--set", "eval.decode_memory=packed")
    linears = 4 * (4 * 128 * 128 + 3 * 128 * 344) + 900 * 128
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


@pytest.mark.parametrize(("memory", "even"), [("24GB,12GB", True), ("980MB,620MB", False)])
def test_two_cards(capsys, memory, even):
    """As many blocks on each, or, where that does not fit, by memory."""
    assert (
        command(
            *"plan --model smollm2-135m --memory".split(),
            memory,
            "--set",
            "eval.batch_size=2",
            "--json",
        )
        == 0
    )
    first, second = json.loads(capsys.readouterr().out)["devices"]
    assert first["blocks"] + second["blocks"] == LAYERS
    assert (first["blocks"] == second["blocks"]) == even
    assert first["blocks"] >= second["blocks"]
    assert (first["device"], second["device"]) == ("cuda:0", "cuda:1")
    for one in (first, second):
        parts = (
            "weights_bytes",
            "adapter_bytes",
            "gradients_bytes",
            "optimizer_bytes",
            "activation_bytes",
        )
        assert sum(one[key] for key in parts) == one["training_bytes"]
        assert one["left_bytes"] == usable(one["memory_bytes"]) - max(
            one["training_bytes"], one["answering_bytes"]
        )


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_what_is_planned_is_what_fresh_processes_are_measured_to_take(processes):
    """Within a tenth: `run.py benchmark --case plan` on one case, two layers of a true width."""
    case = plan_check.Case("smollm2-135m", 2, "float32", "lora", "none", 128, processes)
    found = plan_check.measured(case, "cpu", plan_check.GIVES_BACK)
    for kind, expected in plan_check.planned(case, "cpu").items():
        assert expected > plan_check.SMALL
        assert 0.9 < found[kind] / expected < 1.1, (kind, found[kind], expected)


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


def test_processes_that_hold_the_base_together(capsys, monkeypatch):
    """Each has its part of the blocks' matrices, and up to three blocks whole; what else there
    is, all have.
    """
    words = (
        *("--model smollm2-135m --adapter lora --dtype bfloat16 --device cpu --flops 1T").split(),
    )
    plain, both, together = (
        facts_of(capsys, *words),
        facts_of(capsys, *words, "--processes", "2"),
        facts_of(capsys, *words, "--processes", "2", "--shard"),
    )
    block = 2 * (2 * 576 * 576 + 2 * 192 * 576 + 3 * 576 * 1536)  # bytes: q and o, k and v, the MLP
    apart, one = (facts["devices"][0] for facts in (both, together))
    assert apart["weights_bytes"] - one["weights_bytes"] == LAYERS * block // 2
    assert one["gathered_bytes"] == 3 * block
    for key in ("training_bytes", "answering_bytes"):
        assert (
            0 <= one[key] - apart[key] + LAYERS * block // 2 <= 3 * block
        )  # less where the peak is at the head, with no block whole
    assert (
        sum(
            one[f"{part}_bytes"]
            for part in ("weights", "adapter", "gradients", "optimizer", "activation")
        )
        == one["training_bytes"]
    )
    monkeypatch.setitem(REGISTRY["llama-7b"].config, "num_hidden_layers", 6)
    deep = facts_of(
        capsys,
        *(
            "--model llama-7b --adapter lora --processes 64 --shard --set "
            "train.micro_batch_size=1 --length 64"
        ).split(),
    )
    assert (
        deep["devices"][0]["activation_bytes"] > deep["devices"][0]["gathered_bytes"]
    )  # the blocks that are whole are among them
    assert (
        plain["seconds_per_step"]
        == 2 * both["seconds_per_step"]
        == 2 * together["seconds_per_step"]
    )
    assert command("plan", *words, "--processes", "2", "--shard") == 0
    assert (
        "2 processes, each with a device of its own, which hold the blocks together"
        in capsys.readouterr().out
    )


def test_where_the_peak_is_at_the_head_no_block_is_whole():
    case = plan_check.Case(
        model="smollm2-135m", layers=2, dtype="float32", adapter="lora", checkpointing="none",
        tokens=128, processes=1,
    )  # fmt: skip
    alone, together = (
        plan_check.planned(replace(case, processes=many), "cpu")["step"] for many in (1, 2)
    )
    block = 4 * (2 * 576 * 576 + 2 * 192 * 576 + 3 * 576 * 1536)
    assert alone - together == pytest.approx(2 * block / 2, rel=0.05)


def test_more_processes_are_what_makes_it_fit(capsys):
    words = (
        *(
            "--model smollm2-135m --adapter lora --dtype float32 --set "
            "train.checkpointing=block --set train.micro_batch_size=1 --set "
            "eval.batch_size=1 --length 64 --memory 1540MB --shard --set "
            "eval.max_new_tokens=32"
        ).split(),
    )
    assert facts_of(capsys, *words, "--processes", "2", status=1)["advice"] == "--processes 4"
    assert command("plan", *words, "--processes", "4") == 0


def test_gradients_of_several_processes_are_summed_in_one_piece():
    """A copy of all of them, which an adapter of the base's size notices."""

    def step(memory: bool = False, processes: int = 1):
        model = model_of("llama", "bitfit", memory=memory)
        remove(model, "default")
        attach(model, resolve(kind="full", sites=["q", "k", "v", "o", "gate", "up", "down"]))
        return training_step(
            model, Train(micro_batch_size=1, batch_size=processes), 4, processes=processes
        )

    dry, wet, alone = step(processes=2), step(memory=True, processes=2), step()
    assert peak(dry) == peak(wet)
    assert 0.5 * sum(alone.gradients) < peak(dry) - peak(alone) <= sum(alone.gradients)


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

"""A plan is a count: of a step on a model without memory, which must be what the same step makes
with memory.
"""

import json
import sys

import processes
import pytest
import torch
from families import TINY
from plans import (
    LENGTH,
    ROWS,
    command,
    model_of,
    peak,
    shallow,  # noqa: F401
    step_of,
)

from adapters import named_parameters
from benchmarks import plan_check
from train.plan.advice import usable
from train.plan.dry_run import answer
from train.settings import Eval


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


@pytest.mark.parametrize(
    ("family", "adapter", "checkpointing"),
    [
        *((family, "lora", "none") for family in TINY),
        *((family, "parallel", "block") for family in TINY),
        ("llama", "lora", "every 2"),
    ],
)
def test_a_step_without_memory_counts_what_a_step_with_memory_makes(family, adapter, checkpointing):
    dry, wet = (
        step_of(model_of(family, adapter, memory=memory), checkpointing=checkpointing)
        for memory in (False, True)
    )
    assert peak(dry) == peak(wet)
    assert dry.phase.kept == wet.phase.kept
    assert dry.phase.flops == wet.phase.flops > 0
    assert dry.gradients == wet.gradients
    assert (dry.weights, dry.adapter, dry.optimizer) == (wet.weights, wet.adapter, wet.optimizer)


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
    padded = heads * 41 * 48 * 2 / 41**2  # bytes of the copy, which all rows share
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
    # of each block its input, 3 x 64 x 576 in 16 bits: 221 kB, all of them in one piece
    assert facts_of(capsys, *words, *offload, *block)["host_bytes"] == 2**26
    wider = "train.micro_batch_size=300"  # 22 MB of each of 4 blocks, 3 in a piece
    block = (*block, "--set", wider, "--set", "train.batch_size=300")
    assert facts_of(capsys, *words, *offload, *block)["host_bytes"] == 2 * 2**26
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


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize("fresh", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
def test_what_is_planned_is_what_processes_are_measured_to_take(monkeypatch, fresh):
    """`run.py benchmark --case plan` on one case, two layers of a true width: within a tenth.

    fresh: processes; 0: one that is forked, and told by mallopt what GIVES_BACK says.
    """
    if not fresh:
        monkeypatch.setattr(plan_check, "run_python", forked)
    case = plan_check.Case("smollm2-135m", 2, "float32", "lora", "none", 128, max(1, fresh))
    found = plan_check.measured(case, "cpu", plan_check.GIVES_BACK)
    for kind, expected in plan_check.planned(case, "cpu").items():
        assert expected > plan_check.SMALL
        assert found[kind] / expected > 0.9, (kind, found[kind], expected)
        assert found[kind] / expected < 1.1, (kind, found[kind], expected)


GIVES_BACK = """
import ctypes
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
for option in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
    ctypes.CDLL(None).mallopt(option, 65536)
"""


def forked(code: str, *arguments, **environment) -> list[dict]:
    """Instead of benchmarks.process.run_python, whose process imports torch."""
    assert environment == plan_check.GIVES_BACK | {"processes": 1}
    done = processes.finish("-c", GIVES_BACK + code, *arguments)
    assert done.returncode == 0, done.stderr
    return [json.loads(done.stdout.splitlines()[-1])]


def facts_of(capsys, *words, status: int = 0) -> dict:
    assert command("plan", *words, "--json") == status
    return json.loads(capsys.readouterr().out)

"""Plans of several cards and processes."""

import json
from dataclasses import replace

import pytest
from plans import (
    LAYERS,
    command,
    model_of,
    of_layers,
    peak,
    shallow,  # noqa: F401
)

from adapters import attach, remove
from adapters.config import resolve
from benchmarks import plan_check
from train.plan.advice import usable
from train.plan.dry_run import training_step
from train.settings import Train


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


def facts_of(capsys, *words, status: int = 0) -> dict:
    assert command("plan", *words, "--json") == status
    return json.loads(capsys.readouterr().out)


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
    of_layers(6, monkeypatch, "llama-7b")
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

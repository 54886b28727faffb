"""Blocks through torch.compile compute what they compute plainly."""

import shutil

import pytest
import torch
from conftest import write_checkpoint
from families import TINY, batch
from in_command import command
from methods import attach_small, randomise
from training_runs import examples

from adapters import parameters
from data.batches import micro_batches
from eval.generate import generate
from experiments import base
from model import UserError, compiled, load_model
from model.devices import split
from model.quantize import quantized
from model.quantize.nf4 import NF4
from train.pipeline import accumulate

CPU = torch.device("cpu")


# "eager": torch.compile finds the blocks' graphs and runs them with torch's own kernels
BACKENDS = ["eager", pytest.param("inductor", marks=pytest.mark.slow)]
IN_FAMILIES = [("llama", "mam"), *(pytest.param(f, "lora", marks=pytest.mark.slow) for f in TINY)]


@pytest.fixture(autouse=True)
def forgotten():
    import torch._dynamo

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def gradients(model, rows) -> list[torch.Tensor]:
    model.zero_grad()
    losses, _ = accumulate(model, dict(enumerate(micro_batches(rows, 3))), 7.0, 0)
    return [*losses, *(parameter.grad.clone() for parameter in parameters(model))]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("family", "method"), IN_FAMILIES)
def test_a_step_of_compiled_blocks(tmp_path, monkeypatch, family, method, backend):
    """All blocks share what is compiled, whatever the lengths; checkpointing and a split too."""
    monkeypatch.setattr(compiled, "BACKEND", backend)
    model = load_model(str(write_checkpoint(tmp_path / "tiny", family)))
    torch.manual_seed(0)
    attach_small(model, method)
    randomise(model)
    model.train()
    plain = gradients(model, examples(9))
    with compiled.compiled(model):
        found = [gradients(model, examples(9))]
        model.checkpointing = 2
        split(model, [CPU, CPU], [1, 2])
        found.append(gradients(model, examples(9)))
    for values in found:
        for value, expected in zip(values, plain, strict=True):
            # of inductor 7e-5 of the largest gradient were measured (bloom), of float32 beside
            # float64 1.4e-5
            most = 2e-4 * expected.abs().max().item() if backend == "inductor" else 1e-5
            torch.testing.assert_close(value, expected, rtol=1e-4, atol=most)
    # the first block, whose input needs no gradient, the last, which computes labelled tokens only,
    # and the others: at one length, at any length
    assert 0 < torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 6
    assert not torch._dynamo.utils.counters["graph_break"]
    assert gradients(model, examples(3))  # plain again
    assert model.call is compiled.call_block


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("family", "method"), IN_FAMILIES)
def test_answers_of_compiled_blocks(tmp_path, monkeypatch, family, method, backend):
    monkeypatch.setattr(compiled, "BACKEND", backend)
    layers = {"n_layer" if family in ("bloom", "gptj") else "num_hidden_layers": 6}
    model = load_model(str(write_checkpoint(tmp_path / "tiny", family, **layers)))
    attach_small(model, method)
    randomise(model)
    ids, mask = batch("left")
    plain = generate(model, ids, mask, max_new_tokens=6)
    with compiled.compiled(model, answers=True):
        assert generate(model, ids, mask, max_new_tokens=6) == plain
    # a block is in three parts; nothing is compiled for each of the six
    assert 3 <= torch._dynamo.utils.counters["stats"]["unique_graphs"] < 3 * 6
    assert "forward" not in vars(model.blocks[0].get_submodule(model.sites["kv"]))


def test_nf4_weights_are_made_as_without_the_compiler(tmp_path, monkeypatch):
    """torch would make its table of levels in each product, and may leave out a rounding."""
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    one_layer = write_checkpoint(tmp_path / "tiny", num_hidden_layers=1)
    model = load_model(str(one_layer), quantize="nf4")
    ids, mask = batch("left")
    plain, traced = generate(model, ids, mask, max_new_tokens=1), []

    def dequantized(linear, dtype, true=NF4.dequantized):
        traced.append(torch.compiler.is_compiling())
        return true(linear, dtype)

    monkeypatch.setattr(NF4, "dequantized", dequantized)
    model.decode_memory = "plain"
    with compiled.compiled(model, answers=True):
        assert generate(model, ids, mask, max_new_tokens=1) == plain
    assert set(traced) == {False}
    assert not any("product" in vars(linear) for linear in quantized(model).values())


@pytest.mark.parametrize("part", ["train", "eval"])
def test_without_a_compiler_one_line_says_so_before_anything_is_loaded(tmp_path, monkeypatch, part):
    monkeypatch.setattr(base, "load_model", lambda *arguments, **more: pytest.fail("loaded"))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    compiled.check_compiler.cache_clear()
    words = ("--set", f"{part}.compile=true", "--out", tmp_path / "run")
    told = command("train", "--data", "wordproblems", *words, status=1)
    assert told.endswith(
        f"run.py: {part}.compile needs a compiler, and there is no g++ here: install one, or leave "
        f"out {part}.compile (--compile)\n"
    )
    monkeypatch.setattr(compiled.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs triton on a GPU: pip install triton"):
        compiled.check_compiler(torch.device("cuda"), "train.compile")


def test_a_compiler_that_fails_is_one_line(monkeypatch):
    def fails(*arguments, **more):
        raise RuntimeError("Python.h: No such file\nand more")

    monkeypatch.setattr(torch, "compile", fails)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/g++")
    compiled.check_compiler.cache_clear()
    with pytest.raises(
        UserError, match=r"^eval\.compile: .* \(Python\.h: No such file\): or leave"
    ):
        compiled.check_compiler(CPU, "eval.compile")

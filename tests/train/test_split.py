"""Layers split over devices: the same logits, losses and gradients as on one, in the order the
schedule says.
"""

import itertools
import re

import pytest
import torch
from conftest import write_checkpoint, write_sums
from families import batch
from methods import IDS, IN_TURN, attach_small, randomise
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from training_runs import S, examples, model_with, run, same, state

from adapters import attach, parameters
from data.batches import micro_batches
from eval.generate import generate
from experiments.layout import Target, layers_for, planned
from model import UserError, load_model
from model.config import family_and_config, skeleton
from model.devices import balance, split
from model.registry import REGISTRY
from run import main
from train.pipeline import accumulate
from train.settings import settings

CPU = torch.device("cpu")
PLACES = [
    [CPU, CPU],
    pytest.param(
        [torch.device("cuda"), CPU],
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
    ),
]


# ---------------------------------------------------------------- where layers go
@pytest.mark.parametrize("room", [[1, 1], [3, 1], [1, 2, 1]], ids=str)
def test_the_balance_is_the_best_of_all(room):
    sizes, first, last = [5, 3, 8, 1, 1, 9, 2], 6, 4

    def share(counts):
        ends = list(itertools.accumulate(counts))
        loads = [sum(sizes[end - count : end]) for count, end in zip(counts, ends, strict=True)]
        loads[0] += first
        loads[-1] += last
        return max(load / one for load, one in zip(loads, room, strict=True))

    every = [
        counts for counts in itertools.product(range(1, 8), repeat=len(room)) if sum(counts) == 7
    ]
    assert share(balance(sizes, first, last, room)) == min(map(share, every))


def test_more_devices_than_layers_are_refused():
    with pytest.raises(UserError, match="3 devices are too many for a model of 2 layers"):
        balance([1, 1], 0, 0, [1, 1, 1])


@pytest.mark.parametrize("name", ["llama-7b", "bloom-7b1", "opt-6.7b", "gptj-6b"])
def test_a_real_shape_is_cut_where_both_halves_weigh_the_same(name):
    """Placement needs no memory: tensors on the meta device stay there, and each has a device it
    belongs to.
    """
    model = skeleton(*family_and_config(REGISTRY[name].config, "registry"))
    first, second = torch.device("cuda:0"), torch.device("cuda:1")
    split(model, [first, second], None if torch.cuda.is_available() else counts_for(model))
    weight = {first: 0, second: 0}
    for path, parameter in model.named_parameters():
        weight[model.device_of(path)] += parameter.numel()
    assert 0.8 < weight[first] / weight[second] < 1.25
    assert model.device_of(f"{model.outer_sites['embed']}.weight") == first
    assert model.device_of(f"{model.outer_sites['final_norm']}.weight") == second
    assert model.device_of("lm_head.weight") == (first if model.tied else second)
    assert {
        model.device_of(f"{model.blocks_at}.0.x"),
        model.device_of(f"{model.blocks_at}.{len(model.blocks) - 1}.x"),
    } == {first, second}


def counts_for(model):
    from model.devices import sizes

    blocks, front, back = sizes(model)
    return balance(blocks, front, back, [1, 1])


def test_a_run_lays_its_layers_as_the_plan_of_its_step_does():
    """As many on each, so that all have as much to do; by memory where that does not fit."""
    made = settings(options={"model": "llama-7b", "adapter": {"preset": "lora"}})
    found = layers_for(made, [CPU, CPU])
    assert found == [16, 16]
    tight = planned(made, Target(["cuda:0", "cuda:1"], [16_000_000_000, 8_000_000_000], 256, 1.0))
    assert tight.blocks[0] >= 20
    assert sum(tight.blocks) == 32
    assert layers_for(made, [CPU, torch.device("cuda")]) == []


def test_counts_that_do_not_fit_are_refused(tiny):
    for counts in ([1, 1], [3, 0], [3], [1, 1, 1]):
        with pytest.raises(UserError, match="3 in all"):
            split(tiny, [CPU, CPU], counts)


# ---------------------------------------------------------------- the same model
@pytest.mark.parametrize("places", PLACES, ids=str)
@pytest.mark.parametrize("counts", [[1, 2], [2, 1]])
def test_a_split_model_gives_the_same_logits_and_answers(any_folder, places, counts):
    whole, halves = load_model(str(any_folder)), load_model(str(any_folder))
    split(halves, places, counts)
    tolerance = 1e-5 if set(places) == {CPU} else 1e-4  # a GPU adds in another order
    for side in ("plain", "left", "holes"):
        ids, mask = batch(side)
        torch.testing.assert_close(
            halves(ids.to(halves.device), mask.to(halves.device)).cpu(),
            whole(ids, mask),
            rtol=tolerance,
            atol=tolerance,
        )
    ids, mask = batch("left")
    for beams in (1, 3):
        expected = generate(whole, ids, mask, max_new_tokens=6, beams=beams)
        assert (
            generate(
                halves, ids.to(halves.device), mask.to(halves.device), max_new_tokens=6, beams=beams
            )
            == expected
        )


@pytest.mark.parametrize(
    "method",
    [
        "parallel",
        "lora",
        "prefix-projection",
        "vera",
        "p-tuning",
        "invertible",
        "mam",
        "token rows",
        "full head",
        "adalora",
    ],
)
@pytest.mark.parametrize("places", PLACES, ids=str)
def test_every_kind_of_adapter_lies_beside_its_block_and_gets_the_same_gradient(
    tmp_path, places, method
):
    """What several layers share, and what sits at both ends of the model, too."""
    found = []
    for devices in ([CPU], places):
        model = load_model(str(write_checkpoint(tmp_path / "tiny", "llama")))
        if len(devices) > 1:
            split(model, devices, [1, 2])
        torch.manual_seed(0)
        attach_small(model, method)
        randomise(model)
        accumulate(model, dict(enumerate(micro_batches(examples(6), 2))), 10.0, 0)
        found.append([parameter.grad.cpu() for parameter in parameters(model)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
        assert a.abs().sum() > 0


@pytest.mark.parametrize(
    ("any_family", "counts", "checkpointing"),
    [
        *(("llama", counts, every) for counts in ([1, 2], [1, 1, 1]) for every in (0, 1, 2)),
        *((family, [1, 1, 1], 1) for family in ("bloom", "opt", "gptj")),
    ],
)
def test_the_pipeline_has_the_losses_and_gradients_of_one_device(any_folder, counts, checkpointing):
    found = []
    for devices in (1, len(counts)):
        torch.manual_seed(0)
        model = load_model(str(any_folder))
        attach(model, "series", size=4, init="bert")
        model.checkpointing = checkpointing
        if devices > 1:
            split(model, [CPU] * devices, counts)
        losses, busy = accumulate(model, dict(enumerate(micro_batches(examples(9), 2))), 7.0, 0)
        assert (busy is None) == (devices == 1)
        found.append((losses, [parameter.grad for parameter in parameters(model)]))
    for one, other in zip(found[0][0] + found[0][1], found[1][0] + found[1][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_a_tied_head_stays_with_the_embedding_and_hidden_states_come_back(tmp_path):
    model = load_model(str(write_checkpoint(tmp_path / "tiny", tie_word_embeddings=True)))
    split(model, [torch.device("meta"), CPU], [1, 2])
    assert model.tied
    with OneDeviceEach():
        assert model.logits(torch.randn(2, 32)).is_meta


def test_training_split_is_training_whole(folder, tmp_path):
    whole, halves = model_with(folder), model_with(folder)
    split(halves, [CPU, CPU], [2, 1])
    (_, one), (_, two) = run(whole, tmp_path), run(halves, tmp_path)
    assert [entry["loss"] for entry in two] == pytest.approx(
        [entry["loss"] for entry in one], rel=1e-5
    )
    for entry in two:  # one CPU does it all: never more than half of two
        assert 0 < entry["devices_busy"] <= 0.5
        assert 0.49 < entry["devices_busy_side_by_side"] <= 1
    assert not same(state(whole), state(model_with(folder)))  # there was something to learn
    for a, b in zip(state(whole), state(halves), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_a_split_run_goes_on_from_a_checkpoint_of_a_whole_one(folder, tmp_path):
    whole, half, rest = (model_with(folder, "lora", dropout=0.0) for _ in range(3))
    for name in "ab":
        (tmp_path / name).mkdir()
    _, expected = run(whole, tmp_path / "a")
    run(half, tmp_path / "b", S, log=lambda entry: stop_at(entry, 4))
    split(rest, [CPU, CPU], [1, 2])
    _, entries = run(rest, tmp_path / "b", resume=True)
    assert [entry["loss"] for entry in entries] == pytest.approx(
        [entry["loss"] for entry in expected[4:]], rel=1e-5
    )


def stop_at(entry, step):
    import os
    import signal

    if entry["step"] == step:
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_checkpoint_is_loaded_straight_onto_its_devices(any_folder, monkeypatch):
    with monkeypatch.context() as context:
        context.setattr("model.load.is_finite", lambda *_: True)  # of meta tensors nobody knows
        model = load_model(
            str(any_folder), devices=[CPU, torch.device("meta")], layers_per_device=[1, 2]
        )
        assert {parameter.is_meta for parameter in model.blocks[0].parameters()} == {False}
        assert {
            parameter.is_meta for block in model.blocks[1:] for parameter in block.parameters()
        } == {True}
        assert (model.input_embedding.weight.is_meta, model.lm_head.weight.is_meta) == (
            False,
            not model.tied,
        )
    model = load_model(str(any_folder), devices=["cpu", "cpu"], layers_per_device=[1, 2])
    assert [(stage.first, stage.end) for stage in model.stages] == [(0, 1), (1, 3)]
    assert torch.equal(model(IDS), load_model(str(any_folder))(IDS))
    with pytest.raises(UserError, match="device 'tpu' is not one of"):
        load_model(str(any_folder), devices=["cpu", "tpu"])


@pytest.mark.parametrize("how", ["int8", "nf4"])
def test_quantised_weights_lie_beside_their_block(folder, monkeypatch, how):
    from model.quantize.linear import QuantizedLinear

    asked, true_allocate = [], QuantizedLinear.allocate
    monkeypatch.setattr(
        QuantizedLinear,
        "allocate",
        lambda self, device: asked.append(device) or true_allocate(self, device),
    )
    model = load_model(
        str(folder), devices=["cpu", "cpu:0"], layers_per_device=[1, 2], quantize=how
    )  # two names of one device
    assert asked == [CPU] * 7 + [torch.device("cpu:0")] * 14
    assert torch.equal(model(IDS), load_model(str(folder), quantize=how)(IDS))


def test_the_command_line_trains_measures_and_resumes_split(tmp_path, capsys):
    words = [
        *(
            "--devices cpu,cpu --set layers_per_device=[1,3] --max-steps 2 --items "
            "1 --set eval.before=false --data"
        ).split(),
        str(write_sums(tmp_path / "sums.json")),
    ]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert "layers 0 to 0 on cpu" in said
    assert "layers_per_device = [1, 3]" in (tmp_path / "run" / "run.toml").read_text()
    assert "layers 1 to 3 on cpu" in said
    busy = re.search(
        r"2 devices, micro-batches a step: 1; busy (\d+)% of the time, 50% if "
        r"all work side by side as scheduled, where equal stages would be "
        r"50%; a lower train.micro_batch_size gives them more",
        said,
    )
    assert 20 < int(busy[1]) <= 50  # one thread does the work of both
    assert 'device = "cpu,cpu"' in (tmp_path / "run" / "run.toml").read_text()
    assert (
        main(["evaluate", str(tmp_path / "run"), "--items", "1", "--out", str(tmp_path / "e")]) == 0
    )
    assert (
        main(
            [
                "evaluate",
                str(tmp_path / "run"),
                *"--items 1 --device cpu --out".split(),
                str(tmp_path / "f"),
            ]
        )
        == 0
    )
    assert (tmp_path / "e" / "predictions.jsonl").read_text() == (
        tmp_path / "f" / "predictions.jsonl"
    ).read_text()
    interrupted = tmp_path / "run" / "result.json"
    interrupted.unlink()
    assert (
        main(
            [
                "--resume",
                str(tmp_path / "run"),
                *"--device cpu --set train.checkpointing=block".split(),
            ]
        )
        == 0
    )
    assert 'checkpointing = "block"' in (tmp_path / "run" / "run.toml").read_text()
    interrupted.unlink()
    capsys.readouterr()
    for wrong, message in (
        (
            "train.learning_rate=1",
            "a resumed run keeps its settings, but for train.micro_batch_size",
        ),
        ("layers_per_device=[2,2]", ""),
    ):
        assert main(["--resume", str(tmp_path / "run"), "--set", wrong]) == 1
        assert message in capsys.readouterr().err
    for wrong, message in (
        (["--devices", "cpu,gpu"], "'gpu' is not one of"),
        (["--set", "layers_per_device=[2,2]"], "is for several devices"),
        (["--devices", "cpu,cpu", "--set", "layers_per_device=[4]"], "4 in all"),
    ):
        assert main([*wrong, "--out", str(tmp_path / "no")]) == 1
        assert message in capsys.readouterr().err


# ----------------------------------------------------- placement, where no second device is at hand
class OneDeviceEach(TorchDispatchMode):
    """Raises when an operation mixes tensors of several devices, but for copies and numbers."""

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        found = {
            leaf.device
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, torch.Tensor) and leaf.dim() > 0
        }
        if len(found) > 1 and op not in (
            torch.ops.aten.copy_.default,
            torch.ops.aten._to_copy.default,
        ):
            raise AssertionError(f"{op} mixes {found}")
        return op(*args, **(kwargs or {}))


def test_the_test_itself_notices_mixed_devices():
    with OneDeviceEach(), pytest.raises(AssertionError, match="mixes"):
        torch.ones(2, 2) @ torch.ones(2, 2, device="meta")


LIE_APART = [pair for pair in IN_TURN if pair[1] not in ("fusion", "token rows", "p-tuning-lstm")]


@pytest.mark.parametrize(("any_family", "method"), LIE_APART)
def test_on_two_devices_every_tensor_lies_where_it_is_used(any_tiny, method, monkeypatch):
    """cpu and meta stand for two GPUs: shapes and devices are computed, no values. From meta
    there is no way back, so that what several sites share is kept on the first.
    """
    model = any_tiny
    split(model, [CPU, torch.device("meta")], [1, 2])
    true_to, shared = torch.nn.Module.to, (".shared.", ".table.")

    def to(module, device):
        apart = {
            name: module._modules.pop(name)
            for name in ("shared", "table")
            if name in module._modules
        }
        true_to(module, device)._modules.update(apart)
        return module

    monkeypatch.setattr(torch.nn.Module, "to", to)
    attach_small(model, method)
    for number, block in enumerate(model.blocks):
        tensors = [*block.named_parameters(), *block.named_buffers()]
        assert {
            tensor.is_meta for name, tensor in tensors if not any(word in name for word in shared)
        } == {number > 0}
    cache = model.new_cache(2, 8)
    with torch.no_grad(), OneDeviceEach():
        hidden = model.hidden(IDS, cache=cache)
        assert hidden.is_meta
        if not model.tied:  # back from meta there is no way
            assert model.logits(hidden).is_meta
        model.hidden(IDS[:, :1], cache=cache)

"""What a step keeps: which blocks are computed again, and what goes to the CPU's memory."""

from dataclasses import replace

import pytest
import torch
from conftest import write_sums
from methods import IDS
from training_runs import S, model_with, run, same, state

from adapters import attach, parameters
from experiments.base import check_together, for_processes
from model import UserError
from run import main
from train import offload as memory
from train.offload import offloaded
from train.parallel import Processes
from train.settings import Settings, Train


# ---------------------------------------------------------------- checkpointing
@pytest.mark.parametrize(
    ("said", "every"), [("none", 0), ("block", 1), ("every 1", 1), ("every 2", 2), ("every 12", 12)]
)
def test_checkpointing_in_words(said, every):
    assert Train(checkpointing=said).checkpoint_every == every


@pytest.mark.parametrize(
    "said", ["all", "every", "every 0", "every -1", "every two", "every ²", "Block", ""]
)
def test_other_words_are_refused(said, capsys):
    with pytest.raises(UserError, match=r"train\.checkpointing"):
        Train(checkpointing=said).check()


@pytest.mark.parametrize(
    ("said", "again"),
    [("none", [0, 0, 0]), ("block", [1, 1, 1]), ("every 2", [1, 0, 1]), ("every 3", [1, 0, 0])],
)
def test_every_nth_block_is_computed_again(any_tiny, said, again):
    attach(any_tiny, "series", size=4)
    any_tiny.checkpointing = Train(checkpointing=said).checkpoint_every
    calls = [0, 0, 0]
    for number, block in enumerate(any_tiny.blocks):
        block.register_forward_pre_hook(
            lambda *_, number=number: calls.__setitem__(number, calls[number] + 1)
        )
    any_tiny(IDS).sum().backward()
    assert [one - 1 for one in calls] == again


# ---------------------------------------------------------------- offloading
def gradients(model, every: int) -> list[torch.Tensor]:
    model.checkpointing = every
    model(IDS).sum().backward()
    found = [parameter.grad for parameter in parameters(model)]
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("every", [0, 1])
def test_what_is_saved_elsewhere_comes_back_the_same_and_weights_stay(any_tiny, monkeypatch, every):
    """Copies on the CPU stand for those that leave a GPU: all activations are copied, no weight
    of the model is.
    """
    attach(any_tiny, "series", size=4, init="bert")
    plain = gradients(any_tiny, every)
    monkeypatch.setattr(memory, "SMALL", 0)
    copied = []

    class Watched(memory.Elsewhere):
        def __init__(self, *more):
            super().__init__(*more)
            copied.append(self.copy)

    monkeypatch.setattr(memory, "Elsewhere", Watched)
    with offloaded(any_tiny):
        elsewhere = gradients(any_tiny, every)
    assert all(torch.equal(a, b) for a, b in zip(plain, elsewhere, strict=True))
    weights = [parameter for parameter in any_tiny.parameters() if parameter.numel() > 1]
    assert copied
    assert not any(
        one.shape in (weight.shape, weight.T.shape)
        and torch.equal(one, weight if one.shape == weight.shape else weight.T)
        for one in copied
        for weight in weights
    )


def test_what_several_operations_save_is_copied_once(tiny, monkeypatch):
    """And not mistaken for what lies at its address later, or for what it was before a change."""
    monkeypatch.setattr(memory, "SMALL", 0)
    made, true = [], memory.Elsewhere
    monkeypatch.setattr(memory, "Elsewhere", lambda *more: made.append(1) or true(*more))
    x = torch.randn(4, 6, requires_grad=True)
    with offloaded(tiny):
        y = x.exp()  # saves y
        z = (y * y).sum() + y.view(24).square().sum()  # save y again
        assert len(made) == 1
        y = (x + 1).exp()  # perhaps where a tensor was that is gone
        z = z + y.sum()
        assert len(made) == 2
    (gradient,) = torch.autograd.grad(z, x)
    torch.testing.assert_close(gradient, 4 * x.exp() ** 2 + (x + 1).exp())


def test_copies_come_back_before_they_are_needed(tiny, monkeypatch):
    """A copier that writes down what it does, as a card's would queue it."""
    monkeypatch.setattr(memory, "SMALL", 0)
    monkeypatch.setattr(memory, "AHEAD", 2)
    done, numbers = [], {}

    class Written(memory.Copier):
        def out(self, tensor, copy):
            super().out(tensor, copy)
            numbers[copy.data_ptr()] = len(numbers)

        def back(self, copy, device):
            done.append(("back", numbers[copy.data_ptr()]))
            return super().back(copy, device)[0], numbers[copy.data_ptr()]

        def arrived(self, tensor, event):
            done.append(("used", event))

    monkeypatch.setattr(memory, "Copier", Written)
    x = torch.randn(3, 5, requires_grad=True)
    with offloaded(tiny):
        y = x.exp().tanh().sigmoid().exp()  # each saves its output: copies 0 to 3
        y.sum().backward()
        expected, *ahead = done[:3]
        assert (expected, *ahead) == (("back", 3), ("back", 2), ("back", 1))
        order = [("used", 3), ("back", 0), ("used", 2), ("used", 1), ("used", 0)]
        assert done[3:] == order
        del done[:]
        (x.exp().sum() + x.cos().sum()).backward()  # nothing of the first pass comes again
        assert sorted(done) == [("back", 4), ("back", 5), ("used", 4), ("used", 5)]


def test_copies_lie_side_by_side(monkeypatch):
    monkeypatch.setattr(memory, "PIECE", 2**12)
    arena, room = memory.Arena(pinned=False), memory.Room()
    tensors = [torch.randn(n) for n in (3, 700, 300, 5, 1500, 500)]
    tensors[3] = tensors[3].bfloat16()[:4].view(2, 2)
    copies = [arena.room_for(tensor) for tensor in tensors]
    sizes = [room.take(tensor.nbytes) for tensor in tensors]
    assert sizes == [2**12, 0, 0, 2**12, 2**13, 0]  # as the plan counts them
    for copy, tensor in zip(copies, tensors, strict=True):
        copy.copy_(tensor)
    assert all(torch.equal(copy, tensor) for copy, tensor in zip(copies, tensors, strict=True))
    assert len({copy.untyped_storage().data_ptr() for copy in copies}) == 3


def test_settings_that_do_not_go_together_are_refused_before_anything_is_made(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(
        "experiments.base.load_model", lambda *_, **__: pytest.fail("the model was loaded")
    )
    for words, said in (
        (["--set", "train.offload=true"], "this run is on the CPU"),
        (["--shard"], "there is one: start with torchrun"),
    ):
        assert main([*words, "--out", str(tmp_path / "out")]) == 1
        assert said in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_a_run_that_was_offloaded_is_measured_on_the_cpu(tmp_path):
    out = tmp_path / "run"
    assert (
        main(
            [
                "--data",
                str(write_sums(tmp_path / "sums.json")),
                *"--max-steps 1 --items 1 --set eval.before=false --out".split(),
                str(out),
            ]
        )
        == 0
    )
    told = out / "run.toml"
    told.write_text(told.read_text().replace("offload = false", "offload = true"))
    assert main(["evaluate", str(out), "--items", "1", "--out", str(tmp_path / "measured")]) == 0


def test_what_goes_with_which_devices():
    cpu, first, second = torch.device("cpu"), torch.device("cuda:0"), torch.device("cuda:1")
    check_together(Settings(), [first, second])
    check_together(Settings(shard=True), [first], world=2)
    check_together(Settings(train=Train(offload=True)), [cpu, first])
    for s, devices, world, said in (
        (Settings(), [first, first], 1, "names a GPU twice"),
        (Settings(), [cpu, cpu], 2, "devices of one process"),
        (Settings(layers_per_device=[2, 2]), [cpu], 1, "for several devices"),
        (Settings(shard=True), [first], 1, "start with torchrun"),
        (Settings(shard=True, quantize="int8"), [first], 2, "do not go together"),
        (Settings(shard=True, train=Train(offload=True)), [first], 2, "do not go"),
    ):
        with pytest.raises(UserError, match=said):
            check_together(s, devices, world)


def test_a_split_run_of_one_process_goes_on_in_several():
    s = Settings(device="cuda:0,cuda:1", layers_per_device=[2, 2])
    assert for_processes(s, Processes()) == s
    assert for_processes(s, Processes(0, 2)) == replace(s, device="cuda", layers_per_device=[])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_offloaded_training_is_training(folder, tmp_path):
    plain, elsewhere = model_with(folder, device="cuda"), model_with(folder, device="cuda")
    run(plain, tmp_path)
    run(elsewhere, tmp_path, replace(S, offload=True))
    assert same(state(plain), state(elsewhere))

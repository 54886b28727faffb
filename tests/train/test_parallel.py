"""Several processes take the steps that one takes: real ones, over gloo on this machine
(tests/in_processes.py is what they run).
"""

import signal

import pytest
import torch
from families import batch
from in_processes import CASES, SHARDED, trained
from launched import (
    WORLDS,
    close,
    folder,  # noqa: F401
    found,
)

from eval.generate import generate
from eval.journal import Journal, answers_in, journal_of, remove_journals
from experiments import base
from experiments import run as experiment
from experiments.prepare import fingerprint
from model import UserError, load_model
from train import lost
from train.parallel import Processes, started
from train.settings import settings, to_toml


# ---------------------------------------------------------------- the same steps
@pytest.mark.parametrize(
    ("name", "world"),
    [("parallel", 2), ("dropout", 2), ("dropout", 4), ("adalora", 2), ("adalora", 4)],
)
def test_any_number_of_processes_takes_the_steps_of_one(folder, tmp_path, name, world):
    """Dropout too; AdaLoRA's penalty counts once; three micro-batches a step, one in the last:
    some process has fewer than others, or none.
    """
    close(found(folder, name, world), trained(folder, CASES[name], folder=tmp_path))


def test_what_is_not_finite_in_one_process_is_skipped_in_all(folder, tmp_path):
    one = found(folder, "poisoned", 2)
    assert one["skipped"] == 1
    assert one["norms"].index(None) == 2
    half = found(folder, "float16", 2)  # its loss scale, too, follows what all have
    assert (
        half["skipped"]
        == trained(folder, CASES["float16"], folder=tmp_path, dtype=torch.float16)["skipped"]
    )


@pytest.mark.parametrize("world", WORLDS)
def test_gradients_are_added_and_what_none_has_stays_none(folder, world):
    for everywhere, in_one, nowhere in found(folder, "gradients", world):
        assert everywhere.eq(world).all()
        assert in_one.eq(1).all()
        assert nowhere is None


@pytest.mark.parametrize("world", WORLDS)
def test_processes_that_differ_are_refused_in_all_of_them(folder, world):
    assert set(found(folder, "refused", world)) == {
        "process 1 differs from process 0 in: data; all need the same command, files and versions"
    }


# ---------------------------------------------------------------- stopping and going on
def test_a_signal_to_one_stops_all_behind_the_same_step_and_any_number_goes_on(folder, tmp_path):
    """Four stop behind step 3, two go on and stop behind 6, one ends it."""
    assert found(folder, "stopped", 4) == [(signal.SIGTERM, 3)] * 4
    middle = found(folder, "resumed", 2)
    assert (middle["signal"], middle["step"]) == (signal.SIGTERM, 6)
    end, whole = (
        trained(folder, CASES["dropout"], resume=True, folder=folder / "stopped"),
        trained(folder, CASES["dropout"], folder=tmp_path),
    )
    torch.testing.assert_close(
        torch.tensor(middle["losses"] + end["losses"]),
        torch.tensor(whole["losses"][3:]),
        rtol=1e-5,
        atol=0,
    )
    torch.testing.assert_close(end["weights"], whole["weights"], rtol=1e-3, atol=1e-5)


def test_as_many_as_before_go_on_to_the_bit(folder):
    exact, whole = found(folder, "exact", 2), found(folder, "dropout", 2)
    assert exact["losses"] == whole["losses"][5:]
    assert all(torch.equal(a, b) for a, b in zip(exact["weights"], whole["weights"], strict=True))


# ---------------------------------------------------------------- the base in parts
@pytest.mark.parametrize("name", SHARDED)
def test_a_base_in_parts_trains_as_a_whole_one_does(folder, tmp_path, name):
    """Under checkpointing too; and methods that start from a block's weights."""
    close(found(folder, name, 2), trained(folder, SHARDED[name], folder=tmp_path))


def test_each_process_holds_its_share_of_the_blocks_and_gathers_one_to_use_it(folder, tmp_path):
    for held, whole, gathered in found(folder, "bytes", 2):
        assert (
            held == whole // 2
            # storage, after training and answers: nothing gathered is left, nothing of the loading
            # either
        )
        assert len(gathered) > 3 * 22  # forward, the second forward of checkpointed blocks, answers
        assert (
            max(gathered) <= 2
        )  # of three: the one that computes, in the backward pass the one that comes next
    model = trained(folder, SHARDED["sharded"], folder=tmp_path)["model"]
    ids, mask = batch("left")
    assert found(folder, "answers", 2) == generate(model, ids, mask, max_new_tokens=6)


def test_parts_of_a_base_that_is_alone_are_refused(tmp_path):
    with pytest.raises(UserError, match="there is one: start with torchrun"):
        base.load_base(made := settings(options={"shard": True}))
    (tmp_path / "run.toml").write_text(to_toml(made))
    whole = experiment.resume_settings(tmp_path, sets=["shard=false"])  # as the line says
    assert not whole.shard
    assert fingerprint(whole) == fingerprint(made)
    with pytest.raises(UserError, match="leave out quantize and devices"):
        load_model("pocket-llama", mesh=object(), quantize="nf4")


# ---------------------------------------------------------------- who does what
def test_micro_batches_go_round(monkeypatch):
    batches = {seed: [] for seed in (11, 12, 13, 14, 15)}
    shares = [list(Processes(rank, 3).share(batches)) for rank in range(3)]
    assert shares == [[11, 14], [12, 15], [13]]
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with started() as processes:
        assert processes == Processes()
        assert processes.exchange(3) == [3]


def test_answers_of_any_number_of_processes_are_gone_on_with(tmp_path):
    """Three processes were interrupted; whoever goes on finds what all of them had, and at the
    end nothing is left of it.
    """
    path = tmp_path / "predictions.jsonl.part"
    for rank in range(3):
        with Journal(journal_of(path, rank), "same") as journal:
            journal.write({"job": rank + 5, "output": f"answer {rank}"})
    (tmp_path / "predictions.jsonl.partial").write_text("of somebody else")
    assert {number: answer["output"] for number, answer in answers_in(path, "same").items()} == {
        5: "answer 0",
        6: "answer 1",
        7: "answer 2",
    }
    with pytest.raises(UserError, match="holds answers to other problems"):
        answers_in(path, "other")
    remove_journals(path)
    assert [one.name for one in tmp_path.iterdir()] == ["predictions.jsonl.partial"]


def test_processes_that_were_not_started_by_torchrun_say_so(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with (
        pytest.raises(
            UserError,
            match=(
                "RANK, MASTER_ADDR, MASTER_PORT is not set: start several processes with torchrun"
            ),
        ),
        started(),
    ):
        pass


def test_a_connection_that_broke_is_told_from_other_mistakes():
    assert isinstance(
        lost.lost(
            RuntimeError(
                "[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4711"
            )
        ),
        lost.Lost,
    )
    nccl = "NCCL error in: ProcessGroupNCCL.cpp:1, NCCL version 2.27.5\n"
    for text in (
        nccl + "ncclRemoteError: A call failed possibly due to a remote process exiting",
        "Watchdog caught collective operation timeout: WorkNCCL(SeqNum=4) ran for 1800000 ms",
    ):
        assert isinstance(lost.lost(torch.distributed.DistBackendError(text)), lost.Lost)
    for other in (
        RuntimeError("shapes do not fit"),
        UserError("gloo is a word, too"),
        torch.distributed.DistBackendError(nccl + "ncclInvalidArgument: Invalid value"),
    ):
        assert lost.lost(other) is other


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ncclUnhandledCudaError\nLast error:\nCuda failure 2 'out of memory'", "out of memory"),
        ("ncclSystemError\nLast error:\nFailed to CUDA calloc async 608 bytes", "out of memory"),
        (
            "ncclInvalidUsage\nDuplicate GPU detected : rank 1 and rank 0",
            "two processes are on one",
        ),
    ],
)
def test_what_nccl_cannot_do_is_not_taken_for_a_lost_process(text, said):
    error = lost.lost(torch.distributed.DistBackendError(f"NCCL error in: x, {text}"))
    assert not isinstance(error, lost.Lost)
    assert isinstance(error, UserError)
    assert str(error).startswith(said)

"""Several processes take the steps that one takes: real ones, over gloo on this machine
(tests/in_processes.py is what they run).
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from conftest import write_checkpoint, write_sums
from families import batch
from in_processes import CASES, SHARDED, trained
from processes import Started, start

import run as command_line
from eval.generate import generate
from eval.journal import Journal, answers_in, journal_of, remove_journals
from experiments import base
from experiments import run as experiment
from experiments.prepare import fingerprint
from model import UserError, load_model
from train import parallel
from train.checkpoint import checkpoints
from train.parallel import Processes, started
from train.settings import settings, to_toml

ROOT = Path(__file__).parent.parent
WORLDS = [4, 2]


def free_port() -> int:
    """One that is still free when rank 0 takes it, seconds later: below those that connections
    are given; another one in every process that runs tests, whatever has seeded `random` there
    (lm-evaluation-harness does).
    """
    while True:
        with socket.socket() as one, suppress(OSError):
            one.bind(("127.0.0.1", port := random.SystemRandom().randrange(20_000, 32_000)))
            return port


def launch(
    world: int, *command, cwd: Path | None = None, more: dict[str, str] | None = None
) -> list[Started]:
    """As torchrun does, without its own three seconds."""
    common = {
        "WORLD_SIZE": world,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(),
        **(more or {}),
    }
    return [
        start(*command, cwd=cwd, environment=common | {"RANK": rank, "LOCAL_RANK": rank})
        for rank in range(world)
    ]


def finish(started: list[Started], timeout: int = 900) -> list[tuple[int, str, str]]:
    """(status, stdout, stderr) of each."""
    try:
        texts = [one.communicate(timeout=timeout) for one in started]
    finally:
        for one in started:
            one.kill()
    return [(one.returncode, *text) for one, text in zip(started, texts, strict=True)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where four processes have worked, and then two."""
    folder = tmp_path_factory.mktemp("parallel")
    write_checkpoint(folder / "tiny")
    for world in WORLDS:
        ended = finish(launch(world, ROOT / "tests" / "in_processes.py", folder))
        assert [status for status, *_ in ended] == [0] * world, "\n".join(
            error[-3000:] for *_, error in ended
        )
    return folder


def found(folder: Path, name: str, world: int):
    return torch.load(folder / f"{name}-{world}.pt")


def close(a, b, **tolerance) -> None:
    torch.testing.assert_close(
        torch.tensor(a["losses"]), torch.tensor(b["losses"]), rtol=1e-5, atol=0
    )
    torch.testing.assert_close(
        torch.tensor(a["norms"]), torch.tensor(b["norms"]), rtol=1e-4, atol=0
    )
    torch.testing.assert_close(
        a["weights"], b["weights"], **{"rtol": 1e-3, "atol": 1e-5} | tolerance
    )


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
        parallel.lost(
            RuntimeError(
                "[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4711"
            )
        ),
        parallel.Lost,
    )
    nccl = "NCCL error in: ProcessGroupNCCL.cpp:1, NCCL version 2.27.5\n"
    for text in (
        nccl + "ncclRemoteError: A call failed possibly due to a remote process exiting",
        "Watchdog caught collective operation timeout: WorkNCCL(SeqNum=4) ran for 1800000 ms",
    ):
        assert isinstance(parallel.lost(torch.distributed.DistBackendError(text)), parallel.Lost)
    for other in (
        RuntimeError("shapes do not fit"),
        UserError("gloo is a word, too"),
        torch.distributed.DistBackendError(nccl + "ncclInvalidArgument: Invalid value"),
    ):
        assert parallel.lost(other) is other


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
    error = parallel.lost(torch.distributed.DistBackendError(f"NCCL error in: x, {text}"))
    assert not isinstance(error, parallel.Lost)
    assert isinstance(error, UserError)
    assert str(error).startswith(said)


# ---------------------------------------------------------------- the command line
def rows_of_sums(folder: Path) -> list[str]:
    """A few rows in a file, and the options of a short run on them."""
    write_sums(folder / "sums.json")
    sets = [
        "eval.before=false",
        "eval.max_new_tokens=30",
        "train.batch_size=4",
        "train.micro_batch_size=1",
    ]
    return [
        *"--data sums.json --adapter lora".split(),
        *(word for one in sets for word in ("--set", one)),
    ]


def log_of(folder: Path) -> list[dict]:
    path = folder / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def test_a_mistake_is_one_line_of_one_process(tmp_path):
    first, second = finish(launch(2, ROOT / "run.py", "--adapter", "lorra", cwd=tmp_path))
    assert (first[0], second[0]) == (1, 1)
    assert first[2] == "run.py: unknown adapter 'lorra'; did you mean 'lora'?\n"
    assert second[1:] == ("", "")


def test_one_of_several_processes_ends_without_pythons_cleanup(tmp_path):
    """With gloo's threads still there, that aborts one of them now and then."""
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, os\natexit.register(lambda: os._exit(99))\n"
    )  # Python imports it when it starts
    for world, status in (("1", 99), ("2", 2)):
        variables = os.environ | {"PYTHONPATH": str(tmp_path), "WORLD_SIZE": world}
        command = [sys.executable, str(ROOT / "run.py"), "--nonsense"]
        assert subprocess.run(command, env=variables, capture_output=True).returncode == status


def test_rank_0_reports_an_error_that_it_meets_later_than_the_others():
    store, error = torch.distributed.HashStore(), UserError("unknown adapter")
    reported = []
    rank_0 = threading.Timer(
        0.5, lambda: reported.append(parallel.is_reported(store, Processes(0, 2), error))
    )
    rank_0.start()
    assert parallel.is_reported(store, Processes(1, 2), error)
    rank_0.join()
    assert reported == [False]


def test_an_error_of_one_process_is_reported_by_it_and_not_its_end_by_rank_0(monkeypatch):
    monkeypatch.setattr(parallel, "PATIENCE", timedelta(seconds=0.1))
    store = torch.distributed.HashStore()
    assert not parallel.is_reported(store, Processes(1, 2), UserError("no such file here"))
    assert parallel.is_reported(store, Processes(0, 2), parallel.Lost("connection closed"))


@pytest.mark.parametrize("words", [("--nonsense",), ("--max-steps", "x"), ("--adapter", "lorra")])
def test_who_has_nothing_to_say_ends_behind_who_has(tmp_path, words):
    """torchrun ends all processes as soon as one has ended: the one that speaks was cut off where
    another was faster.
    """
    first, second = launch(
        2, ROOT / "run.py", *words, cwd=tmp_path, more={"TORCHELASTIC_RUN_ID": "one"}
    )
    try:
        assert first.communicate(timeout=300)[1].count("run.py: ") == 1
        with pytest.raises(subprocess.TimeoutExpired):
            second.wait(timeout=1)
        second.terminate()
        assert second.communicate(timeout=60) == ("", "")
        assert second.returncode in (
            -signal.SIGTERM,
            128 + signal.SIGTERM,
        )  # the second where it is starting yet
    finally:
        first.kill(), second.kill()


def test_other_commands_are_for_one_process(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, said in (
        ("0", "run.py: models is for one process: start it with python, not with torchrun\n"),
        ("1", ""),
    ):
        monkeypatch.setenv("RANK", rank)
        assert command_line.main(["models"]) == 2
        assert capsys.readouterr().err == said


def test_two_processes_answer_and_write_what_one_does(tmp_path):
    """The whole job, begun under torchrun, where one process is killed (kill -9) and the job ends
    at once; continued by two, without it; one process alone comes to the same.
    """
    torchrun = [sys.executable, *"-m torch.distributed.run --standalone --nproc-per-node 2".split()]
    script = [
        str(ROOT / "tests" / "at_moments.py"),
        json.dumps([("micro-batch", 7, 0, signal.SIGKILL, 1)]),
    ]  # in the fourth step: each has two of four
    words = [*rows_of_sums(tmp_path), *"--max-steps 12 --set train.save_every=2 --out two".split()]
    job = subprocess.run(
        [*torchrun, *script, *words],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert job.returncode != 0
    assert (
        "forcefully exiting via" not in job.stderr
    )  # torchrun's word for a process that has not ended half a minute after it was told to
    assert not (tmp_path / "two" / "result.json").exists()
    assert (
        job.stderr.count("another process of this job ended or does not answer") <= 1
    )  # torchrun may have ended the other before it says so
    assert [torch.load(path)["step"] for path in checkpoints(tmp_path / "two")] == [2]

    for status, _, error in finish(launch(2, ROOT / "run.py", "--resume", "two", cwd=tmp_path)):
        assert status == 0, error
    assert {path.name for path in (tmp_path / "two").iterdir()} == {
        "run.toml",
        "log.jsonl",
        "adapter",
        "predictions.jsonl",
        "result.json",
        "report.html",
        "checkpoint-000012.pt",
        "leakage.json",
    }
    experiment.run(settings(config=str(tmp_path / "two" / "run.toml")), tmp_path / "one")
    two, one = (
        {entry["step"]: entry["loss"] for entry in log_of(tmp_path / name)}
        for name in ("two", "one")
    )  # steps after the checkpoint stand there twice
    torch.testing.assert_close(
        torch.tensor([two[step] for step in one]),
        torch.tensor(list(one.values())),
        rtol=1e-4,
        atol=0,
    )
    assert (tmp_path / "one" / "predictions.jsonl").read_text() == (
        tmp_path / "two" / "predictions.jsonl"
    ).read_text()
    assert json.loads((tmp_path / "two" / "result.json").read_text())["processes"] == 2

"""The real command line, killed, stopped, out of disk and out of memory: what it leaves, what it
says, and that it ends with the bits of an undisturbed run.
"""

import contextlib
import errno
import json
import random
import re
import shutil
import signal
import subprocess
import sys
from itertools import islice
from pathlib import Path

import processes
import pytest
from safetensors.torch import load_file, save_file

import run as command_line
from data.wordproblems import problems
from experiments import run as experiment
from experiments.report import read_log
from files import writing
from files.writing import held
from model import UserError
from train.checkpoint import checkpoints, read_checkpoint
from train.settings import settings

ROOT = Path(__file__).parent.parent
WHAT = (
    "--adapter lora --set adapter.dropout=0.1 --set "
    "train.micro_batch_size=5 --set train.validation_rows=12 --set "
    "eval.before=true --set eval.batch_size=4 --set eval.max_new_tokens=12"
).split()


def rows(tmp_path: Path) -> Path:
    """A small file of word problems, so that a run starts in little time."""
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(list(islice(problems("svamp", "train", 0), 300))))
    return path


def finish(*arguments, at: tuple = (), limit: int | None = None) -> tuple[int, str, str]:
    """(status, stdout, stderr) of python run.py, which sends itself signals at these moments
    (tests/at_moments.py: what comes to a process from outside comes too late on a busy machine);
    no file that it writes may grow beyond `limit` bytes, which is what a full disk is like.
    """
    moments = [ROOT / "tests" / "at_moments.py", json.dumps(at)]
    script = moments if at else [ROOT / "run.py"]
    done = processes.finish(*script, *arguments, limit=limit)
    return done.returncode, done.stdout, done.stderr


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def moment(what: str, rng: random.Random) -> tuple:
    """A moment of a run, from the newest checkpoint on, and how long behind it."""
    count = {"starting": 1, "saving": rng.randint(1, 2), "step": rng.randint(1, 6)}.get(
        what, rng.randint(1, 8)
    )
    return what, count, rng.uniform(0.1, 3) if what == "starting" else rng.uniform(0, 0.03)


def kill(command: list, folder: Path, what: str, rng: random.Random) -> None:
    status, _, error = finish(*command, at=[(*moment(what, rng), signal.SIGKILL)])
    assert status == -signal.SIGKILL, error
    for path in checkpoints(folder):
        read_checkpoint(path)  # whole, every one of them


def check_same(folder: Path, whole: Path) -> None:
    for name in (
        "adapter/adapter_model.safetensors",
        "adapter/adapter_config.json",
        "predictions-base.jsonl",
        "predictions.jsonl",
        "run.toml",
    ):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    kept = ("step", "loss", "learning_rate", "gradient_norm", "skipped", "validation_loss")
    first, second = (
        [{key: entry.get(key) for key in kept} for entry in read_log(path / "log.jsonl")]
        for path in (folder, whole)
    )
    assert first == second
    first, second = (
        json.loads((path / "result.json").read_text()) | {"seconds": 0} for path in (folder, whole)
    )
    assert first == second
    assert not [path.name for path in folder.iterdir() if path.name.endswith((".tmp", ".part"))]


def chain(
    tmp_path: Path, steps: int, items: int, kills: list[str], rng: random.Random
) -> tuple[Path, Path]:
    """(the folder of an undisturbed run, that of a run killed -9 at these moments, one after the
    other, and not yet finished).
    """
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    command = [
        *WHAT,
        "--data",
        rows(tmp_path),
        "--max-steps",
        steps,
        "--items",
        items,
        "--set",
        "train.save_every=3",
    ]
    status, _, error = finish(*command, "--out", whole)
    assert status == 0, error
    for what in kills:
        kill(
            ["--resume", folder]
            if (folder / "run.toml").is_file()
            else [*command, "--out", folder],
            folder,
            what,
            rng,
        )
    return whole, folder


def test_killed_out_of_disk_and_terminated_a_run_ends_with_the_same_bits(tmp_path):
    whole, folder = chain(
        tmp_path, 18, 24, ["base", "step"], random.Random(5)
    )  # after the fourth step

    # the disk is full: one line that names the file, everything as it was
    full = tmp_path / "full"
    shutil.copytree(folder, full)
    saved = {path.name: path.read_bytes() for path in checkpoints(full)}
    status, _, error = finish("--resume", full, limit=100_000)
    said = [line for line in error.splitlines() if line.startswith("run.py:")]
    assert status == 1
    assert len(said) == 1, error
    assert f"cannot write {full}/checkpoint-0000" in said[0]
    assert "Traceback" not in error
    assert {path.name: path.read_bytes() for path in checkpoints(full)} == saved
    assert not list(full.glob(".*.tmp"))

    # SIGTERM in training and while measuring: status 143, and the line that says how to go on
    for what in ("step", "measuring"):
        status, out, error = finish("--resume", folder, at=[(what, 2, 0, signal.SIGTERM)])
        assert status == 143, error
        assert f"--resume {folder}" in out
        assert "Traceback" not in error
        newest = read_checkpoint(checkpoints(folder)[-1])
        assert newest["step"] == len(
            read_log(folder / "log.jsonl")
        )  # the step at hand was finished, and saved
    (folder / "predictions-base.jsonl.part").write_text(
        ""
    )  # as a kill leaves it that comes just after predictions-base.jsonl
    assert finish("--resume", folder)[0] == 0
    check_same(folder, whole)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_ten_random_moments_a_run_ends_with_the_same_bits(tmp_path, seed):
    rng = random.Random(seed)
    training = ["step", "step", "step", "step", "saving", "saving", "starting"]
    rng.shuffle(training)
    whole, folder = chain(tmp_path, 90, 24, ["base", *training, "measuring", "measuring"], rng)
    assert finish("--resume", folder)[0] == 0
    check_same(folder, whole)


def test_a_second_signal_ends_the_run_within_the_step(tmp_path):
    folder = tmp_path / "out"
    status, out, error = finish(
        "--adapter",
        "lora",
        "--data",
        rows(tmp_path),
        *(
            "--set train.batch_size=20 --set train.micro_batch_size=1 --set "
            "eval.before=false --max-steps"
        ).split(),
        3,
        "--out",
        folder,
        at=[("micro-batch", 23, 0, signal.SIGINT), ("micro-batch", 26, 0, signal.SIGTERM)],
    )  # both in the second step
    assert status == 143, error
    assert "stopping after this step" in error
    assert lines(folder / "log.jsonl") == 1  # the second step was not finished
    assert not checkpoints(folder)
    assert f"--resume {folder}" in out


def test_no_two_processes_in_one_folder(tmp_path, capsys):
    """A lock on the folder itself: it leaves nothing behind."""
    out = tmp_path / "out"
    out.mkdir()
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import fcntl, os, time; fcntl.flock(os.open({str(out)!r}, "
            "os.O_RDONLY), fcntl.LOCK_SH); "
            "print(1, flush=True); time.sleep(3600)",
        ],
        stdout=subprocess.PIPE,
    )
    try:
        holder.stdout.readline()
        words = [
            "--data",
            str(rows(tmp_path)),
            *"--max-steps 1 --set eval.before=false --items 1 --out".split(),
            str(out),
        ]
        assert command_line.main(words) == 1
        assert f"another process is running in {out}" in capsys.readouterr().err
        assert not any(out.iterdir())
    finally:
        holder.kill()
        holder.wait()
    assert command_line.main(words) == 0


def test_what_is_not_this_runs_lock_is_not_taken_for_it(tmp_path, monkeypatch):
    """A file system without locks; an error of the run itself that looks like a lock's; a folder
    that cannot be opened.
    """
    with pytest.raises(BlockingIOError), held(tmp_path):
        raise BlockingIOError("a pipe that takes no more")
    with monkeypatch.context() as context:
        context.setattr(writing, "make_folder", lambda path: None)  # another process has removed it
        with pytest.raises(UserError, match="cannot open the folder"), held(tmp_path / "gone"):
            pass
    monkeypatch.setattr(
        "fcntl.flock",
        lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSYS, "Function not implemented")),
    )
    with held(tmp_path):
        pass


def test_a_run_that_is_refused_leaves_the_folder_of_another_alone(tmp_path, monkeypatch):
    """Both found no folder; the other has made it and holds it, and has nothing written yet."""
    out, make_folder = tmp_path / "out", writing.make_folder

    def made_by_another(path: Path) -> None:
        monkeypatch.setattr(writing, "make_folder", make_folder)
        other.enter_context(held(path))

    monkeypatch.setattr(writing, "make_folder", made_by_another)
    with contextlib.ExitStack() as other:
        with pytest.raises(UserError, match="another process is running in"):
            experiment.run(settings(), out)
        assert out.is_dir()
    assert not out.exists()


def test_an_evaluation_holds_its_folder_also_where_it_is_new(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"

    def predict(*_, **__):
        with pytest.raises(UserError, match="another process is running in"), held(out):
            pass
        raise UserError("nobody else came in")

    monkeypatch.setattr("experiments.evaluate.predict", predict)
    assert (
        command_line.main(
            ["evaluate", "--model", "pocket-llama", "--items", "1", "--out", str(out)]
        )
        == 1
    )
    assert "nobody else came in" in capsys.readouterr().err


def test_another_seed_method_data_or_base_on_resume_is_refused(tmp_path, capsys):
    """In the folder of a run that was killed behind its last step, whose run.toml, rows or model
    then became others.
    """
    folder, data, base = tmp_path / "out", rows(tmp_path), tmp_path / "base"
    shutil.copytree(ROOT / "model" / "pocket" / "llama", base)
    words = [
        "--model",
        str(base),
        *"--recipe pocket-tune --adapter lora --data".split(),
        str(data),
        *"--max-steps 2 --items 1".split(),
    ]
    assert (
        command_line.main(
            [
                *words,
                *"--set eval.before=false --set eval.max_new_tokens=1 --out".split(),
                str(folder),
            ]
        )
        == 0
    )
    for name in ("result.json", "report.html", "predictions.jsonl"):
        (folder / name).unlink()
    settings, texts, weights = (
        (folder / "run.toml").read_text(),
        data.read_text(),
        load_file(base / "model.safetensors"),
    )
    name, tensor = next(iter(weights.items()))
    for said, change in (
        (
            "settings",
            lambda: (folder / "run.toml").write_text(settings.replace("seed = 0", "seed = 1")),
        ),
        (
            "settings",
            lambda: (folder / "run.toml").write_text(
                settings.replace("alpha = 16.0", "alpha = 8.0")
            ),
        ),
        ("data", lambda: data.write_text(texts.replace("pens", "pins"))),
        (
            "base model",
            lambda: save_file(
                weights | {name: tensor * 2}, base / "model.safetensors", metadata={"format": "pt"}
            ),
        ),
    ):
        (folder / "run.toml").write_text(settings)
        data.write_text(texts)
        change()
        capsys.readouterr()
        assert command_line.main(["--resume", str(folder)]) == 1, said
        error = [
            line for line in capsys.readouterr().err.splitlines() if line.startswith("run.py:")
        ]
        assert len(error) == 1
        assert re.search(
            f"was made with another .*{said}.*; resume with what it was started with", error[0]
        )
    data.write_text(texts)
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    (folder / "run.toml").write_text(
        settings.replace("keep = 1", "keep = 2")
    )  # what does not change the course may change
    assert command_line.main(["--resume", str(folder)]) == 0


LIMITED = """
import re, resource, sys
sys.path.insert(0, {root!r})
import run
from train import loop
true = loop.accumulate
def accumulate(*arguments):
    used = int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (used + 40_000_000, used + 40_000_000))
    return true(*arguments)
loop.accumulate = accumulate
sys.exit(run.main({words!r}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_memory_that_really_runs_out_is_one_line(tmp_path):
    words = [
        "--adapter",
        "lora",
        "--data",
        str(rows(tmp_path)),
        *(
            "--set train.batch_size=250 --set train.micro_batch_size=250 "
            "--max-steps 2 --set eval.before=false --out"
        ).split(),
        str(tmp_path / "out"),
    ]
    done = processes.finish("-c", LIMITED.format(root=str(ROOT), words=words))
    said = [line for line in done.stderr.splitlines() if line.startswith("run.py:")]
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert said == [
        "run.py: out of memory on cpu with 250 rows at once: lower "
        "train.micro_batch_size or set train.checkpointing=block; "
        f"the last checkpoint is intact, --resume {tmp_path / 'out'} takes both with --set"
    ]

"""Two processes in one folder, and a run resumed as another: refused."""

import contextlib
import errno
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from interrupted_runs import ROOT, rows
from safetensors.torch import load_file, save_file

import run as command_line
from experiments import run as experiment
from files import writing
from files.writing import held
from model import UserError
from train.settings import settings


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

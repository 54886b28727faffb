"""Files are written whole or not at all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from files.writing import write_atomically
from model import UserError
from train.checkpoint import load_checkpoint, save_checkpoint


# ---------------------------------------------------------------- checkpoints
def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path):
    save_checkpoint(tmp_path, 1, {"step": 1, "fingerprints": {}})
    path = tmp_path / "checkpoint-000001.pt"

    def fail(temporary):
        temporary.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"cannot write .*checkpoint-000001.pt: .*No space left"):
        write_atomically(path, fail)
    assert load_checkpoint(tmp_path, {})["step"] == 1
    assert os.listdir(tmp_path) == ["checkpoint-000001.pt"]


def test_a_write_is_flushed_to_disk_and_cleans_up_after_the_killed(tmp_path, monkeypatch):
    flushed = []
    true_fsync = os.fsync
    monkeypatch.setattr(
        os,
        "fsync",
        lambda handle: flushed.append(os.readlink(f"/proc/self/fd/{handle}")) or true_fsync(handle),
    )
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    for name in (".checkpoint-000001.pt.123.tmp", f".checkpoint-000002.pt.{killed.pid}.tmp"):
        (tmp_path / name).write_bytes(b"half")
    save_checkpoint(tmp_path, 2, {})
    assert [Path(name).name.rpartition(".")[2] for name in flushed] == [
        "tmp",
        tmp_path.name,
    ]  # the file, then the folder its name stands in
    assert os.listdir(tmp_path) == ["checkpoint-000002.pt"]


def test_two_processes_that_write_one_file_leave_a_whole_one(tmp_path):
    """As when both have fetched the same model: neither takes what the other is writing for what
    a killed one left.
    """
    with subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE
    ) as writer:  # ends with its input
        path, other = tmp_path / "file", tmp_path / f".file.{writer.pid}.tmp"
        other.write_text("half")
        write_atomically(path, lambda temporary: temporary.write_text("whole"))
        assert (path.read_text(), other.read_text()) == ("whole", "half")
        writer.kill()


def test_the_mode_of_a_file_follows_the_umask(tmp_path):
    save_checkpoint(tmp_path, 1, {})
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "checkpoint-000001.pt").stat().st_mode & 0o777 == 0o666 & ~umask

"""What a closed terminal and runs that start at once leave."""

import io
import os
import signal

import pytest

from cli.main import leave
from experiments.evaluate import new_folder
from experiments.folders import fresh_folder, remove_if_empty
from files.errors import UserError
from files.terminal import BESIDE_BARS, Shown
from train.signals import STOPPING, Signals


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted_and_a_second_one_ends_the_process(number):
    with Signals() as signals:
        os.kill(os.getpid(), number)
        assert signals.received == number
        with pytest.raises(SystemExit) as end:
            os.kill(os.getpid(), signal.SIGHUP)
        assert end.value.code == 129


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    try:
        with Signals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.received == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_while_the_process_leaves_is_no_traceback():
    before = {number: signal.getsignal(number) for number in STOPPING}
    try:
        with pytest.raises(SystemExit):
            leave(3)
        assert {signal.getsignal(number) for number in STOPPING} == {signal.SIG_DFL}
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_what_a_killed_start_leaves_behind_is_not_in_the_way(tmp_path):
    for name in (".run.toml.5.tmp", "evaluate.toml"):
        (tmp_path / name).write_text("")
    with pytest.raises(UserError, match="not empty"):
        fresh_folder(tmp_path, numbered=False)
    assert new_folder(tmp_path, numbered=False) == tmp_path
    (tmp_path / "mine").write_text("")
    with pytest.raises(UserError, match="not empty"):
        new_folder(tmp_path, numbered=False)


def test_runs_that_start_at_once_take_a_folder_each(tmp_path):
    names = [fresh_folder(tmp_path / "runs" / "a", numbered=True) for _ in range(3)]
    assert [path.name for path in names] == ["a", "a-2", "a-3"]
    (names[1] / "x").write_text("")
    for path in names:
        remove_if_empty(path)
    assert [path.is_dir() for path in names] == [False, True, False]


def test_a_terminal_that_is_gone_ends_nothing():
    class Gone(io.StringIO):
        def write(self, text):
            raise OSError(5, "Input/output error")

    stream = Shown(Gone(), BESIDE_BARS)
    assert stream.write("abc") == 3

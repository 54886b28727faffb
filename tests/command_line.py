"""`python run.py`, in this process and in one of its own."""

import contextlib
import io
import os
import subprocess
import sys

import pytest
from processes import ROOT

import run as command_line

QUICK = "--max-steps 3 --items 2 --set train.batch_size=4".split()


def in_process(*arguments, cwd=None):
    """`python run.py` as a user starts it."""
    environment = os.environ | {"PYTHONPATH": "", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *map(str, arguments)],
        cwd=cwd or ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )


def run(*arguments, cwd=None):
    """The same in this process, which has torch already."""
    out, error = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(cwd or ROOT),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(error),
    ):
        status = command_line.main([str(one) for one in arguments])
    return subprocess.CompletedProcess(arguments, status, out.getvalue(), error.getvalue())


@pytest.fixture
def checked(capfd):
    """Call the command line in this process (importing torch anew takes seconds) and expect one
    line on stderr.
    """

    def check(*arguments, said: str, status: int = 1):
        assert command_line.main([str(argument) for argument in arguments]) == status
        lines = capfd.readouterr().err.strip().splitlines()
        assert len(lines) == 1, lines
        assert said in lines[0]
        return lines[0]

    return check

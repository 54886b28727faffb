"""A process that ends is noticed by those that wait for it in C, and nothing is lost."""

import os
import signal
from contextlib import suppress

import pytest
import torch
from conftest import write_checkpoint
from in_processes import CASES, trained
from launched import ROOT, finish, launch

from train.checkpoint import checkpoints


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_the_others_save_say_one_line_and_end(tmp_path, number):
    """torchrun's SIGTERM to them is only noted where they are."""
    write_checkpoint(tmp_path / "tiny")
    command = (ROOT / "tests" / "lost_processes.py", tmp_path, int(number))
    first, second, last = launch(3, *command)
    last.wait(timeout=300)
    for process in (first, second):
        with suppress(ProcessLookupError):  # it has ended already
            os.kill(process.pid, signal.SIGTERM)
    (first, second, last) = finish([first, second, last], timeout=60)
    assert (first[0], second[0], last[0]) == (1, 1, -number)
    lines = [line for line in first[2].splitlines() if line.startswith("lost_processes.py: ")]
    assert lines == [
        "lost_processes.py: another process of this job ended or does not answer; continue from "
        "the last checkpoint with --resume"
    ]
    assert "lost_processes.py: " not in second[2]
    assert "saved after step 3" in first[1]
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-000003.pt"]
    going_on = trained(tmp_path, CASES["dropout"], resume=True, folder=tmp_path)
    (tmp_path / "whole").mkdir()
    whole = trained(tmp_path, CASES["dropout"], folder=tmp_path / "whole")
    torch.testing.assert_close(going_on["weights"], whole["weights"], rtol=1e-3, atol=1e-5)

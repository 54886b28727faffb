"""What a GPU needs, as far as it can be tested without one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from files.errors import UserError, is_out_of_memory, short_of_memory
from model import load_model
from model.devices import start_cards

ROOT = Path(__file__).parent.parent


# ---------------------------------------------------------------- errors
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
    ],
    ids=lambda error: str(error)[:30],
)
def test_every_way_in_which_torch_says_that_memory_ran_out(error):
    assert is_out_of_memory(error)
    with (
        pytest.raises(UserError, match="out of memory on it: use less"),
        short_of_memory("on it: use less"),
    ):
        raise error


def test_other_errors_of_a_card_are_not_taken_for_a_lack_of_memory():
    for text in ("CUDA error: device-side assert triggered", "CUBLAS_STATUS_EXECUTION_FAILED"):
        assert not is_out_of_memory(RuntimeError(text))


# ---------------------------------------------------------------- before a card is used
def test_the_allocator_is_chosen_before_torch_is_there(monkeypatch):
    """In a child process, as torch reads the variable while it starts."""
    code = (
        "import os, sys, cli.main\n"
        "cli.main.main = lambda words: print('torch' in sys.modules, *[os.environ.get(name) for "
        "name in ('PYTORCH_ALLOC_CONF', 'PYTORCH_CUDA_ALLOC_CONF')])\n"
        "cli.main.start()\n"
    )

    def said(**variables) -> str:
        environment = {k: v for k, v in os.environ.items() if "ALLOC_CONF" not in k} | variables
        run = subprocess.run(
            [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True
        )
        return run.stdout.strip()

    assert said() == "False expandable_segments:True None"
    assert said(PYTORCH_ALLOC_CONF="a:1") == "False a:1 None"
    assert said(PYTORCH_CUDA_ALLOC_CONF="b:1") == "False None b:1"


def test_the_first_card_is_the_current_one_and_attention_is_flash(folder, monkeypatch):
    """Pinned memory would open a context on cuda:0; the plan counts flash attention."""
    current, cudnn = [], []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", cudnn.append)
    load_model(str(folder))
    assert (current, cudnn) == ([], [])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    second, third = torch.device("cuda:1"), torch.device("cuda:2")
    with pytest.raises(UserError, match="no-such-model"):  # before anything is loaded
        load_model("./no-such-model", devices=["cpu", "cuda:1", "cuda:2"])
    assert (current, cudnn) == ([second], [False])
    start_cards([third])
    assert current == [second, third]

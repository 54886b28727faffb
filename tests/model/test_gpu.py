"""What a GPU needs, as far as it can be tested without one."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from conftest import DEVICES, write_checkpoint
from processes import ROOT

from adapters import attach, named_parameters, parameters
from data.batches import Example
from eval.likelihood import log_likelihoods
from files.errors import UserError, is_out_of_memory, short_of_memory
from model import load_model
from model.devices import start_cards
from model.kernels import META_KERNELS, Kernels, attention, rms_norm
from model.sites import RMSNorm
from train.deterministic import deterministic
from train.loop import train
from train.settings import Train


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


@pytest.mark.parametrize("wrong", [61, -1])
def test_an_id_that_the_embedding_lacks_is_one_line(tiny, tmp_path, wrong):
    """On a card it would be an assertion of the device, after which CUDA is of no more use."""
    attach(tiny, "lora")
    said = rf"^token id {wrong}: the model's embedding has the ids 0 to 60$"
    row = Example([3, wrong, 5], [0.0, 1.0, 1.0])
    s = Train(max_steps=1, validation_rows=1)
    for rows in ({"examples": [row]}, {"examples": long_rows(1), "held_out": [row]}):
        with pytest.raises(UserError, match=said):
            train(tiny, named_parameters(tiny), **rows, s=s, folder=tmp_path)
    with pytest.raises(UserError, match=said):
        log_likelihoods(tiny, [([3, 4], [5]), ([3, 4], [wrong])])


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


# ---------------------------------------------------------------- the same bits
LONG = {  # D = 128
    "hidden_size": 256,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 1,
    "max_position_embeddings": 512,
}


def long_rows(count: int) -> list[Example]:
    """Rows of about 300 tokens, so that a card's kernels split them over several blocks."""
    draw = torch.Generator().manual_seed(4)
    ids = torch.randint(3, 61, (count, 300), generator=draw).tolist()
    return [Example(row[: 300 - 7 * n], [0.0] + [1.0] * (299 - 7 * n)) for n, row in enumerate(ids)]


@pytest.mark.parametrize("device", DEVICES)
def test_long_rows_give_the_same_bits_again_and_after_an_interruption(tmp_path, device):
    folder = write_checkpoint(tmp_path / "wide", **LONG)
    s = Train(max_steps=2, batch_size=2, micro_batch_size=2, learning_rate=0.01, warmup_steps=1)
    s = replace(s, deterministic=True, save_every=1, keep=2)

    def trained(name: str, resume: bool = False) -> list[torch.Tensor]:
        model = load_model(str(folder), torch.bfloat16, device)
        torch.manual_seed(0)
        attach(model, "lora", dropout=0.1)
        (tmp_path / name).mkdir(exist_ok=True)
        arguments = {"folder": tmp_path / name, "resume": resume}
        train(model, named_parameters(model), long_rows(4), s, **arguments)
        return [parameter.detach().cpu().clone() for parameter in parameters(model)]

    once, again = trained("once"), trained("again")
    assert all(map(torch.equal, once, again))
    (tmp_path / "again" / "checkpoint-000002.pt").unlink()
    assert all(map(torch.equal, once, trained("again", resume=True)))


@pytest.mark.parametrize("device", DEVICES)
def test_long_padded_rows_answer_as_alone(tmp_path, device):
    """In bfloat16, 300 tokens, D = 128: the prompt's answer hardly moves beside a longer one."""
    model = load_model(str(write_checkpoint(tmp_path / "wide", **LONG)), torch.bfloat16, device)
    short, longer = (
        torch.tensor(row.ids[:n]) for row, n in zip(long_rows(2), (150, 290), strict=True)
    )
    both = torch.zeros(2, 290, dtype=torch.long)
    both[0, 140:], both[1] = short, longer
    with torch.no_grad():
        padded = model(both.to(device), (both > 0).long().to(device))[0, -1].float().cpu()
        alone = model(short[None].to(device))[0, -1].float().cpu()
    assert (padded - alone).abs().max() < 0.05 * alone.std()


def test_an_operation_without_a_deterministic_form_is_one_line():
    with (
        pytest.raises(UserError, match=r"^bad_op does not .*: set train\.deterministic=false$"),
        deterministic(),
    ):
        raise RuntimeError(
            "bad_op does not have a deterministic implementation, but you set x. You"
        )
    with pytest.raises(RuntimeError, match="shapes"), deterministic():
        raise RuntimeError("shapes do not fit")
    assert not torch.are_deterministic_algorithms_enabled()


# ---------------------------------------------------------------- kernels of a card
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [True, False])
def test_grouped_heads_are_repeated_where_a_card_would_write_out_the_scores(dtype, masked):
    """Flash attention takes groups and no mask, memory-efficient attention a mask and no groups."""
    seen = []

    def fused(q, k, v, mask, is_causal, enable_gqa):
        seen.append((k, v, enable_gqa))
        return q

    q, k = (torch.empty(2, heads, 5, 16, dtype=dtype, device="meta") for heads in (4, 2))
    mask = torch.ones(1, 1, 5, 5, dtype=torch.bool, device="meta") if masked else None
    token = META_KERNELS.set(Kernels("cuda", fused))
    try:
        attention(q, k, k, mask)
    finally:
        META_KERNELS.reset(token)
    ((k, v, grouped),) = seen
    assert grouped == (dtype == torch.bfloat16 and not masked)
    assert k.shape == v.shape == ((2, 2, 5, 16) if grouped else (2, 4, 5, 16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cards_norm_is_one_kernel_and_rounds_once(dtype):
    draw = torch.Generator().manual_seed(1)
    norm = RMSNorm(64, 1e-5)
    norm.weight.data.normal_(1.0, generator=draw)
    x = torch.randn(3, 7, 64, generator=draw).to(dtype).requires_grad_()
    found = []
    for fused in (True, False):
        y = rms_norm(x, norm.weight, 1e-5) if fused else norm.compute(x, norm.weight)
        found.append((y, *torch.autograd.grad(y.float().square().sum(), (x, norm.weight))))
    most = 1e-5 if dtype == torch.float32 else 0.02
    for one, other in zip(*found, strict=True):
        assert one.dtype == other.dtype
        assert (one - other).abs().max() <= most * other.abs().max()
    calls = []
    token = META_KERNELS.set(Kernels("cuda", rms_norm=lambda *given: calls.append(given) or x))
    try:
        assert norm.to("meta").compute(x.to("meta"), norm.weight) is x
    finally:
        META_KERNELS.reset(token)
    assert len(calls) == 1


def test_bloom_has_one_bias_for_all_rows_that_begin_alike(tmp_path):
    """64 rows of 512 tokens would have 64 of them."""
    model = load_model(str(write_checkpoint(tmp_path / "tiny", "bloom")))
    ids = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 10]])
    mask = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])
    with torch.no_grad():
        plain, padded = (
            model.step(model.tokens(ids, m, None, None), None).mask for m in (None, mask)
        )
        assert len(plain) == 1
        assert len(padded) == 2
        assert torch.equal(plain[0], padded[0])
        torch.testing.assert_close(model(ids)[0], model(ids, mask)[0])

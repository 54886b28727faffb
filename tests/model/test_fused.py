"""Quantised products on a GPU: kernels of triton, which an interpreter runs on a CPU here."""

import json
import os
import subprocess
import sys
import warnings

import pytest
import torch
from conftest import DEVICES
from processes import ROOT
from quantised import noise, stored

from model.quantize import linear as choice


def test_the_kernels_compute_what_the_plain_forms_do():
    pytest.importorskip("triton", reason="triton is not installed: pip install triton")
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "interpreted.py"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    # of two shapes and three dtypes
    assert found["calls"] == {"int8_product": 6, "nf4_product": 12, "nf4_matrix": 9}
    for dtype, most in (
        ("torch.float32", 1e-5),
        ("torch.float16", 0.005),
        ("torch.bfloat16", 0.06),
    ):
        table = found[dtype]
        assert max(table["int8"], table["nf4"], table["gradient"]) < most, (dtype, table)
        # the interpreter cuts off what bfloat16 lacks, where a GPU rounds it
        assert table["weights"] == 0 or dtype == "torch.bfloat16"


def test_without_triton_products_are_plain_and_one_line_says_so(monkeypatch):
    monkeypatch.setattr(choice, "FUSED_ON", ("cpu",))
    monkeypatch.setitem(sys.modules, "triton", None)
    choice.fused_on.cache_clear()
    linear, x = stored("nf4", noise(40, 192)), noise(2, 192)
    with pytest.warns(UserWarning, match="quantised weights are multiplied without triton"):
        y = linear(x)
    with warnings.catch_warnings(action="error"):
        torch.testing.assert_close(y, x @ linear.dequantized(torch.float32).T)
    choice.fused_on.cache_clear()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("how", ["int8", "nf4"])
def test_a_card_multiplies_as_it_does_without_the_kernels(monkeypatch, how, dtype, device):
    linear = stored(how, noise(40, 1344).to(dtype) / 9, device)
    x = noise(3, 1344, seed=1).to(device, dtype)
    found = linear(x).float(), linear.dequantized(dtype)
    monkeypatch.setattr(choice, "FUSED_ON", ())
    assert torch.equal(found[1], linear.dequantized(dtype))
    far = (found[0] - linear(x).float()).abs().max() / found[0].std()
    assert far < {torch.float32: 1e-5, torch.float16: 0.005, torch.bfloat16: 0.03}[dtype]

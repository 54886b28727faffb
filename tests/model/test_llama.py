"""LLaMA's parts, and the settings it refuses; its logits are compared in test_parity.py."""

import json

import pytest
import torch

from model import UserError, load_model
from model.kernels import attention
from model.parts import attention_plain
from model.rope import rotary_angles, rotate_halves
from model.sites import RMSNorm


@pytest.mark.parametrize(("H", "K"), [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("masked", [False, True])
def test_both_attentions_agree(H, K, masked):
    torch.manual_seed(0)
    q, k, v = torch.randn(2, H, 5, 8), torch.randn(2, K, 5, 8), torch.randn(2, K, 5, 8)
    mask = torch.ones(5, 5).tril().bool()[None, None].repeat(2, 1, 1, 1) if masked else None
    if masked:
        mask[1, :, 3:, 1] = False  # a hole
    fused = attention(q, k, v, mask)
    plain = attention_plain(q, k, v, mask).transpose(1, 2).reshape(2, 5, -1)
    torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-5)


def test_rotary_turns_by_position_times_frequency():
    x = torch.tensor([1.0, 0.0, 0.0, 0.0]).view(1, 1, 1, 4)
    cos, sin = rotary_angles(torch.tensor([0.5, 0.1]), torch.tensor([[3]]), torch.float32)
    angle = torch.tensor(1.5)
    torch.testing.assert_close(
        rotate_halves(x, cos, sin).flatten(), torch.tensor([angle.cos(), 0.0, angle.sin(), 0.0])
    )


def test_rmsnorm_divides_in_float32():
    norm = RMSNorm(4, eps=0.0)
    norm.weight.data.fill_(1.0)
    x = torch.tensor(
        [[300.0, 300.0, 300.0, 300.0]], dtype=torch.float16
    )  # its square overflows float16
    torch.testing.assert_close(norm(x).float(), torch.ones(1, 4))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"hidden_act": "swish9"}, "swish9"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "longrope"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor"),
        ({"num_attention_heads": 5, "num_key_value_heads": 5}, "num_attention_heads"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"hidden_size": "big"}, "hidden_size"),
        ({"sliding_window": 5}, "sliding_window"),
        ({"rope_interleaved": True}, "rope_interleaved"),
        ({"model_type": "mamba"}, "mamba"),
        ({"num_hidden_layers": 10_000}, "num_hidden_layers"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"rope_theta": 0}, "rope_theta"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor"),
    ],
)
def test_unsupported_settings_are_refused_by_name(folder, change, named):
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=named):
        load_model(str(folder))


def test_settings_that_change_nothing_are_passed_over(folder):
    """What published files carry besides: conversions, training, serving."""
    config = json.loads((folder / "config.json").read_text())
    more = {
        "max_sequence_length": 2048,
        "pretraining_tp": 2,
        "rope_interleaved": False,
        "torch_dtype": "float16",
        "rope_scaling": None,
        "pad_token_id": -1,
    }
    before = load_model(str(folder))(torch.tensor([[3, 4]]))
    (folder / "config.json").write_text(json.dumps(config | more))
    assert torch.equal(load_model(str(folder))(torch.tensor([[3, 4]])), before)


def test_rotary_angles_are_float32_whatever_the_models_dtype():
    """Positions above 256 are no bfloat16 numbers; frequencies are not either."""
    positions, inv_freq = (
        torch.tensor([[1000, 1001, 2047]]),
        10000.0 ** -(torch.arange(0, 8, 2) / 8),
    )
    exact = rotary_angles(inv_freq, positions, torch.float32)
    for half, whole in zip(rotary_angles(inv_freq, positions, torch.bfloat16), exact, strict=True):
        assert torch.equal(half, whole.bfloat16())

"""LLaMA against transformers: live, and against golden tensors that work without it."""

import json
from pathlib import Path

import pytest
import torch
from conftest import DEVICES, write_checkpoint
from safetensors.torch import load_file

from model import UserError, llama, load_model
from model.parts import RMSNorm, attention, attention_plain, rotary_angles, rotate_halves

GOLDEN = Path(__file__).parent / "golden" / "llama"

CONFIGS = {
    "grouped heads": {},
    "one head each": {"num_key_value_heads": None},
    "multi-query": {"num_key_value_heads": 1},
    "explicit head_dim": {"head_dim": 12},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "tied head": {"tie_word_embeddings": True},
    "theta": {"rope_theta": 500000},
    "gelu": {"hidden_act": "gelu"},
    "rope linear": {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "rope llama3": {
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
    },
    "rope spelled as transformers 5": {"rope_parameters": {"rope_type": "default", "rope_theta": 777.0}},
}


def difference(ours: torch.Tensor, theirs: torch.Tensor, mask: torch.Tensor) -> float:
    """Largest difference over real tokens, in standard deviations of the logits."""
    real = mask.bool()
    return ((ours - theirs)[real].abs().max() / theirs[real].std()).item()


def batch(side: str) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(3, 61, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    for row, pads in enumerate((0, 3, 6)):
        if side == "left":
            mask[row, :pads] = 0
        if side == "right" and pads:
            mask[row, -pads:] = 0
    return ids * mask, mask


@pytest.mark.parametrize("side", ["plain", "left", "right"])
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_transformers(tmp_path, name, side):
    transformers = pytest.importorskip("transformers")
    folder = write_checkpoint(tmp_path, **CONFIGS[name])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    ours = load_model(str(folder))
    ids, mask = batch(side)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        expected = theirs(ids, attention_mask=mask, position_ids=positions).logits
        assert difference(ours(ids, mask), expected, mask) < 1e-4
        assert difference(ours(ids, mask, positions), expected, mask) < 1e-4
        if side != "left":  # right padding hides behind causal order: no mask needed
            assert difference(ours(ids), expected, mask) < 1e-4


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("side", ["plain", "left", "right"])
def test_golden_logits(side, device):
    """The same check against stored tensors (tests/make_golden.py wrote them), so that parity runs without transformers."""
    ours = load_model(str(GOLDEN), device=device)
    golden = load_file(str(GOLDEN / "expected.safetensors"))
    ids, mask = golden[f"{side}.ids"], golden[f"{side}.mask"]
    logits = ours(ids.to(device), mask.to(device)).cpu()
    assert difference(logits, golden[f"{side}.logits"], mask) < 1e-4
    cache = ours.new_cache(*ids.shape)
    steps = [ours(ids[:, t : t + 1].to(device), mask[:, : t + 1].to(device), cache=cache) for t in range(ids.shape[1])]
    assert difference(torch.cat(steps, dim=1).cpu(), golden[f"{side}.logits"], mask) < 1e-4


@pytest.mark.parametrize("side", ["plain", "left"])
def test_cached_steps_equal_transformers(folder, tiny, side):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    ids, mask = batch(side)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache, past = tiny.new_cache(3, 9), None
    for start, end in ((0, 6), (6, 7), (7, 8), (8, 9)):
        with torch.no_grad():
            out = theirs(ids[:, start:end], attention_mask=mask[:, :end], position_ids=positions[:, start:end], past_key_values=past, use_cache=True)
        past = out.past_key_values
        assert difference(tiny(ids[:, start:end], mask[:, :end], cache=cache), out.logits, mask[:, start:end]) < 1e-4


@pytest.mark.parametrize("side", ["plain", "left"])
def test_cached_steps_equal_the_full_pass(tiny, side):
    ids, mask = batch(side)
    full = tiny(ids, mask)
    cache = tiny.new_cache(3, 9)
    pieces = [tiny(ids[:, :4], mask[:, :4], cache=cache), tiny(ids[:, 4:6], mask[:, :6], cache=cache)]
    pieces += [tiny(ids[:, t : t + 1], mask[:, : t + 1], cache=cache) for t in range(6, 9)]
    assert difference(torch.cat(pieces, dim=1), full, mask) < 1e-4
    if side == "plain":
        cache = tiny.new_cache(3, 9)
        pieces = [tiny(ids[:, :4], cache=cache), tiny(ids[:, 4:], cache=cache)]
        assert difference(torch.cat(pieces, dim=1), full, mask) < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_close_as_the_reference(tmp_path, dtype):
    """Two correct half-precision implementations differ by rounding: ours may be no further from float32 than theirs is."""
    transformers = pytest.importorskip("transformers")
    folder = write_checkpoint(tmp_path, dtype=dtype)
    ids, mask = batch("plain")
    exact = load_model(str(folder), dtype=torch.float32)(ids)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()
    with torch.no_grad():
        reference = theirs(ids).logits.float()
    ours = load_model(str(folder))(ids)
    assert difference(ours, reference, mask) < 0.1
    assert difference(ours, exact, mask) < 1.2 * difference(reference, exact, mask)


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
    torch.testing.assert_close(rotate_halves(x, cos, sin).flatten(), torch.tensor([angle.cos(), 0.0, angle.sin(), 0.0]))


def test_rmsnorm_divides_in_float32():
    norm = RMSNorm(4, eps=0.0)
    x = torch.tensor([[300.0, 300.0, 300.0, 300.0]], dtype=torch.float16)  # its square overflows float16
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
    more = {"max_sequence_length": 2048, "pretraining_tp": 2, "rope_interleaved": False, "torch_dtype": "float16", "rope_scaling": None, "pad_token_id": -1}
    before = load_model(str(folder))(torch.tensor([[3, 4]]))
    (folder / "config.json").write_text(json.dumps(config | more))
    assert torch.equal(load_model(str(folder))(torch.tensor([[3, 4]])), before)


def test_every_site_of_the_table_is_there(tiny):
    for path in tiny.sites.values():
        assert tiny.blocks[0].get_submodule(path).active == ()
    for site in tiny.sites:
        assert f"[{site}]" in llama.PICTURE

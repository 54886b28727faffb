"""Every family against transformers: live in every configuration, and against golden tensors that
work without it.
"""

import copy

import pytest
import torch
from conftest import DEVICES, write_checkpoint
from families import ALL, CONFIGS, SIDES, batch, config_of, difference
from reference import GOLDEN, PROMPTS, positions_of, reference
from safetensors.torch import load_file

from eval.generate import generate, left_pad
from model import UserError, load_model
from model.config import MODEL_TYPES

FAMILIES = list(CONFIGS)


@pytest.fixture(params=ALL, ids=lambda pair: " ".join(pair), scope="module")
def pair(request, tmp_path_factory):
    """Our model and the reference on the same tiny checkpoint."""
    family, name = request.param
    folder = write_checkpoint(tmp_path_factory.mktemp("pair"), family, **CONFIGS[family][name])
    return load_model(str(folder)), reference(folder), "dynamic" in name


def test_logits_equal_transformers(pair):
    for side in SIDES:
        logits_are_equal(*pair, side)


def logits_are_equal(ours, theirs, by_row, side) -> None:
    ids, mask = batch(side)
    with torch.no_grad():
        # the reference lets the longest row decide for the whole batch; ours gives each row what
        # it gets by itself
        if by_row:
            rows = [
                copy.deepcopy(theirs)(
                    ids[i : i + 1],
                    attention_mask=mask[i : i + 1],
                    **positions_of(theirs, mask[i : i + 1]),
                ).logits
                for i in range(3)
            ]
            expected = torch.cat(rows)
        else:
            expected = theirs(ids, attention_mask=mask, **positions_of(theirs, mask)).logits
    assert difference(ours(ids, mask), expected, mask) < 1e-4
    assert difference(ours(ids, mask, (mask.cumsum(1) - 1).clamp(min=0)), expected, mask) < 1e-4
    if (
        side in ("plain", "right") and not by_row
    ):  # causal order hides right padding: no mask needed
        assert difference(ours(ids), expected, mask) < 1e-4


def test_cached_steps_equal_transformers(pair):
    ours, theirs, by_row = pair
    theirs = copy.deepcopy(theirs)  # a dynamic reference remembers the longest text it saw
    for side in ("plain",) if by_row else ("plain", "left"):
        ids, mask = batch(side)
        cache, past = ours.new_cache(3, 9), None
        for start, end in ((0, 6), (6, 7), (7, 8), (8, 9)):
            where = {
                key: value[:, start:] for key, value in positions_of(theirs, mask[:, :end]).items()
            }
            with torch.no_grad():
                out = theirs(
                    ids[:, start:end],
                    attention_mask=mask[:, :end],
                    past_key_values=past,
                    use_cache=True,
                    **where,
                )
            past = out.past_key_values
            assert (
                difference(
                    ours(ids[:, start:end], mask[:, :end], cache=cache),
                    out.logits,
                    mask[:, start:end],
                )
                < 1e-4
            )


def test_cached_steps_equal_the_full_pass(pair):
    ours, _, by_row = pair
    if by_row:
        pytest.skip("keys in the cache were rotated for the length of their time")
    for side in ("plain", "left", "holes"):
        ids, mask = batch(side)
        full = ours(ids, mask)
        cache = ours.new_cache(3, 9)
        pieces = [
            ours(ids[:, :4], mask[:, :4], cache=cache),
            ours(ids[:, 4:7], mask[:, :7], cache=cache),
        ]
        pieces += [ours(ids[:, t : t + 1], mask[:, : t + 1], cache=cache) for t in (7, 8)]
        assert difference(torch.cat(pieces, dim=1), full, mask) < 1e-4
        if side == "plain":
            cache = ours.new_cache(3, 9)
            pieces = [ours(ids[:, :4], cache=cache), ours(ids[:, 4:], cache=cache)]
            assert difference(torch.cat(pieces, dim=1), full, mask) < 1e-4


def test_greedy_tokens_depend_on_nothing_but_the_row(pair):
    ours, theirs, by_row = pair
    single = [generate(ours, torch.tensor([row]), max_new_tokens=5)[0] for row in PROMPTS]
    assert generate(ours, *left_pad(PROMPTS, 0, "cpu"), max_new_tokens=5) == single
    assert generate(ours, *left_pad(PROMPTS[::-1], 0, "cpu"), max_new_tokens=5) == single[::-1]
    if by_row:
        return
    out = theirs.generate(
        torch.tensor(PROMPTS[1:2]),
        max_new_tokens=5,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert out[0, len(PROMPTS[1]) :].tolist() == single[1]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("family", MODEL_TYPES)
def test_golden_logits(family, side, device):
    """The same check against stored tensors (tests/make_golden.py wrote them), so that parity
    runs without transformers.
    """
    ours = load_model(str(GOLDEN / family), device=device)
    golden = load_file(str(GOLDEN / family / "expected.safetensors"))
    ids, mask = golden[f"{side}.ids"], golden[f"{side}.mask"]
    logits = ours(ids.to(device), mask.to(device)).cpu()
    assert difference(logits, golden[f"{side}.logits"], mask) < 1e-4
    cache = ours.new_cache(*ids.shape)
    steps = [
        ours(ids[:, t : t + 1].to(device), mask[:, : t + 1].to(device), cache=cache)
        for t in range(ids.shape[1])
    ]
    assert difference(torch.cat(steps, dim=1).cpu(), golden[f"{side}.logits"], mask) < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("side", ["plain", "left"])
@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_is_as_close_as_the_reference(tmp_path, family, side, dtype):
    """Two correct half-precision implementations differ by rounding: ours may be no further from
    float32 than theirs is.
    """
    folder = write_checkpoint(tmp_path, family, dtype=dtype)
    ids, mask = batch(side)
    exact = load_model(str(folder), dtype=torch.float32)(ids, mask)
    theirs = reference(folder, dtype)
    with torch.no_grad():
        expected = theirs(ids, attention_mask=mask, **positions_of(theirs, mask)).logits.float()
    ours = load_model(str(folder))(ids, mask)
    assert difference(ours, exact, mask) < 1.3 * difference(expected, exact, mask)
    assert difference(ours, expected, mask) < 0.2
    assert ((ours - expected)[mask.bool()].abs().mean() / expected.std()).item() < 0.03


def test_float16_scores_above_its_range_stay_finite(tmp_path):
    """GPT-J multiplies q and k in float32: the products of published weights leave float16's
    range.
    """
    folder = write_checkpoint(tmp_path, "gptj")
    model = load_model(str(folder))
    for block in model.blocks:
        block.attn.q_proj.weight.mul_(400)
        block.attn.k_proj.weight.mul_(400)
    exact = model(torch.tensor([PROMPTS[1]]))
    model = model.half()
    model.dtype = torch.float16
    found = model(torch.tensor([PROMPTS[1]]))
    assert found.isfinite().all()
    assert difference(found, exact, torch.ones(1, 7)) < 0.2


@pytest.mark.parametrize("family", ["opt", "gptj"])
def test_a_position_the_table_has_not_is_an_error(tmp_path, family):
    model = load_model(str(write_checkpoint(tmp_path, family)))
    model(torch.full((1, 64), 5))
    with pytest.raises(UserError, match="position 64 is past the model's last, 63"):
        model(torch.full((1, 65), 5))
    mask = torch.ones(1, 65)
    mask[0, 0] = 0
    model(torch.full((1, 65), 5), mask)  # 64 real tokens
    with pytest.raises(UserError, match="past the model's last"):
        generate(model, torch.full((1, 60), 5), max_new_tokens=8)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_forward_pass_is_differentiable_for_adapters_alone(tmp_path, family, checkpointing):
    from methods import linear_sites

    from adapters import attach, parameters

    model = load_model(str(write_checkpoint(tmp_path, family)))
    torch.manual_seed(0)
    attach(model, "parallel", size=3, sites=[*linear_sites(model), "attn", "mlp"], init="bert")
    ids, mask = batch("left")
    model.checkpointing = checkpointing
    model(ids, mask)[mask.bool()].logsumexp(-1).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in parameters(model))
    assert all(p.grad is None for name, p in model.named_parameters() if ".adapters." not in name)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_site_is_in_the_table_and_in_the_picture(tmp_path, family):
    from model.sites import Linear, Site

    model = load_model(str(write_checkpoint(tmp_path, family)))
    block = model.blocks[0]
    assert {path for path, module in block.named_modules() if isinstance(module, Site)} == set(
        model.sites.values()
    )
    for site, path in model.sites.items():
        assert block.get_submodule(path).active == ()
        assert f"[{site}]" in model.picture
    assert not any(isinstance(module, torch.nn.Linear) for module in model.modules())
    assert isinstance(model.lm_head, Linear)


def test_config_of_leaves_out_none():
    assert "n_head" not in config_of("bloom", n_head=None)


def test_a_finished_row_takes_no_positions_from_the_others(tmp_path):
    """OPT's table ends at 64: a row of 62 tokens that stops at once must not stop shorter rows
    beside it.
    """
    model = load_model(str(write_checkpoint(tmp_path, "opt")))
    long = torch.randint(3, 61, (62,), generator=torch.Generator().manual_seed(4)).tolist()
    stop = generate(model, torch.tensor([long]), max_new_tokens=1)[0]
    rows = [long, *PROMPTS]
    single = [
        generate(
            model, torch.tensor([row]), max_new_tokens=10 if row is not long else 2, stop_ids=stop
        )[0]
        for row in rows
    ]
    assert generate(model, *left_pad(rows, 0, "cpu"), max_new_tokens=10, stop_ids=stop) == single


def test_bloom_takes_positions_of_all_keys(tmp_path):
    model = load_model(str(write_checkpoint(tmp_path, "bloom")))
    ids, cache = torch.tensor([PROMPTS[1]]), model.new_cache(1, 7)
    model(ids[:, :6], cache=cache)
    with pytest.raises(UserError, match="positions of all 7 tokens"):
        model(ids[:, 6:], positions=torch.tensor([[6]]), cache=cache)
    cache.filled = 6
    assert (
        difference(
            model(ids[:, 6:], positions=torch.arange(7)[None], cache=cache),
            model(ids)[:, 6:],
            torch.ones(1, 1),
        )
        < 1e-4
    )

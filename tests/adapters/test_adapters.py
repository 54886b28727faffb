"""What every adapter promises, in every family: where it sits, that it starts where it says,
trains, switches, and leaves the base alone.
"""

from dataclasses import fields

import pytest
import torch
from conftest import write_checkpoint
from methods import ALL, IDS, IN_TURN, attach_small, randomise

from adapters import attach, named_parameters, parameters, use
from adapters.attach import adapters_named
from adapters.base import Adapter
from adapters.config import METHODS, PLACEMENT, presets
from model import UserError, load_model

MASK = torch.ones_like(IDS)
MASK[1, :2] = 0  # one row is padded on the left


def loss_of(model) -> torch.Tensor:
    return model(IDS, MASK)[MASK.bool()].square().mean()


@pytest.mark.parametrize("method", ALL)
def test_training_starts_where_it_says_and_off_restores_the_base_to_the_bit(any_tiny, method):
    base = any_tiny(IDS, MASK)
    attach_small(any_tiny, method)
    promised = all(
        adapter.starts_at_base for adapter in adapters_named(any_tiny, "default").values()
    )
    assert torch.equal(any_tiny(IDS, MASK), base) == promised
    randomise(any_tiny)
    assert not torch.allclose(any_tiny(IDS, MASK), base, atol=1e-3)
    use(any_tiny, [])
    assert torch.equal(any_tiny(IDS, MASK), base)
    use(any_tiny, ["default"])
    assert not torch.allclose(any_tiny(IDS, MASK), base, atol=1e-3)


@pytest.mark.parametrize("method", ALL)
def test_every_parameter_gets_a_gradient_also_after_a_pass_without_and_the_same_under_checkpointing(
    any_tiny, method
):
    attach_small(any_tiny, method)
    randomise(any_tiny)
    gradients = []
    for checkpointing in (False, True):
        any_tiny.checkpointing = checkpointing
        with torch.no_grad():
            any_tiny(IDS, MASK)
        any_tiny.zero_grad()
        loss_of(any_tiny).backward()
        gradients.append(
            {name: parameter.grad.clone() for name, parameter in named_parameters(any_tiny).items()}
        )
    for name, parameter in named_parameters(any_tiny).items():
        assert parameter.grad.abs().max() > 0, name
        assert parameter.dtype == torch.float32
        torch.testing.assert_close(gradients[1][name], gradients[0][name], rtol=1e-5, atol=1e-7)
    trained_ones = {id(parameter) for parameter in parameters(any_tiny)}
    for name, parameter in any_tiny.named_parameters():
        assert id(parameter) in trained_ones or parameter.grad is None, name


@pytest.mark.parametrize(("any_family", "method"), IN_TURN)
def test_training_lowers_the_loss_and_leaves_every_base_weight_as_it_was(any_tiny, method):
    before = {name: parameter.clone() for name, parameter in any_tiny.named_parameters()}
    attach_small(any_tiny, method)
    frozen = {
        name: parameter.clone()
        for name, parameter in any_tiny.named_parameters()
        if not parameter.requires_grad
    }
    optimizer = torch.optim.AdamW(parameters(any_tiny), lr=5e-3)
    any_tiny.train()
    losses = []
    for _ in range(5):
        loss = torch.nn.functional.cross_entropy(
            any_tiny(IDS, MASK)[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()
        )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    after = dict(any_tiny.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in frozen.items())
    assert before.keys() <= frozen.keys()


HALF = ("parallel", "lora", "prefix", "dora", "hira", "ln-tuning", "token rows", "invertible")


@pytest.mark.parametrize(
    ("family", "dtype", "method"),
    [
        *((family, torch.bfloat16, method) for family, method in IN_TURN),
        *(("llama", torch.float16, method) for method in HALF),
    ],
)
def test_half_precision(tmp_path, family, method, dtype):
    """Float32 masters, finite gradients, and logits that differ from float32 no more than the
    base's own do.
    """
    errors = []
    folder = write_checkpoint(tmp_path / "any", family)
    models = [load_model(str(folder), dtype=one) for one in (torch.float32, dtype)]
    for with_adapter in (False, True):
        if with_adapter:
            for model in models:
                torch.manual_seed(0)
                attach_small(model, method)
                randomise(model, 0.05)
            state = {
                name: p.data for name, p in models[0].named_parameters() if ".adapters." in name
            }
            for name, parameter in models[1].named_parameters():
                if (
                    name in state
                    # PiSSA and full copies start at the rounded weights: take those of the float32
                    # model
                ):
                    parameter.data = state[name].clone()
        true, half = (model(IDS, MASK)[MASK.bool()].float() for model in models)
        errors.append(((half - true).abs().mean() / true.std()).item())
    assert errors[1] < 4 * errors[0] + 0.01
    loss_of(models[1]).backward()
    for name, parameter in named_parameters(models[1]).items():
        assert parameter.dtype == torch.float32
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("method", ["lora", "dora", "pissa", "adalora", "vera", "parallel"])
def test_dropout_only_while_training(tiny, method):
    attach_small(tiny, method, dropout=0.5)
    randomise(tiny)
    assert torch.equal(tiny(IDS), tiny(IDS))
    tiny.train()
    assert not torch.equal(tiny(IDS), tiny(IDS))


def test_adapters_attached_in_training_drop_out_too(tiny):
    tiny.train()
    attach(tiny, "lora", dropout=0.5)
    randomise(tiny)
    assert not torch.equal(tiny(IDS), tiny(IDS))


@pytest.mark.parametrize(("any_family", "method"), IN_TURN)
def test_cached_steps_equal_the_full_pass(any_tiny, method):
    """Prompts and prefixes come once, their positions count in every step."""
    attach_small(any_tiny, method)
    randomise(any_tiny)
    whole = any_tiny(IDS, MASK, prompts=MASK[:, :4].sum(dim=1))
    cache = any_tiny.new_cache(2, 7)
    parts = [any_tiny(IDS[:, :4], MASK[:, :4], cache=cache)]
    parts += [any_tiny(IDS[:, i : i + 1], MASK[:, : i + 1], cache=cache) for i in range(4, 7)]
    torch.testing.assert_close(
        torch.cat(parts, dim=1)[MASK.bool()], whole[MASK.bool()], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(("any_family", "method"), IN_TURN)
def test_a_row_does_not_depend_on_its_neighbours_or_its_padding(any_tiny, method):
    attach_small(any_tiny, method)
    randomise(any_tiny)
    alone = any_tiny(IDS[1:, 2:])
    padded = any_tiny(IDS, MASK)[1:, 2:]
    torch.testing.assert_close(padded, alone, rtol=1e-4, atol=2e-4)


def test_positions_given_are_those_of_the_real_tokens(any_tiny):
    """Given positions count from behind prompts and prefixes, as those counted from the mask do."""
    attach(any_tiny, "prompt", name="soft", length=3)
    attach(any_tiny, "prefix", name="kv_pairs", length=2)
    given = torch.arange(7).expand(2, -1)
    torch.testing.assert_close(any_tiny(IDS, positions=given), any_tiny(IDS))
    cache = any_tiny.new_cache(2, 7)
    any_tiny(IDS[:, :5], positions=given[:, :5], cache=cache)
    last = any_tiny(
        IDS[:, 5:], positions=given if any_tiny.family == "bloom" else given[:, 5:], cache=cache
    )
    torch.testing.assert_close(last, any_tiny(IDS)[:, 5:], rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match=r"the positions of .* 7 tokens .*; 2 are given"):
        any_tiny(IDS, positions=given[:, :2])


def test_no_option_of_a_method_hides_behind_a_word_of_placement():
    for kind, method in METHODS.items():
        assert not {field.name for field in fields(method.Options)} & set(PLACEMENT), kind
        assert issubclass(method, Adapter)


def test_every_method_has_a_preset_or_says_why():
    used = {table.get("kind") for table in presets().values()}
    assert set(METHODS) - used == {"full", "token_rows"}  # they need to be told of what

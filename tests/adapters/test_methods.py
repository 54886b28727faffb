"""Each method against its formula, written out, or against what it must come to in a case that
can be known.
"""

import pytest
import torch
from conftest import write_checkpoint
from methods import IDS, attach_small, randomise

from adapters import attach, parameters, use
from adapters.attach import adapters_named
from adapters.config import resolve
from model import load_model


@pytest.fixture
def q(tiny):
    return tiny.blocks[0].self_attn.q_proj


X = torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(5))


def test_series_reads_the_output_and_parallel_the_input(tiny):
    x, y = torch.randn(2, 4, 32), torch.randn(2, 4, 32)
    for preset, read in (("series", y), ("parallel", x)):
        attach(tiny, preset, name=preset, size=5, scale=0.7, act="relu")
        use(tiny, [preset])
        randomise(tiny)
        site = tiny.blocks[1].attn_site
        adapter = site.adapters[preset]
        expected = y + 0.7 * torch.relu(read @ adapter.adapter_down.T) @ adapter.adapter_up.T
        torch.testing.assert_close(site(y, x), expected)
    attach(tiny, "parallel", name="inside", size=5, writes="input", sites=["up_proj"])
    use(tiny, ["inside"])
    randomise(tiny)
    up, adapter = tiny.blocks[0].mlp.up_proj, tiny.blocks[0].mlp.up_proj.adapters["inside"]
    expected = (x + torch.tanh(x @ adapter.adapter_down.T) @ adapter.adapter_up.T) @ up.weight.T
    torch.testing.assert_close(up(x), expected)


def test_a_learned_scale_and_a_gate(tiny):
    attach(tiny, "learned-parallel", name="learned", size=5)
    randomise(tiny)
    site, y = tiny.blocks[0].mlp_site, torch.randn(2, 4, 32)
    adapter = site.adapters["learned"]
    inner = torch.relu(X @ adapter.adapter_down.T) @ adapter.adapter_up.T
    assert adapter.adapter_scaling.item() != 1
    torch.testing.assert_close(site(y, X), y + adapter.adapter_scaling * inner)
    attach(tiny, "parallel", name="gated", size=5, gate=True, scale=2.0)
    use(tiny, ["gated"])
    adapter = site.adapters["gated"]
    randomise(tiny)
    gate = torch.sigmoid(X @ adapter.adapter_gate.T)
    assert gate.shape == (2, 4, 1)
    torch.testing.assert_close(
        site(y, X), y + 2 * gate * (torch.tanh(X @ adapter.adapter_down.T) @ adapter.adapter_up.T)
    )


def test_lora_rslora_bias_and_gate(tiny, q):
    for changes, scale in (
        ({}, 6 / 4),
        ({"rslora": True}, 6 / 2),
        ({"bias": True}, 6 / 4),
        ({"gate": True}, 6 / 4),
    ):
        name = "_".join(["lora", *changes])
        attach(tiny, "lora", name=name, r=4, alpha=6, dropout=0.0, **changes)
        use(tiny, [name])
        randomise(tiny)
        adapter = q.adapters[name]
        delta = X @ adapter.lora_A.T @ adapter.lora_B.T + (
            adapter.lora_B_bias if "bias" in changes else 0
        )
        gate = torch.sigmoid(X @ adapter.lora_gate.T) if "gate" in changes else 1
        torch.testing.assert_close(q(X), X @ q.weight.T + gate * scale * delta)


def test_lora_on_the_embedding_leaves_a_tied_head(tmp_path):
    model = load_model(str(write_checkpoint(tmp_path, tie_word_embeddings=True)))
    attach(model, resolve(kind="lora", sites=["embed"], r=3, alpha=6))
    randomise(model)
    site = model.input_embedding
    adapter = site.adapters["default"]
    torch.testing.assert_close(
        site(IDS),
        site.weight[IDS] + 2 * (adapter.lora_embedding_B @ adapter.lora_embedding_A).T[IDS],
    )
    hidden = torch.randn(1, 2, 32)
    torch.testing.assert_close(model.logits(hidden), hidden @ site.weight.T)


def test_vera_shares_its_matrices(tiny):
    attach(tiny, "vera", r=6, sites=["q", "down"], seed=3)
    randomise(tiny)
    adapters = list(adapters_named(tiny, "default").values())
    assert len({id(adapter.shared) for adapter in adapters}) == 1
    assert adapters[0].shared.A.shape == (6, 48)
    assert adapters[0].shared.B.shape == (32, 6)
    assert sum(p.numel() for p in parameters(tiny)) == 6 * (6 + 32)
    down, x = tiny.blocks[0].mlp.down_proj, torch.randn(2, 3, 48)
    one = down.adapters["default"]
    expected = (
        x
        @ (
            down.weight
            + torch.diag(one.vera_lambda_b)
            @ one.shared.B
            @ torch.diag(one.vera_lambda_d)
            @ one.shared.A
        ).T
    )
    torch.testing.assert_close(down(x), expected)


def test_ia3(tmp_path):
    model = load_model(str(write_checkpoint(tmp_path, attention_bias=True)))
    attach(model, "ia3")
    randomise(model)
    k, down, x = (
        model.blocks[0].self_attn.k_proj,
        model.blocks[0].mlp.down_proj,
        torch.randn(2, 3, 48),
    )
    torch.testing.assert_close(k(X), k.adapters["default"].ia3_l[:, 0] * (X @ k.weight.T + k.bias))
    torch.testing.assert_close(down(x), (down.adapters["default"].ia3_l * x) @ down.weight.T)


def test_ln_tuning_and_bitfit(any_tiny):
    attach(any_tiny, "ln-tuning", name="norms")
    randomise(any_tiny)
    norm = any_tiny.blocks[0].get_submodule(
        any_tiny.sites.get("attn_norm", any_tiny.sites.get("norm"))
    )
    own = norm.adapters["norms"]
    assert own.weight is not norm.weight
    torch.testing.assert_close(norm(X), norm.compute(X, own.weight, own.bias))
    attach(any_tiny, "bitfit", name="biases")
    use(any_tiny, ["biases"])
    randomise(any_tiny)
    up = any_tiny.blocks[0].get_submodule(any_tiny.sites["up"])
    torch.testing.assert_close(up(X), X @ up.weight.T + up.adapters["biases"].bias)


@pytest.mark.parametrize("tied", [True, False])
def test_rows_of_tokens(tmp_path, tied):
    model = load_model(str(write_checkpoint(tmp_path, tie_word_embeddings=tied)))
    base, table = model(IDS), model.input_embedding.weight.clone()
    attach(
        model,
        resolve(kind="token_rows", sites=["embed", "head"] if tied else ["embed"], ids=[54, 9]),
    )
    assert len(parameters(model)) == 1
    randomise(model)
    rows = parameters(model)[0]
    table[54], table[9] = rows[0], rows[1]
    x = model.input_embedding(IDS)
    torch.testing.assert_close(x, table[IDS])
    hidden = torch.randn(2, 3, 32)
    torch.testing.assert_close(
        model.logits(hidden), hidden @ (table if tied else model.lm_head.weight).T
    )
    assert not torch.allclose(model(IDS), base, atol=1e-2)


def test_a_full_copy_of_a_tied_head_leaves_the_embedding(tmp_path):
    model = load_model(str(write_checkpoint(tmp_path, tie_word_embeddings=True)))
    attach(model, resolve(kind="full", sites=["head"]))
    randomise(model)
    assert torch.equal(model.input_embedding(IDS), model.input_embedding.weight[IDS])
    hidden = torch.randn(1, 2, 32)
    torch.testing.assert_close(
        model.logits(hidden), hidden @ model.lm_head.adapters["default"].weight.T
    )


def test_fusion_attends_to_what_its_members_add(tiny):
    attach(tiny, "series", name="one", size=3)
    attach(tiny, "parallel", name="two", size=4)
    randomise(tiny)
    attach(tiny, "fusion", name="both", of=["one", "two"])
    assert all(
        "both" in name
        for name in [path for path in tiny.state_dict() if path.endswith("fusion_key")]
    )
    assert (
        len(parameters(tiny)) == 2 * 3 * 3
    )  # its own matrices at six sites; the members are frozen
    fused = tiny.blocks[0].mlp_site.adapters["both"]
    torch.nn.init.normal_(fused.query)
    torch.nn.init.normal_(fused.fusion_key)
    torch.nn.init.normal_(fused.value)
    site, y = tiny.blocks[0].mlp_site, torch.randn(2, 4, 32)
    one, two = (site.adapters[name].after(y, X, site) - y for name in ("one", "two"))
    scores = torch.stack(
        [((y @ fused.query.T) * (d @ fused.fusion_key.T)).sum(-1) for d in (one, two)], dim=-1
    ).softmax(-1)
    torch.testing.assert_close(
        site(y, X),
        y + (scores[..., :1] * one + scores[..., 1:] * two) @ fused.value.T,
        rtol=1e-4,
        atol=1e-4,
    )


def test_an_adapter_at_the_mlp_reads_what_the_mlp_reads(any_tiny):
    """The normalised input, not the block's: also in GPT-J, whose sub-layers share one norm."""
    if any_tiny.family == "opt":
        pytest.skip("its block has no module for the MLP")
    attach_small(any_tiny, "parallel")
    seen = []
    for block in any_tiny.blocks:
        block.mlp.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        block.mlp_site.register_forward_pre_hook(lambda _, given: seen.append(given[1]))
    any_tiny(IDS)
    assert len(seen) == 2 * len(any_tiny.blocks)
    for read, adapted in zip(seen[::2], seen[1::2], strict=True):
        assert torch.equal(read, adapted)

"""Each method against its formula, written out, or against what it must come to in a case that
can be known.
"""

import math

import pytest
import torch
from conftest import DEVICES, write_checkpoint
from methods import IDS, attach_small, randomise
from torch.utils._python_dispatch import TorchDispatchMode

from adapters import attach, parameters, remove, use
from adapters.attach import adapters_named, after_step, penalty
from adapters.config import resolve
from adapters.methods.adalora import AdaLoRA
from adapters.methods.dora import DoRA
from adapters.methods.pissa import principal
from model import load_model, load_tokenizer


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


def test_dora_turns_rows_and_sets_their_length(tmp_path):
    model = load_model(str(write_checkpoint(tmp_path, attention_bias=True)))
    q = model.blocks[0].self_attn.q_proj
    attach(model, "dora", r=4, alpha=6, dropout=0.0)
    torch.testing.assert_close(
        q.adapters["default"].lora_magnitude_vector.detach(), q.weight.norm(dim=1)
    )
    randomise(model)
    adapter = q.adapters["default"]
    V = q.weight + 1.5 * adapter.lora_B @ adapter.lora_A
    expected = (
        X @ (adapter.lora_magnitude_vector[:, None] * V / V.norm(dim=1, keepdim=True)).T + q.bias
    )
    torch.testing.assert_close(q(X), expected)
    constant = (V / V.norm(dim=1, keepdim=True).detach()) * adapter.lora_magnitude_vector[
        :, None
    ]  # section 4.3: the norm has no gradient
    wanted = torch.autograd.grad(
        (X @ constant.T + q.bias).square().sum(), [adapter.lora_A, adapter.lora_magnitude_vector]
    )
    given = torch.autograd.grad(
        q(X).square().sum(), [adapter.lora_A, adapter.lora_magnitude_vector]
    )
    for one, other in zip(given, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_dora_keeps_its_norm_until_a_weight_changes(tmp_path, monkeypatch, quantize):
    """Reading the whole weight again for each token took 27 ms of an H100."""
    model = load_model(str(write_checkpoint(tmp_path / "tiny")), quantize=quantize)
    q = model.blocks[0].self_attn.q_proj
    attach(model, "dora", r=4, sites=["q"], layers=[0])
    adapter, made, norm = q.adapters["default"], [], DoRA.norm
    monkeypatch.setattr(DoRA, "norm", lambda self, w: made.append(1) or norm(self, w))

    def counted() -> int:
        before = len(made)
        ratio = adapter.lora_magnitude_vector / norm(adapter, q.weight)
        plain = q(X) - (q(X) - q(X))  # two more passes
        expected = ratio * (
            use_base(q, X) + adapter.scale * X @ adapter.lora_A.T @ adapter.lora_B.T
        )
        torch.testing.assert_close(plain, expected, rtol=1e-4, atol=1e-4)
        return len(made) - before

    assert (counted(), counted()) == (1, 0)
    with torch.no_grad():
        adapter.lora_B.add_(1.0)
    assert (counted(), counted()) == (1, 0)
    adapter.lora_A.data = adapter.lora_A.data + 1.0
    assert (counted(), counted()) == (1, 0)
    if quantize is None:
        q.weight.data = 2 * q.weight.data
    else:
        q.scale *= 2
    assert (counted(), counted()) == (1, 0)
    with torch.inference_mode():
        q(X)
    with torch.no_grad():
        adapter.lora_B.mul_(2.0)
    with torch.inference_mode():
        q(X)
    q(X).sum().backward()  # what inference mode made is not used where there are gradients
    assert adapter.lora_A.grad is not None


def use_base(q, x):
    """What the site computes without its adapters."""
    active, q.active = q.active, ()
    y = q(x)
    q.active = active
    return y


def test_pissa_starts_at_the_principal_singular_values(tiny, q):
    attach(tiny, "pissa", r=4, alpha=6)
    adapter = q.adapters["default"]
    singular = torch.linalg.svdvals(q.weight)
    start = 1.5 * adapter.lora_B @ adapter.lora_A
    torch.testing.assert_close(torch.linalg.svdvals(start)[:4], singular[:4], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        torch.linalg.svdvals(q.weight - start)[0], singular[4], rtol=1e-4, atol=1e-4
    )
    randomise(tiny)
    torch.testing.assert_close(
        q(X),
        X @ (q.weight - start.detach() + 1.5 * adapter.lora_B @ adapter.lora_A).T,
        rtol=1e-4,
        atol=1e-4,
    )
    A, B = adapter.factors()
    assert A.shape == (8, 32)
    torch.testing.assert_close(q(X), X @ (q.weight + B @ A).T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_pissa_of_a_large_weight_is_found_by_a_randomised_method(device):
    weight = torch.randn(1100, 1050) + 30 * torch.randn(1100, 3) @ torch.randn(3, 1050) / math.sqrt(
        1000
    )
    state = torch.get_rng_state()
    of_device = torch.cuda.get_rng_state() if device == "cuda" else state
    B, A = principal(weight.to(device), 3)
    assert torch.equal(torch.get_rng_state(), state)
    assert device == "cpu" or torch.equal(torch.cuda.get_rng_state(), of_device)
    torch.testing.assert_close(
        torch.linalg.svdvals(B @ A)[:3], torch.linalg.svdvals(weight)[:3], rtol=1e-3, atol=1e-2
    )


def test_adalora(tiny, q):
    attach(tiny, "adalora", init_r=4, target_r=2, alpha=6, orthogonality=0.3, sites=["q", "v"])
    randomise(tiny)
    adapter = q.adapters["default"]
    scale = 6 / (4 + 1e-5)
    torch.testing.assert_close(
        q(X),
        X
        @ (q.weight + scale * adapter.lora_B @ torch.diag(adapter.lora_E[:, 0]) @ adapter.lora_A).T,
    )
    one = torch.eye(4)
    sums = [
        (A @ A.T - one).norm() + (B.T @ B - one).norm()
        for A, B in ((a.lora_A, a.lora_B) for a in adapters_named(tiny, "default").values())
    ]
    torch.testing.assert_close(penalty(tiny), 0.3 * sum(sums) / len(sums))


def test_adalora_cuts_to_its_budget_what_matters_least(tiny):
    attach(tiny, "adalora", init_r=4, target_r=2, sites=["q", "v"], warmup=0.1, final=0.3, every=5)
    adapters = list(adapters_named(tiny, "default").values())
    optimizer = torch.optim.AdamW(parameters(tiny), lr=1e-2)
    kept = []
    for step in range(1, 51):
        (tiny(IDS).square().mean()).backward()
        if step < 35:
            for adapter in adapters:
                adapter.lora_E.grad[1] *= 1e-4  # this triplet hardly matters anywhere
                adapter.lora_A.grad[1] *= 1e-4
                adapter.lora_B.grad[:, 1] *= 1e-4
        optimizer.step()
        after_step(tiny, step, 50)
        optimizer.zero_grad()
        kept.append(sum(int(adapter.kept.sum()) for adapter in adapters))
    assert kept[:5] == [24] * 5  # before the warm-up ends all are there
    assert kept == sorted(kept, reverse=True)
    assert kept[34:] == [12] * 16  # six sites of two on average, from step 35 on
    assert all(not adapter.kept[1] for adapter in adapters)
    assert all((adapter.lora_E[~adapter.kept] == 0).all() for adapter in adapters)
    assert (
        len({int(adapter.kept.sum()) for adapter in adapters}) > 1
    )  # not the same rank everywhere


@pytest.mark.parametrize("total", [1, 2, 3, 7])
def test_adalora_comes_to_its_budget_in_short_runs_and_by_part(tiny, total):
    table = {
        "x": {"preset": "adalora", "sites": ["q"], "init_r": 4, "target_r": 2},
        "y": {"preset": "adalora", "sites": ["v"], "init_r": 6, "target_r": 5},
    }
    attach(tiny, resolve(**table))
    for step in range(1, total + 1):
        tiny(IDS).square().mean().backward()
        after_step(tiny, step, total)
    left = {
        part: sum(
            int(one.kept.sum())
            for one in adapters_named(tiny, "default").values()
            if one.part == part
        )
        for part in table
    }
    assert left == {"x": 3 * 2, "y": 3 * 5}


class Counted(TorchDispatchMode):
    """Counts the operations within its block."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.count += 1
        return op(*args, **(kwargs or {}))


def test_adalora_launches_as_much_for_many_sites_as_for_few(tiny):
    """A GPU waits for launches: 672 tensors one by one took 4,032 of them to be observed."""
    counts = []
    for sites in (["q"], ["q", "o"]):
        attach(tiny, "adalora", "a", init_r=4, target_r=2, sites=sites)
        tiny(IDS).square().mean().backward()
        with Counted() as counted:
            AdaLoRA.observe(list(adapters_named(tiny, "a").values()))
        counts.append(counted.count)
        remove(tiny, "a")
    assert counts[0] == counts[1] < 20


def test_adalora_sensitivity_is_smoothed(tiny):
    attach(tiny, "adalora", init_r=2, target_r=1, sites=["q"], layers=[0], beta1=0.8, beta2=0.6)
    adapter = next(iter(adapters_named(tiny, "default").values()))
    mean = spread = torch.zeros(2, 1)
    for factor in (1.0, -3.0, 2.0):
        adapter.lora_E.data.fill_(0.5)
        adapter.lora_E.grad = torch.tensor([[factor], [2 * factor]])
        adapter.lora_A.grad = adapter.lora_B.grad = None
        adapter.observe([adapter])
        now = (0.5 * adapter.lora_E.grad).abs()
        mean = 0.8 * mean + 0.2 * now
        spread = 0.6 * spread + 0.4 * (now - mean).abs()
    torch.testing.assert_close(adapter.importance([adapter])[0], (mean * spread)[:, 0])


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


def test_a_prefix_of_a_texts_own_keys_and_values_is_that_text(any_tiny):
    """Whatever the family does with positions: keys of real tokens, put in front as a prefix, act
    as these tokens did.
    """
    front, rest = IDS[:1, :3], IDS[:1, 3:]
    cache = any_tiny.new_cache(1, 3)
    any_tiny(front, cache=cache)
    whole = any_tiny(IDS[:1])[:, 3:]
    attach(any_tiny, "prefix", length=3, scale=10.0)
    for layer, adapter in enumerate(adapters_named(any_tiny, "default").values()):
        keys, values = (
            kept[layer][0].transpose(0, 1).flatten(1) for kept in (cache.keys, cache.values)
        )  # [3, K * D]
        adapter.prefix.data = torch.cat((keys, values), dim=1) / 10
    torch.testing.assert_close(any_tiny(rest), whole, rtol=1e-4, atol=1e-4)
    padded = torch.cat((torch.zeros(1, 2, dtype=torch.long), rest), dim=1)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1]])
    torch.testing.assert_close(any_tiny(padded, mask)[:, 2:], whole, rtol=1e-4, atol=1e-4)


def test_a_prefix_in_some_layers_only(any_tiny):
    """Layers without a prefix do not see the columns made for those with one."""
    base = any_tiny(IDS)
    attach(any_tiny, "prefix", length=3, layers=[1], init=1.0)
    changed = any_tiny(IDS)
    assert not torch.allclose(changed, base, atol=1e-2)
    cache = any_tiny.new_cache(2, 7)
    steps = [any_tiny(IDS[:, :5], cache=cache), any_tiny(IDS[:, 5:], cache=cache)]
    torch.testing.assert_close(torch.cat(steps, dim=1), changed, rtol=1e-4, atol=1e-4)


def test_a_prefix_projection_is_one_table_and_a_part_of_an_mlp_for_each_layer(tiny):
    attach(tiny, "prefix-projection", length=4, projection=6)
    adapters = list(adapters_named(tiny, "default").values())
    assert len({id(adapter.table) for adapter in adapters}) == 1
    assert sum(p.numel() for p in parameters(tiny)) == 4 * 6 + 3 * 2 * 16 * 6
    randomise(tiny)
    torch.testing.assert_close(
        adapters[1].pairs(), torch.tanh(adapters[0].table.weight) @ adapters[1].project.T
    )


@pytest.mark.parametrize("preset", ["prompt", "p-tuning", "p-tuning-lstm"])
def test_a_prompt_of_real_words_is_these_words(any_tiny, preset):
    """Embeddings of real tokens in front act as these tokens, whatever the family does with
    positions and norms.
    """
    whole = any_tiny(IDS)[:, 3:]
    attach(any_tiny, preset, length=3)
    for row in range(2):
        any_tiny.input_embedding.adapters["default"].embeddings = lambda row=row: (
            any_tiny.input_embedding.weight[IDS[row, :3]]
        )
        torch.testing.assert_close(
            any_tiny(IDS[row : row + 1, 3:]), whole[row : row + 1], rtol=1e-4, atol=1e-4
        )


def test_where_prompts_start():
    model = load_model("pocket-llama", dtype=torch.float32)
    attach(model, "prompt", length=3, scale=2.0)
    prompt = model.input_embedding.adapters["default"].embeddings()
    assert all(
        (model.input_embedding.weight == row).all(dim=1).any() for row in prompt
    )  # words of the vocabulary
    attach(model, "prompt", name="text", length=5, text="Tom has")
    ids = load_tokenizer("pocket-llama").encode("Tom has", bos=False)
    torch.testing.assert_close(
        model.input_embedding.adapters["text"].prompt,
        model.input_embedding.weight[torch.tensor((ids * 5)[:5])],
    )


def test_invertible_is_undone(any_tiny):
    attach(any_tiny, "invertible")
    randomise(any_tiny)
    adapter = any_tiny.input_embedding.adapters["default"]
    x = torch.randn(2, 3, 32)
    changed = adapter.embed(x, first=True)
    assert not torch.allclose(changed, x, atol=0.1)
    torch.testing.assert_close(adapter.unembed(changed), x, rtol=1e-4, atol=1e-4)
    one, two = x.chunk(2, dim=-1)
    y = one + torch.relu(two @ adapter.F_down.T) @ adapter.F_up.T
    torch.testing.assert_close(
        changed, torch.cat((y, two + torch.relu(y @ adapter.G_down.T) @ adapter.G_up.T), dim=-1)
    )


def test_several_input_adapters_are_undone_in_the_other_order(tiny):
    attach(tiny, "invertible", name="one")
    attach(tiny, "invertible", name="two", reduction=4)
    randomise(tiny)
    one, two = (tiny.input_embedding.adapters[name] for name in ("one", "two"))
    h = torch.randn(1, 2, 32)
    expected = tiny.lm_head(one.unembed(two.unembed(h)))
    torch.testing.assert_close(tiny.logits(h), expected)
    attach(
        tiny,
        resolve(one={"preset": "invertible"}, two={"preset": "invertible", "reduction": 4.0}),
        name="both",
    )  # the same as a mixture
    for part, alone in zip(
        tiny.input_embedding.adapters["both"].parts.values(), (one, two), strict=True
    ):
        part.load_state_dict(alone.state_dict())
    use(tiny, ["both"])
    torch.testing.assert_close(tiny.logits(h), expected)


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

"""Every option of every adapter method is obeyed: a row sets it and compares with the formula.

The options are read from the methods' Options, so that a new one without a row fails.
"""

import math
from dataclasses import fields

import pytest
import torch
import torch.nn.functional as F
from methods import randomise
from obeyed import Rows

from adapters import attach, begin, named_parameters
from adapters.base import Adapter
from adapters.config import METHODS, Part, resolve
from adapters.in_use import rates
from model import load_model

ROWS = Rows()
row = ROWS.row
Q = "model.layers.0.self_attn.q_proj"
X = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(7))


def options_of_methods() -> list[str]:
    found = []
    for kind, method in METHODS.items():
        lora = {one.name for one in fields(METHODS["lora"].Options)}
        lora = lora if issubclass(method, METHODS["lora"]) else set()
        found += [
            f"{'lora' if one.name in lora else kind}.{one.name}" for one in fields(method.Options)
        ]
    return list(dict.fromkeys(found)) + [f"part.{one.name}" for one in fields(Part)]


def test_every_option_has_a_row():
    assert set(ROWS) == set(options_of_methods())


class Tiny:
    """A tiny LLaMA and what is attached to it."""

    def __init__(self, folder, name):
        self.folder, self.name = folder, name

    def at(self, kind: str, where: str = Q, sites=("q",), random=True, **options) -> Adapter:
        """The adapter at one site, away from its identity start."""
        self.model = load_model(str(self.folder))
        torch.manual_seed(0)
        attach(self.model, resolve(kind=kind, sites=list(sites), **options))
        if random:
            randomise(self.model)
        self.site = self.model.get_submodule(where)
        return self.site.adapters["default"]

    def adds(self, x=X) -> torch.Tensor:
        """What the adapter adds to the site's output."""
        y = self.site(x)
        return (y - F.linear(x, self.site.weight, self.site.bias)).detach()


def close(ours, theirs) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.fixture
def tiny_llama(folder, request):
    return Tiny(folder, request.node.name)


# ---------------------------------------------------------------- bottleneck
def bottleneck(one, h, act=torch.tanh, scale=1.0):
    return scale * F.linear(act(F.linear(h, one.adapter_down)), one.adapter_up)


@row("bottleneck.reads", "bottleneck.writes")
def sides(tiny):
    y = None
    for reads in ("input", "output"):
        one = tiny.at("bottleneck", size=4, reads=reads)
        y = F.linear(X, tiny.site.weight)
        close(tiny.adds(), bottleneck(one, X if reads == "input" else y))
    one = tiny.at("bottleneck", size=4, reads="input", writes="input")
    close(tiny.site(X), F.linear(X + bottleneck(one, X), tiny.site.weight))


@row("bottleneck.size", "bottleneck.reduction", "lora.r", "adalora.init_r", "vera.r")
def widths(tiny):
    assert tiny.at("bottleneck", size=5).adapter_down.shape == (5, 32)
    assert tiny.at("bottleneck", reduction=4.0).adapter_down.shape == (8, 32)
    for kind in ("lora", "dora", "pissa"):
        one = tiny.at(kind, r=3)
        assert (one.lora_A.shape, one.lora_B.shape) == ((3, 32), (32, 3))
    one = tiny.at("adalora", init_r=5, target_r=2)
    assert (one.lora_A.shape, one.lora_E.shape) == ((5, 32), (5, 1))
    assert tiny.at("vera", r=6).vera_lambda_d.shape == (6,)
    one = tiny.at("lora", r=[2, 3, 4])
    assert [
        tiny.model.get_submodule(Q.replace("0", str(n))).adapters["default"].lora_A.shape[0]
        for n in range(3)
    ] == [2, 3, 4]


@row("bottleneck.act")
def activations(tiny):
    known = {
        "tanh": torch.tanh,
        "relu": F.relu,
        "gelu": F.gelu,
        "silu": F.silu,
        "none": lambda x: x,
    }
    for name, act in known.items():
        one = tiny.at("bottleneck", size=4, reads="input", act=name)
        close(tiny.adds(), bottleneck(one, X, act))


@row("bottleneck.scale", "bottleneck.gate")
def scales(tiny):
    one = tiny.at("bottleneck", size=4, reads="input", scale=4.0)
    close(tiny.adds(), bottleneck(one, X, scale=4.0))
    one = tiny.at("bottleneck", size=4, reads="input", scale="learned")
    close(tiny.adds(), bottleneck(one, X, scale=one.adapter_scaling))
    start = tiny.at("bottleneck", size=4, scale="learned", random=False)
    assert start.adapter_scaling.item() == 1.0
    one = tiny.at("bottleneck", size=4, reads="input", gate=True)
    close(tiny.adds(), bottleneck(one, X, scale=torch.sigmoid(F.linear(X, one.adapter_gate))))


@row("bottleneck.init")
def starts(tiny):
    one = tiny.at("bottleneck", size=64, random=False)
    assert one.adapter_up.eq(0).all()
    assert one.adapter_down.abs().max() <= 1 / math.sqrt(32)
    one = tiny.at("bottleneck", size=64, init="bert", random=False)
    for weight in (one.adapter_up, one.adapter_down):
        assert weight.std().item() == pytest.approx(0.02, rel=0.1)


DROPS = {  # kind -> its options
    "bottleneck": {"reads": "input", "size": 4},
    "lora": {"r": 8},
    "dora": {"r": 4},
    "pissa": {"r": 4},
    "adalora": {"init_r": 4, "target_r": 2},
    "vera": {"r": 8},
    "hira": {"r": 4},
    "miss": {"r": 4},
}


@row(
    "bottleneck.dropout",
    "lora.dropout",
    "adalora.dropout",
    "vera.dropout",
    "hira.dropout",
    "miss.dropout",
)
def dropouts(tiny):
    """With dropout 0.5 in training, an input is either doubled or gone; afterwards it stays."""
    for kind, options in DROPS.items():
        tiny.at(kind, dropout=0.5, **options)
        x = torch.zeros(1, 64, 32)
        x[..., 3] = 1.0  # one input alone
        tiny.model.train()
        dropped = tiny.adds(x)
        tiny.model.eval()
        plain, twice, nothing = tiny.adds(x), tiny.adds(2 * x), tiny.adds(0 * x)
        if kind == "dora":  # the weight's part is not dropped
            base = F.linear(x, tiny.site.weight)
            one = tiny.site.adapters["default"]
            ratio = one.lora_magnitude_vector / one.norm(tiny.site.weight)
            twice = 2 * plain - (ratio - 1) * base
            nothing = (ratio - 1) * base
        gone = (dropped[0] - nothing[0]).abs().amax(-1) < 1e-5
        doubled = (dropped[0] - twice[0]).abs().amax(-1) < 1e-4
        assert (gone | doubled).all(), kind
        assert 16 < gone.sum() < 48, kind
        assert not torch.equal(plain, dropped)


# ---------------------------------------------------------------- LoRA and its relatives
@row("lora.alpha", "lora.rslora", "lora.bias", "lora.gate")
def updates(tiny):
    def update(one):
        return F.linear(F.linear(X, one.lora_A), one.lora_B)

    one = tiny.at("lora", r=4, alpha=5.0)
    close(tiny.adds(), update(one) * 5 / 4)
    one = tiny.at("lora", r=4, alpha=5.0, rslora=True)
    close(tiny.adds(), update(one) * 5 / 2)
    one = tiny.at("lora", r=4, alpha=5.0, bias=True)
    close(tiny.adds(), (update(one) + one.lora_B_bias) * 5 / 4)
    one = tiny.at("lora", r=4, alpha=5.0, gate=True)
    close(tiny.adds(), update(one) * 5 / 4 * torch.sigmoid(F.linear(X, one.lora_gate)))


@row("eva.rho", "eva.rows")
def starts_from_activations(tiny):
    """With rho = 1 all ranks are r; of 3 rows the fourth, in another batch, is not looked at."""
    ids = torch.arange(3, 31).view(4, 7)
    batches = [(part, torch.ones(2, 7, dtype=torch.bool)) for part in ids.split(2)]

    def begun(some, **options):
        tiny.at("eva", r=2, sites=("q", "down"), random=False, **options)
        begin(tiny.model, some)
        return named_parameters(tiny.model)

    ranks = [
        {len(A) for name, A in begun(batches, rho=rho).items() if "A" in name} for rho in (1, 2)
    ]
    assert ranks[0] == {2}
    assert max(ranks[1]) > 2
    three, of_three = (
        begun(batches, rows=3),
        begun([*batches[:1], [part[:1] for part in batches[1]]]),
    )
    assert all(torch.equal(three[name], value) for name, value in of_three.items())
    assert any(not torch.equal(three[name], value) for name, value in begun(batches).items())


@row("lora.b_rate", "part.rate")
def learning_rates(tiny):
    tiny.at("lora", r=2, bias=True, b_rate=16.0, rate=0.5)
    found = {name.rpartition(".")[2]: rate for name, rate in rates(tiny.model).items()}
    assert found == {"lora_A": 0.5, "lora_B": 8.0, "lora_B_bias": 8.0}


def steps_of(tiny, total=40, **options):
    """The ranks of a site that are left after each step, with gradients that differ."""
    options = {"init_r": 6, "target_r": 2, "warmup": 0.1, "final": 0.25, "every": 4} | options
    one = tiny.at("adalora", **options)
    method, everywhere = type(one), []
    for site in tiny.model.modules():
        everywhere += getattr(site, "adapters", {}).values()
    left, generator = [], torch.Generator().manual_seed(1)
    for step in range(1, total + 1):
        for adapter in everywhere:
            for parameter in adapter.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
                adapter.lora_E.data += 0.01
        method.after_step(everywhere, step, total)
        left.append(sum(int((adapter.lora_E != 0).sum()) for adapter in everywhere))
    return left, len(everywhere), one


@row("adalora.target_r", "adalora.warmup", "adalora.final", "adalora.every")
def budget(tiny):
    for changes in ({}, {"target_r": 3}, {"warmup": 0.3}, {"final": 0.5}, {"every": 7}):
        s = {"init_r": 6, "target_r": 2, "warmup": 0.1, "final": 0.25, "every": 4} | changes
        left, sites, _ = steps_of(tiny, **changes)
        start, end = round(40 * s["warmup"]), 40 - round(40 * s["final"])
        for step, ranks in enumerate(left, start=1):
            if step >= end:
                expected = s["target_r"]
            elif step > start and step % s["every"] == 0:
                share = (1 - (step - start) / (end - start)) ** 3
                expected = s["target_r"] + (6 - s["target_r"]) * share
            else:
                expected = 6
            assert ranks == round(sites * expected), (changes, step)


@row("adalora.beta1", "adalora.beta2", "adalora.alpha", "adalora.orthogonality")
def sensitivities(tiny):
    one = tiny.at(
        "adalora", init_r=4, target_r=2, beta1=0.7, beta2=0.4, alpha=9.0, orthogonality=0.3
    )
    product = F.linear(F.linear(X, one.lora_A * one.lora_E), one.lora_B)
    close(tiny.adds(), product * 9 / (4 + 1e-5))
    eye = torch.eye(4)
    apart = (one.lora_A @ one.lora_A.T - eye).norm() + (one.lora_B.T @ one.lora_B - eye).norm()
    close(one.penalties([one])[0], 0.3 * apart[None])
    mean = spread = torch.zeros(4, 1)
    for step in range(3):
        for parameter in one.parameters():
            parameter.grad = torch.full_like(parameter, step + 1.0)
        one.observe([one])
        now = (one.lora_E * (step + 1.0)).abs().detach()
        mean = 0.7 * mean + 0.3 * now
        spread = 0.4 * spread + 0.6 * (now - mean).abs()
    close(one.get_buffer("sensitivity_lora_E"), mean)
    close(one.get_buffer("uncertainty_lora_E"), spread)


@row("vera.d_start", "vera.seed")
def shared_matrices(tiny):
    one = tiny.at("vera", r=4, d_start=0.3, seed=11, random=False)
    assert one.vera_lambda_d.eq(0.3).all()
    generator = torch.Generator().manual_seed(11)
    bound = math.sqrt(6 / 32)
    A = torch.empty(4, 32).uniform_(-bound, bound, generator=generator)
    bound = math.sqrt(6 / 4)
    B = torch.empty(32, 4).uniform_(-bound, bound, generator=generator)
    close(one.shared.A, A)
    close(one.shared.B, B)
    randomise(tiny.model)
    inner = F.linear(X, A) * one.vera_lambda_d
    close(tiny.adds(), F.linear(inner, B) * one.vera_lambda_b)


@row("ia3.scales")
def scaled(tiny):
    one = tiny.at("ia3", scales="input")
    close(tiny.site(X), F.linear(X * one.ia3_l[0], tiny.site.weight))
    one = tiny.at("ia3", scales="output")
    close(tiny.site(X), F.linear(X, tiny.site.weight) * one.ia3_l[:, 0])


# ---------------------------------------------------------------- what changes the weight itself
@row("hira.r", "miss.r")
def whole_weights(tiny):
    one = tiny.at("hira", r=3)
    assert (one.hira_A.shape, one.hira_B.shape) == ((3, 32), (32, 3))
    close(tiny.adds(), F.linear(X, tiny.site.weight * (one.hira_B @ one.hira_A)))
    for r in (4, 5):  # 5 does not divide the input
        one = tiny.at("miss", r=r)
        assert one.miss_block.shape == (r, 32)
        repeated = torch.stack([one.miss_block[column % r] for column in range(32)])
        close(tiny.adds(), X @ repeated)


@row("road.variant", "road.group_size")
def rotated_pairs(tiny):
    for variant, count in (("road_1", 1), ("road_2", 2), ("road_4", 4)):
        for group in (4, 8):
            one = tiny.at("road", variant=variant, group_size=group)
            assert one.road_theta.shape == (16 * count,)
            y, half = F.linear(X, tiny.site.weight), group // 2
            expected = y.clone()
            for i in [i for i in range(32) if i % group < half]:
                j, pair = i + half, i // group * half + i % group
                at = {  # the parameters of the four entries of the matrix of this pair
                    "road_1": (pair,) * 4,
                    "road_2": (i, i, j, j),
                    "road_4": tuple(n + i // group * group for n in (i, i + group, j + group, j)),
                }[variant]
                a, s = one.road_alpha[list(at)], one.road_theta[list(at)]
                expected[..., i] = a[0] * s[0].cos() * y[..., i] - a[1] * s[1].sin() * y[..., j]
                expected[..., j] = a[2] * s[2].sin() * y[..., i] + a[3] * s[3].cos() * y[..., j]
            close(tiny.site(X), expected)


@row("oft.block", "oft.terms")
def rotated_inputs(tiny):
    for block in (4, 8):
        exact = tiny.at("oft", block=block, terms=0, random=False)
        exact.oft_R.data = 0.05 * torch.randn(exact.oft_R.shape)
        assert exact.oft_R.shape == (32 // block, block * (block - 1) // 2)
        R = torch.block_diag(*exact.rotation())
        close(R @ R.T, torch.eye(32))  # orthogonal
        assert R.count_nonzero() == 32 * block
        close(tiny.site(X), F.linear(X @ R, tiny.site.weight))
        series = tiny.at("oft", block=block, terms=12, random=False)
        series.oft_R.data = -exact.oft_R.data
        close(series.rotation(), exact.rotation())
    four = tiny.at("oft", block=4, terms=4, random=False)
    four.oft_R.data.fill_(0.1)
    Q = torch.full((4, 4), 0.1).triu(1)
    Q = Q - Q.T
    close(four.rotation()[0], torch.eye(4) + 2 * Q + 2 * Q @ Q + Q @ Q @ Q)


@row("shira.r", "shira.mask", "shira.seed")
def few_entries(tiny):
    for options in ({"seed": 3}, {"mask": "magnitude"}):
        one = tiny.at("shira", r=2, **options)
        S = torch.zeros(32, 32)
        S[tuple(one.shira_indices.long())] = one.shira_weight.detach()
        assert S.count_nonzero() == 2 * (32 + 32)
        close(tiny.adds(), F.linear(X, S))  # one by one
        many = torch.randn(1, 40, 32)
        close(tiny.adds(many), F.linear(many, S))  # and as a matrix
        left = tiny.site.weight.abs()
        if "mask" in options:
            assert left[S != 0].min() >= left[S == 0].max()
        else:
            places = torch.randperm(1024, generator=torch.Generator().manual_seed(3))[:128]
            assert S.flatten().nonzero()[:, 0].tolist() == sorted(places.tolist())


@row(*(f"loreft.{name}" for name in ("r", "first", "last", "form")))
def tokens_of_the_prompt(tiny):
    h = torch.randn(1, 9, 32, generator=torch.Generator().manual_seed(8))
    places = torch.stack((torch.arange(9), 6 - torch.arange(9)), dim=-1)[None]  # a prompt of 7
    for form in ("loreft", "direft"):
        where = "model.layers.0.block_site"
        one = tiny.at("loreft", where, ("block",), r=3, first=2, last=1, form=form)
        assert (one.reft_R.shape, one.reft_b.shape) == ((3, 32), (3,))
        R = one.rotation()
        inner = F.linear(h, one.reft_W, one.reft_b) - (h @ R.T if form == "loreft" else 0)
        expected = h.clone()
        expected[:, [0, 1, 6]] += (inner @ R)[:, [0, 1, 6]]
        close(tiny.site(h, places), expected)


# ---------------------------------------------------------------- prompts
KV = "model.layers.0.self_attn.kv_site"


@row(*(f"prefix.{name}" for name in ("length", "projection", "scale", "init", "gate")))
def prefixes(tiny):
    def made(**options):
        one = tiny.at("prefix", where=KV, sites=("kv",), random=False, **options)
        return one, one.pairs()

    one, pairs = made(length=7, init=0.3, scale=2.0)
    assert pairs.shape == (7, 2 * 2 * 8)
    close(pairs, 2.0 * one.prefix)
    assert pairs.std().item() == pytest.approx(0.3, rel=0.15)
    one, pairs = made(length=5, projection=3, scale=2.0)
    assert one.table.weight.shape == (5, 3)
    close(pairs, 2.0 * torch.tanh(one.table.weight) @ one.project.T)
    one, pairs = made(length=5, gate=True)
    one.prefix_gate.data.fill_(1.5)
    close(one.pairs(), torch.sigmoid(torch.tensor(1.5)) * one.prefix)


@row(*(f"prompt.{name}" for name in ("length", "init", "text", "scale")))
def prompts(tiny):
    def made(folder=None, **options):
        tiny.folder = folder or tiny.folder
        return tiny.at("prompt", "model.embed_tokens", ("embed",), random=False, **options)

    one = made(length=6, scale=2.0)
    table = tiny.model.input_embedding.weight
    assert one.embeddings().shape == (6, 32)
    for each in one.embeddings():  # words of the vocabulary
        assert (each - table).abs().amax(1).min() < 1e-6
    close(one.embeddings(), 2.0 * one.prompt)
    one = made(length=40, init="random")
    assert one.embeddings().std().item() == pytest.approx(0.02, rel=0.1)
    one = made("pocket-llama", length=3, text="Tom")
    from model import load_tokenizer

    ids = load_tokenizer("pocket-llama").encode("Tom", bos=False)
    close(one.embeddings(), tiny.model.input_embedding.weight[(ids * 3)[:3]].float())


@row(*(f"p_tuning.{name}" for name in ("length", "encoder", "hidden", "depth")))
def p_tunings(tiny):
    def made(**options):
        return tiny.at("p_tuning", "model.embed_tokens", ("embed",), random=False, **options)

    one = made(length=4, hidden=6)
    assert one.embeddings().shape == (4, 32)
    first, second, third = one.mlp[0], one.mlp[2], one.mlp[4]
    assert (first.weight.shape, second.weight.shape) == ((6, 32), (6, 6))
    close(one.embeddings(), third(F.relu(second(F.relu(first(one.table))))))
    one = made(length=4, hidden=6, encoder="lstm", depth=3)
    assert (one.lstm.num_layers, one.lstm.hidden_size, one.lstm.bidirectional) == (3, 6, True)


@row("invertible.reduction", "invertible.act")
def invertibles(tiny):
    one = tiny.at("invertible", "model.embed_tokens", ("embed",), reduction=4.0, act="tanh")
    assert one.F_down.shape == (4, 16)
    x = X[:, :, :32]
    first, second = x.split(16, dim=-1)
    first = first + F.linear(torch.tanh(F.linear(second, one.F_down)), one.F_up)
    second = second + F.linear(torch.tanh(F.linear(first, one.G_down)), one.G_up)
    close(one.embed(x, True), torch.cat((first, second), dim=-1))


@row("token_rows.ids", "fusion.of")
def names_and_ids(tiny):
    one = tiny.at("token_rows", "model.embed_tokens", ("embed",), ids=[5, 9])
    changed = tiny.model.input_embedding(torch.arange(61)) != tiny.model.input_embedding.weight
    assert changed.any(1).nonzero()[:, 0].tolist() == [5, 9]
    tiny.at("bottleneck", size=3, sites=("mlp",), where="model.layers.0.mlp_site")
    for name in ("a", "b", "c"):
        attach(tiny.model, resolve(kind="bottleneck", sites=["mlp"], size=2), name)
    attach(tiny.model, resolve(kind="fusion", sites=["mlp"], of=["a", "c"]), "both")
    assert tiny.site.adapters["both"].members in (("a", "c"), ["a", "c"])
    assert one.options.ids in ((5, 9), [5, 9])


# ---------------------------------------------------------------- where
@row("part.kind", "part.sites", "part.layers", "part.overrides", "part.options")
def places(tiny):
    tiny.at(
        "lora", sites=("q", "o"), layers=[0, 2], r=2, overrides={"o": {"r": 5}},
        where="model.layers.2.self_attn.o_proj",
    )  # fmt: skip
    shapes = {
        name.split(".adapters")[0].removeprefix("model."): one.shape[0]
        for name, one in named_parameters(tiny.model).items()
        if name.endswith("lora_A")
    }
    assert shapes == {
        f"layers.{layer}.self_attn.{site}_proj": {"q": 2, "o": 5}[site]
        for layer in (0, 2)
        for site in "qo"
    }
    for layers, expected in (("first 1", [0]), ("last 1", [2])):
        tiny.at("lora", layers=layers, where=Q.replace("0", str(expected[0])))
        found = {int(name.split(".")[2]) for name in named_parameters(tiny.model)}
        assert sorted(found) == expected


@pytest.mark.parametrize("name", ROWS.cases())
def test_adapter_option(name, tiny_llama):
    ROWS.prove(name, tiny_llama)

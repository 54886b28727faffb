"""What every adapter promises, in every family: where it sits, that it starts where it says,
trains, switches, and leaves the base alone.
"""

from dataclasses import fields

import pytest
import torch
from conftest import write_checkpoint
from methods import ALL, CROSSED, IDS, attach_small, randomise

from adapters import attach, named_parameters, parameters, remove, use
from adapters.attach import adapters_named, rates
from adapters.base import Adapter
from adapters.config import METHODS, PLACEMENT, layer_numbers, presets, resolve
from adapters.places import all_sites, linear_sites, named_sites
from adapters.show import draw, marked_sites, trained
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


@pytest.mark.parametrize("method", ALL)
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


HALF = ("parallel", "lora", "prefix", "ln-tuning", "bitfit", "token rows", "invertible", "unipelt")


@pytest.mark.parametrize(
    ("family", "dtype", "method"),
    [
        *(("llama", torch.bfloat16, method) for method in ALL),
        *(("llama", torch.float16, method) for method in ALL if method in CROSSED),
        *((one, torch.bfloat16, method) for one in ("bloom", "opt", "gptj") for method in HALF),
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


@pytest.mark.parametrize("method", ALL)
def test_cached_steps_equal_the_full_pass(any_tiny, method):
    """Prompts and prefixes come once, their positions count in every step."""
    attach_small(any_tiny, method)
    randomise(any_tiny)
    whole = any_tiny(IDS, MASK)
    cache = any_tiny.new_cache(2, 7)
    parts = [any_tiny(IDS[:, :4], MASK[:, :4], cache=cache)]
    parts += [any_tiny(IDS[:, i : i + 1], MASK[:, : i + 1], cache=cache) for i in range(4, 7)]
    torch.testing.assert_close(
        torch.cat(parts, dim=1)[MASK.bool()], whole[MASK.bool()], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("method", ALL)
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


def test_a_site_that_does_not_fit_is_refused_with_the_list_of_those_that_do(any_tiny):
    """Every method at every kind of site: it works, or says where it would."""
    by_kind = {site.kind: name for name, site in named_sites(any_tiny).items()}
    assert len(by_kind) == 5
    for kind, method in METHODS.items():
        for place, site in by_kind.items():
            table = {
                "kind": kind,
                "sites": [site],
                **({"of": ["a", "b"]} if kind == "fusion" else {}),
                **({"ids": [1]} if kind == "token_rows" else {}),
            }
            if place in method.works_on and kind not in ("fusion", "token_rows"):
                attach(any_tiny, resolve(**table), "fits")
                remove(any_tiny, "fits")
            elif place not in method.works_on:
                with pytest.raises(
                    UserError, match=rf"{kind} works on .*\) is .*{place}; choose from "
                ) as error:
                    attach(any_tiny, resolve(**table))
                assert all(
                    named_sites(any_tiny)[name].kind in method.works_on
                    for name in str(error.value).partition("choose from ")[2].split(", ")
                )


def test_parameter_counts_follow_the_shapes(tiny):
    attach(tiny, "lora", r=2, sites=["q", "v"], layers="last 2")
    q, v = 2 * (32 + 32), 2 * (32 + 16)  # two key/value heads of four
    assert sum(p.numel() for p in parameters(tiny)) == trained(tiny) == 2 * (q + v)
    attach(tiny, "prefix", name="kv_pairs", length=5)
    assert trained(tiny, "kv_pairs") == 3 * 2 * 5 * 16


def test_layers():
    assert layer_numbers("all", 4) == [0, 1, 2, 3]
    assert layer_numbers("first 2", 4) == [0, 1]
    assert layer_numbers("last 1", 4) == [3]
    assert layer_numbers((0, 3), 4) == [0, 3]
    for wrong in ("first 9", "last 0", "some", (4,), (), (-1,)):
        with pytest.raises(UserError, match="layers"):
            layer_numbers(wrong, 4)


def test_sizes_by_layer_by_reduction_and_by_place(tiny):
    attach(tiny, "series", size=[2, 4], layers=[0, 2], name="layers")
    assert [
        site.adapters["layers"].adapter_down.shape[0]
        for path, site in all_sites(tiny)
        if "layers" in site.adapters
    ] == [2, 2, 4, 4]
    attach(tiny, "parallel", sites=["attn", "down"], reduction=16, name="reduced")
    assert tiny.blocks[0].attn_site.adapters["reduced"].adapter_down.shape == (2, 32)
    assert tiny.blocks[0].mlp.down_proj.adapters["reduced"].adapter_down.shape == (3, 48)
    overrides = {"layers.0.self_attn.q_proj": {"r": 7}, "q": {"r": 5, "alpha": 1.0}}
    attach(tiny, "lora", r=2, overrides=overrides, name="placed")
    ranks = [adapter.lora_A.shape[0] for adapter in adapters_named(tiny, "placed").values()]
    assert ranks == [7, 2, 5, 2, 5, 2]
    assert (
        tiny.blocks[0].self_attn.q_proj.adapters["placed"].scale == 1 / 7
    )  # the first override that fits counts, for each option
    for sizes in ([2, 3], [2, 3, 4, 5]):
        with pytest.raises(UserError, match="values"):
            attach(tiny, "series", size=sizes, name="wrong")


def test_a_mixture_meets_at_one_site(tiny):
    table = {
        "low": {"preset": "lora", "r": 2, "sites": ["q"]},
        "bias": {"preset": "bitfit", "sites": ["q"]},
        "soft": {"preset": "prompt", "length": 2},
    }
    attach(tiny, resolve(**table))
    randomise(tiny)
    q, x = tiny.blocks[0].self_attn.q_proj, torch.randn(1, 3, 32)
    group = q.adapters["default"]
    low, bias = group.parts["low"], group.parts["bias"]
    torch.testing.assert_close(
        q(x), x @ q.weight.T + 8 * x @ low.lora_A.T @ low.lora_B.T + bias.bias
    )
    assert len(parameters(tiny)) == 3 * (2 + 1) + 1
    assert resolve(**resolve(**table).table()) == resolve(**table)


def test_several_presets_are_a_mixture_too(tiny):
    config = attach(tiny, "lora+prefix", lora={"r": 2}, prefix={"length": 3})
    assert [(name, part.kind) for name, part in config.parts.items()] == [
        ("lora", "lora"),
        ("prefix", "prefix"),
    ]
    assert tiny.blocks[0].self_attn.q_proj.adapters["default"].options.r == 2
    for preset, changes, said in (
        ("lora+lora", {}, "twice"),
        ("lora+lara", {}, "did you mean 'lora'"),
        ("mam", {"size": 4}, "parallel.size|prefix.size"),
        ("mam+lora", {}, "mixture"),
    ):
        with pytest.raises(UserError, match=said):
            attach(tiny, preset, name="wrong", **changes)


def test_rates_of_parts(tiny):
    attach(tiny, "lora+prefix", prefix={"rate": 10.0})
    assert {("prefix" in name, rate) for name, rate in rates(tiny).items()} == {
        (True, 10.0),
        (False, 1.0),
    }


def test_no_option_of_a_method_hides_behind_a_word_of_placement():
    for kind, method in METHODS.items():
        assert not {field.name for field in fields(method.Options)} & set(PLACEMENT), kind
        assert issubclass(method, Adapter)


def test_every_method_has_a_preset_or_says_why():
    used = {table.get("kind") for table in presets().values()}
    assert set(METHODS) - used == {"full", "token_rows"}  # they need to be told of what


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"preset": "prallel"}, "did you mean 'parallel'"),
        ({"preset": "lora", "rank": 4}, "unknown option of lora adapters 'rank'"),
        ({"preset": "parallel", "sise": 4}, "did you mean 'size'"),
        ({"preset": "parallel", "size": "big"}, "should be a whole number from 1"),
        ({"preset": "parallel", "size": [2, "big", 3]}, "or a list of whole numbers from 1"),
        ({"preset": "parallel", "size": [2, 0, 3]}, "whole number from 1"),
        ({"preset": "parallel", "reduction": -1}, "reduction"),
        ({"preset": "parallel", "scale": "lerned"}, "a number or learned"),
        ({"preset": "parallel", "sites": ["attention"]}, "unknown site of llama"),
        ({"preset": "parallel", "sites": ["attm"]}, "did you mean 'attn'"),
        ({"preset": "parallel", "sites": "attn"}, "should be a list of texts"),
        ({"preset": "parallel", "act": "tan"}, "tanh, relu, gelu, silu or none"),
        ({"preset": "parallel", "layers": [3]}, "layers 0 to 2"),
        ({"preset": "parallel", "rate": 0}, "rate"),
        (
            {"preset": "lora", "sites": ["attn"]},
            (
                r"lora works on a Linear or an embedding, and attn "
                r"\(model.layers.0.attn_site\) is a whole sub-layer"
            ),
        ),
        ({"preset": "parallel", "writes": "input"}, "not on whole sub-layers"),
        ({"preset": "series", "writes": "input", "sites": ["up"]}, "not there yet"),
        ({"preset": "lora", "r": 0}, "r = 0 should be a whole number from 1"),
        ({"preset": "lora", "sites": ["q", "q_proj"]}, "named twice"),
        ({"preset": "lora", "layers": [0, 0]}, "named twice"),
        ({"preset": "lora", "layers": 2}, "layers = 2"),
        ({"preset": "lora", "layers": "last ²"}, "should be"),
        ({"preset": "lora", "alpha": float("inf")}, "alpha = inf should be a number"),
        ({"preset": "lora", "name": "1math"}, "no digit first"),
        ({"preset": "lora", "name": "keys"}, "torch's own"),
        (
            {"preset": "lora", "overrides": {"q": {"rank": 4}}},
            "unknown option of lora adapters 'rank'",
        ),
        ({"preset": "lora", "overrides": {"q": 4}}, "should be a table of tables"),
        ({"preset": "lora", "overrides": {"q(": {"r": 4}}}, "neither a site nor a pattern"),
        ({"preset": "lora", "overrides": {"q": {"r": 0}}}, "r = 0 should be"),
        ({"preset": "lora", "overrides": {"qq": {"r": 3}}}, "unknown place in overrides 'qq'"),
        ({"preset": "lora", "overrides": {"(?i)q_proj": {"r": 3}}}, "neither a site nor a pattern"),
        ({"preset": "lora", "overrides": {"v": {"r": [1, 2]}}}, "2 values"),
        ({"preset": "lora", "r": 2**40}, "up to 2,147,483,648"),
        ({"preset": "lora", "alpha": 1e300}, "out of range"),
        ({"preset": "pissa", "alpha": -8.0}, "must be positive"),
        ({"preset": "lora", "kind": "prompt"}, "is of the kind lora, not 'prompt'"),
        (
            {"preset": "mam", "prefx": {"length": 3}},
            "unknown part of adapter mam 'prefx'; did you mean 'prefix'",
        ),
        ({"preset": "mam", "prefix": 3}, "such as prefix.rate"),
        ({"preset": "fusion+lora", "fusion": {"of": ["a", "b"]}}, "stands alone"),
        ({"preset": resolve("lora"), "r": 4}, "takes no changes"),
        ({"preset": "pissa", "r": 99}, "singular values"),
        ({"preset": "dora", "bias": True}, "neither a bias"),
        ({"preset": "adalora", "target_r": 20}, "target_r"),
        ({"preset": "prefix", "length": 0}, "whole number from 1"),
        (
            {"preset": "prefix", "overrides": {"model.layers.0.self_attn.kv_site": {"length": 3}}},
            "cannot have different options",
        ),
        ({"preset": "vera", "overrides": {"q": {"r": 3}}}, "share their projections"),
        ({"preset": "ia3", "scales": "inputs"}, "should be output or input"),
        ({"preset": "prompt", "init": "vocabular"}, "should be vocabulary or random"),
        ({"preset": "prompt", "sites": ["q"]}, "prompt works on an embedding"),
        ({"preset": "p-tuning", "encoder": "gru"}, "should be mlp or lstm"),
        ({"preset": "ln-tuning", "sites": ["norms"]}, "did you mean 'norm'|unknown site"),
        ({"preset": "fusion"}, "names of two adapters"),
        ({"preset": "fusion", "of": ["a", "b"]}, "no adapter 'a' is loaded"),
        ({"preset": resolve(kind="token_rows", sites=["embed"], ids=[99])}, "token ids 0 to 60"),
        (
            {"preset": resolve(kind="token_rows", sites=["embed", "head"], ids=[9])},
            "weight of its own",
        ),
    ],
)
def test_mistakes_are_named_and_change_nothing(tiny, arguments, said):
    with pytest.raises(UserError, match=said) as error:
        attach(tiny, **arguments)
    assert "\n" not in str(error.value)
    assert not any(site.adapters for _, site in all_sites(tiny))


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"kind": "token_rows", "sites": ["embed"]}, "token ids"),
        ({"kind": "token_rows", "sites": ["embed"], "ids": [1, 1]}, "each once"),
        ({"sites": ["q"]}, "no 'kind'"),
        ({}, "no 'kind'"),
        ({"kind": "lora"}, "no 'sites'"),
        ({"kind": "lara", "sites": ["q"]}, "did you mean 'lora'"),
        ({"a": {"preset": "lora"}, "b": {"preset": "mam"}}, "a mixture"),
        ({"a b": {"preset": "lora"}}, "letters"),
        ({"keys": {"preset": "lora"}}, "torch's own"),
    ],
)
def test_mistakes_in_whole_tables(table, said):
    with pytest.raises(UserError, match=said):
        resolve(**table)


def test_a_norm_that_is_not_there(tmp_path):
    model = load_model(str(write_checkpoint(tmp_path / "opt", "opt", do_layer_norm_before=False)))
    with pytest.raises(UserError, match="has no final_norm"):
        attach(model, "ln-tuning")
    attach(model, "ln-tuning", sites=["attn_norm", "mlp_norm"])
    bare = load_model(
        str(write_checkpoint(tmp_path / "bare", "opt", layer_norm_elementwise_affine=False))
    )
    with pytest.raises(UserError, match="neither weight nor bias"):
        attach(bare, "ln-tuning")


def test_a_name_is_taken_once(tiny):
    attach(tiny, "lora", name="math")
    with pytest.raises(UserError, match="already has"):
        attach(tiny, "lora", name="math")
    with pytest.raises(UserError, match="did you mean 'math'"):
        use(tiny, ["maths"])
    with pytest.raises(UserError, match="did you mean 'math'"):
        remove(tiny, "maths")


def test_a_table_gives_its_configuration_back():
    for name in presets():
        if name != "fusion":
            config = resolve(name)
            assert resolve(**config.table()) == config
    config = resolve("parallel", size=[7, 3], layers=[0, 2])
    assert resolve(None, **config.table()) == config


def test_sites_by_family(tmp_path):
    """BLOOM has one Linear for q, k and v: presets say so, a table without the family's sites
    falls back to `any`.
    """
    bloom = load_model(str(write_checkpoint(tmp_path / "bloom", "bloom")))
    assert attach(bloom, "lora", r=2).only.sites == ("qkv",)
    assert attach(
        load_model(str(write_checkpoint(tmp_path / "opt", "opt"))), "lora", r=2
    ).only.sites == ("q", "v")
    with pytest.raises(UserError, match="unknown site of bloom 'q'"):
        attach(bloom, "lora", name="other", sites=["q"])
    config = resolve("lora", sites={"any": ["o"], "opt": ["q", "up"]})
    assert resolve(None, **config.table()) == config
    assert (config.on("opt").only.sites, config.on("gptj").only.sites) == (("q", "up"), ("o",))
    for sites, said in (
        ({"opt": ["q"]}, "no 'any'"),
        ({"any": ["q"], "opd": ["q"]}, "did you mean 'opt'"),
        ({"any": "q"}, "should be a list of texts"),
    ):
        with pytest.raises(UserError, match=said):
            resolve("lora", sites=sites)


def test_the_drawing_marks_the_sites(any_tiny):
    attach_small(any_tiny, "mam")
    text = draw(any_tiny)
    assert marked_sites(any_tiny) == {"kv", "mlp"}
    assert "{kv}" in text
    assert "{mlp}" in text
    assert "[o]" in text
    assert "all 3" in text
    attach(
        any_tiny, "lora", name="more", r=2, sites=[linear_sites(any_tiny)[0], "head"], layers=[0, 2]
    )
    assert "outside of the blocks: head" in draw(any_tiny, "more")
    assert "0, 2" in draw(any_tiny, "more")


FORMULAS = {
    "series": "y = f(x) + s · U act(D f(x))",
    "parallel": "y = f(x) + s · U act(D x)",
    "bottleneck-input": "y = f(x + s · U act(D x))",
    "ln-tuning": "γ' · (x - mean) / std + β'",
}


@pytest.mark.parametrize("formula", FORMULAS)
def test_the_drawing_shows_the_formula_of_these_options(tiny, formula):
    if formula == "bottleneck-input":
        attach(tiny, "series", sites=["q"], reads="input", writes="input")
    else:
        attach_small(tiny, formula)
    assert [f for f in FORMULAS if FORMULAS[f] in draw(tiny)] == [formula]


TABLE_1 = ("paper-lora", "paper-series-h", "paper-series-p", "paper-parallel")
FINAL = ("final-lora", "final-series-math", "final-series", "final-parallel", "final-prefix")
LATER = ("hira", "miss", "road", "oft", "shira")  # road: 0.04 % in its paper; oft: 17.65M
COUNTS = {  # the Params column of arXiv 2304.01933v1, and what the shares of v3 come from
    ("llama-7b", TABLE_1): (4_194_304, 201_326_592, 201_326_592, 201_326_592),
    ("bloom-7b1", TABLE_1): (3_932_160, 125_829_120, 188_743_680, 125_829_120),
    ("gptj-6b", TABLE_1): (3_670_016, 117_440_512, 176_160_768, 176_160_768),
    ("llama-7b", FINAL): (56_098_816, 134_217_728, 67_108_864, 247_463_936, 2_621_440),
    ("llama-7b", LATER): (56_098_816, 87_031_808, 2_719_744, 17_649_664, 56_098_816),
    ("llama-13b", FINAL): (87_818_240, 209_715_200, 104_857_600, 387_973_120, 4_096_000),
    ("bloomz-7b1", FINAL): (55_050_240, 62_914_560, 62_914_560, 314_572_800, 2_457_600),
    ("gptj-6b", FINAL): (58_720_256, 58_720_256, 58_720_256, 293_601_280, 2_293_760),
}
SHARES = {  # printed for v3's rows by later papers, percent of base and adapter
    "llama-7b": (0.826, 1.953, 0.986, 3.542, 0.039),
    "llama-13b": (0.670, 1.586, 0.799, 2.894, 0.031),
}


@pytest.mark.parametrize(("name", "presets"), COUNTS)
def test_the_papers_parameter_counts(name, presets):
    """They follow from what its code did, without weights."""
    from model.config import family_and_config, skeleton
    from model.registry import REGISTRY
    from model.show import count

    counts = []
    for preset in presets:
        model = skeleton(*family_and_config(REGISTRY[name].config, "registry"))
        base = count(model)
        attach(model, preset)
        counts.append(trained(model))
    assert tuple(counts) == COUNTS[name, presets]
    if presets == FINAL and name in SHARES:
        shares = [round(100 * n / (base + n), 3) for n in counts]
        assert tuple(shares) == SHARES[name]

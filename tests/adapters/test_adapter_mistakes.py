"""Mistakes in the options and tables of adapters: each is named and changes nothing."""

import pytest
from conftest import write_checkpoint

from adapters import attach, remove, use
from adapters.config import resolve
from adapters.places import all_sites
from model import UserError, load_model


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

"""Merging: what is folded computes the same, and what cannot be folded says so; exported folders
are read by transformers, to the same logits.
"""

import json
from itertools import product

import pytest
import torch
from conftest import write_checkpoint
from methods import ALL, IDS, MERGEABLE, attach_small, randomise
from safetensors import safe_open

from adapters import Average, Rows, attach, load_adapter, merge, parameters, save_adapter, use
from adapters.attach import adapter_names
from adapters.config import resolve
from adapters.formats.merged_model import export_model
from adapters.merge import merge_and_compare
from adapters.places import all_sites
from model import UserError, load_model


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """Largest difference, in standard deviations of the logits."""
    return ((one - other).abs().max() / other.std()).item()


def transformers_logits(folder, dtype=torch.float32) -> torch.Tensor:
    """What live transformers make of the folder; they must miss no tensor and leave none over."""
    transformers = pytest.importorskip("transformers")
    theirs, said = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", output_loading_info=True
    )
    assert not any(said[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), (
        said
    )
    with torch.no_grad():
        return theirs.eval()(IDS).logits.float()


def merged_and_exported(model, folder) -> None:
    """Merge, export, and read again with transformers and our own load_model: the logits stay."""
    before = model(IDS)
    merge(model)
    assert apart(model(IDS), before) < 1e-4
    assert not parameters(model)
    assert not any(".adapters." in name for name, _ in model.named_parameters())
    export_model(model, folder)
    again = load_model(str(folder))
    assert torch.equal(again(IDS), model(IDS))
    assert again.tied == model.tied
    assert again.fingerprint == model.fingerprint
    assert apart(transformers_logits(folder), before) < 1e-4


@pytest.mark.parametrize("method", [name for name in MERGEABLE if name != "token rows"])
def test_every_mergeable_method_in_every_family(any_folder, tmp_path, method):
    model = load_model(str(any_folder))
    if (model.family, method) == ("gptj", "lora-bias"):
        pytest.skip("cannot be exported: below")
    attach_small(model, method)
    randomise(model)
    old = model.fingerprint
    merged_and_exported(model, tmp_path / "merged")
    assert model.fingerprint != old


@pytest.mark.parametrize("method", ["bitfit", "lora-bias"])
@pytest.mark.parametrize(
    ("family", "changes", "settings"),
    [
        ("llama", {}, ["attention_bias", "mlp_bias"]),
        ("llama", {"attention_bias": True}, ["attention_bias", "mlp_bias"]),
        (
            "llama",
            {"mlp_bias": True, "tie_word_embeddings": True},
            ["attention_bias", "mlp_bias", "tie_word_embeddings"],
        ),
        ("bloom", {}, []),
        ("opt", {}, []),
        ("opt", {"enable_bias": False}, ["enable_bias"]),
        (
            "opt",
            {"do_layer_norm_before": False, "word_embed_proj_dim": 20, "enable_bias": False},
            ["enable_bias", "do_layer_norm_before"],
        ),
    ],
    ids=str,
)
def test_biases_where_there_were_none(tmp_path, family, changes, settings, method):
    """A Linear gets one; config.json says so, and the Linears beside it get zeros."""
    model = load_model(str(write_checkpoint(tmp_path / "base", family, **changes)))
    attach_small(model, method)
    randomise(model)
    merged_and_exported(model, tmp_path / "merged")
    raw = json.loads((tmp_path / "merged" / "config.json").read_text())
    if method != "bitfit" and not changes.get("mlp_bias"):
        settings = [key for key in settings if key != "mlp_bias"]
    before = json.loads((tmp_path / "base" / "config.json").read_text())
    assert {key for key in raw if raw[key] is True} - {
        key for key in before if before[key] is True
    } <= set(settings)
    assert all(
        raw.get(key, False) == before.get(key, False)
        for key in raw
        if key not in (*settings, "architectures")
    )


def test_only_the_biases_that_are_needed(tiny, tmp_path):
    attach(tiny, "bitfit", sites=["up"], layers=[1])
    randomise(tiny)
    merged_and_exported(tiny, tmp_path / "merged")
    raw = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert (raw.get("attention_bias"), raw["mlp_bias"]) == (None, True)
    biases = {
        name: p
        for name, p in load_model(str(tmp_path / "merged")).named_parameters()
        if name.endswith(".bias")
    }
    assert len(biases) == 9
    assert [name for name, bias in biases.items() if bias.any()] == [
        "model.layers.1.mlp.up_proj.bias"
    ]


@pytest.mark.parametrize(
    ("family", "changes", "table", "place"),
    [
        ("gptj", {}, {"kind": "bitfit", "sites": ["q"]}, "transformer.h.0.attn.q_proj.bias"),
        ("gptj", {}, {"preset": "lora-bias"}, "transformer.h.0.attn.q_proj.bias"),
        ("llama", {}, {"kind": "bitfit", "sites": ["head"]}, "lm_head.bias"),
        ("bloom", {}, {"kind": "bitfit", "sites": ["head"]}, "lm_head.bias"),
        ("opt", {}, {"kind": "bitfit", "sites": ["head"]}, "lm_head.bias"),
        (
            "opt",
            {"word_embed_proj_dim": 20},
            {"kind": "bitfit", "sites": ["model.decoder.project_in"]},
            "model.decoder.project_in.bias",
        ),
    ],
)
def test_a_bias_without_a_place_in_the_architecture_is_merged_and_not_exported(
    tmp_path, family, changes, table, place
):
    model = load_model(str(write_checkpoint(tmp_path / "base", family, **changes)))
    attach(model, resolve(**table))
    randomise(model)
    before = model(IDS)
    merge(model)
    assert apart(model(IDS), before) < 1e-4
    with pytest.raises(UserError, match=f"{family} architecture has no place for {place}"):
        export_model(model, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


# ---------------------------------------------------------------- several adapters
STEPS = {
    "lora": {"kind": "lora", "r": 2},
    "lora-bias": {"kind": "lora", "r": 2, "bias": True},
    "dora": {"kind": "dora", "r": 2},
    "vera": {"kind": "vera", "r": 3},
    "ia3": {"kind": "ia3"},
    "ia3 in": {"kind": "ia3", "scales": "input"},
    "oft": {"kind": "oft", "block": 8},
    "bitfit": {"kind": "bitfit"},
    "full": {"kind": "full"},
}


def refused(first: str, second: str, bias: bool) -> bool:
    """Whether the second looks at something of the base that the first has changed."""
    changes_bias = first in ("lora-bias", "bitfit", "full") or (bias and first == "ia3")
    if first == "full" and not bias:
        changes_bias = False
    return (second == "dora" and first not in ("ia3 in", "oft")) or (
        second == "bitfit" and changes_bias
    )


PAIRS = [  # with a bias in the base; without one only where an adapter makes or needs a bias
    (first, second, bias)
    for first, second in product(STEPS, STEPS)
    for bias in (True, False)
    if bias or {first, second} & {"bitfit", "lora-bias", "full"}
]


@pytest.mark.parametrize("together", ["stacked", "a mixture"])
@pytest.mark.parametrize(("first", "second", "bias"), PAIRS)
def test_two_at_one_linear_in_either_order_compute_the_same_or_are_refused(
    tmp_path, first, second, bias, together
):
    model = load_model(str(write_checkpoint(tmp_path, num_hidden_layers=1, mlp_bias=bias)))
    tables = {"one": STEPS[first] | {"sites": ["down"]}, "two": STEPS[second] | {"sites": ["down"]}}
    if together == "stacked":
        for name, table in tables.items():
            attach(model, resolve(**table), name)
    else:
        attach(model, resolve(**tables))
    randomise(model)
    before = model(IDS)
    if refused(first, second, bias):
        with pytest.raises(
            UserError,
            match=(
                r"starts from the base's (weight|bias), which another adapter in "
                r"front of it has changed; apply it first"
            ),
        ):
            merge(model)
        assert torch.equal(model(IDS), before)
    else:
        merge(model)
        assert apart(model(IDS), before) < 1e-4


@pytest.mark.parametrize(
    ("first", "second", "bias"), [pair for pair in PAIRS if pair[0] <= pair[1]]
)
def test_averages_are_folded(tmp_path, first, second, bias):
    """Behind another adapter, whose changes all members see."""
    model = load_model(str(write_checkpoint(tmp_path, num_hidden_layers=1, mlp_bias=bias)))
    attach(model, resolve(**STEPS[first], sites=["down"]), "one")
    attach(model, resolve(**STEPS[second], sites=["down"]), "two")
    attach(model, "ia3", name="three", sites=["down"])
    attach(model, "ln-tuning", name="norms", sites=["final_norm"])
    randomise(model)
    use(model, [Average("one", "two", weights=[0.7, -0.4]), "three", "norms"])
    before = model(IDS)
    merge(model)
    assert apart(model(IDS), before) < 1e-4
    assert adapter_names(model) == []


def test_averages_on_norms_and_embeddings(any_tiny):
    attach(any_tiny, resolve(kind="full", sites=["embed", "final_norm"]), "one")
    attach(any_tiny, "lora", name="two", sites=["embed"], r=2, dropout=0.0)
    randomise(any_tiny)
    use(any_tiny, [Average("one", "two", weights=[0.5, 0.25])])
    before = any_tiny(IDS)
    merge(any_tiny)
    assert apart(any_tiny(IDS), before) < 1e-4


def test_a_merged_model_is_another_base_and_keeps_what_was_off(folder, tmp_path):
    model = load_model(str(folder))
    attach(model, "parallel", name="off", size=3)
    randomise(model)
    use(model, [])
    attach(model, "lora", name="on", r=3)
    use(model, ["on"])
    randomise(model)
    before = model(IDS)
    merge(model)
    assert {name for _, site in all_sites(model) for name in site.adapters} == {"off"}
    assert apart(model(IDS), before) < 1e-4
    use(model, ["off"])
    assert apart(model(IDS), before) > 1e-2
    use(model, [])
    attach(model, "lora", name="later", r=2)
    save_adapter(model, tmp_path / "saved", name="later")
    with pytest.raises(UserError, match="another base model"):
        load_adapter(load_model(str(folder)), tmp_path / "saved")
    use(model, [])
    export_model(model, tmp_path / "merged")
    load_adapter(load_model(str(tmp_path / "merged")), tmp_path / "saved")


def test_rows_of_tokens_start_from_the_base_of_the_head(tmp_path):
    """Behind a LoRA on the head they are refused, in front of it they are folded; in the
    embedding, where they replace, in any order.
    """
    model = load_model(str(write_checkpoint(tmp_path, tie_word_embeddings=True)))
    attach(
        model, resolve(kind="token_rows", sites=["embed", "head"], ids=[5, int(IDS[0, 1])]), "rows"
    )
    attach(model, "lora", name="low", sites=["head"], r=2, dropout=0.0)
    attach(model, "lora", name="inside", sites=["embed"], r=2, dropout=0.0)
    randomise(model)
    use(model, ["low", "rows"])
    with pytest.raises(
        UserError,
        match=(
            "TokenRows starts from the base's weight, which another adapter in "
            "front of it has changed"
        ),
    ):
        merge(model)
    for order in (["inside", "rows"], ["rows", "low", "inside"]):
        use(model, order)
        before = model(IDS)
        again = load_model(str(tmp_path))
        for name in ("rows", "low", "inside"):
            save_adapter(model, tmp_path / name, name, overwrite=True)
            load_adapter(again, tmp_path / name, name)
        use(again, order)
        merge(again)
        assert apart(again(IDS), before) < 1e-4


def test_a_full_copy_from_before_its_linear_got_a_bias(tiny):
    attach(tiny, "bitfit", name="bias", sites=["up"])
    attach(tiny, resolve(kind="full", sites=["gate", "up"]), "copy")
    randomise(tiny)
    use(tiny, ["bias"])
    merge(tiny)
    use(tiny, ["copy"])
    before = tiny(IDS)
    merge(tiny)
    assert apart(tiny(IDS), before) < 1e-4
    assert tiny.config.mlp_bias


def test_a_merge_that_changes_nothing_is_another_base_too(tiny):
    attach(tiny, "lora", r=2)
    old = tiny.fingerprint
    merge(tiny)
    assert tiny.fingerprint != old


def test_nothing_on_changes_nothing(tiny):
    attach(tiny, "lora", r=2)
    use(tiny, [])
    old = tiny.fingerprint
    merge(tiny)
    assert tiny.fingerprint == old
    assert adapter_names(tiny) == ["default"]


# ---------------------------------------------------------------- tied heads
@pytest.mark.parametrize("family", ["llama", "bloom", "opt", "gptj"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "method",
    [
        "token rows",
        "lora on the embedding",
        "lora on the head",
        "full head",
        "full embedding and norm",
        "lora",
        "bitfit head",
    ],
)
def test_tied_heads_stay_tied_where_both_change_alike_and_are_untied_elsewhere(
    tmp_path, family, tied, method
):
    model = load_model(str(write_checkpoint(tmp_path / "base", family, tie_word_embeddings=tied)))
    if method == "bitfit head":
        attach(model, "bitfit", sites=["head"])
    else:
        attach_small(model, method)
    randomise(model)
    old = model.fingerprint
    embedding, head = model.input_embedding.weight.clone(), model.lm_head.weight.clone()
    if method == "bitfit head" and family != "gptj":
        merge(model)
    else:
        merged_and_exported(model, tmp_path / "merged")
        raw = json.loads((tmp_path / "merged" / "config.json").read_text())
        with safe_open(tmp_path / "merged" / "model.safetensors", "pt") as file:
            assert ("lm_head.weight" in file.keys()) == (not model.tied)  # noqa: SIM118
        assert raw["tie_word_embeddings"] == model.tied
    stays = method in ("token rows", "lora", "bitfit head")
    assert model.tied == (tied and stays)
    assert model.config.tie_word_embeddings == model.tied
    assert model.fingerprint != old
    assert torch.equal(model.input_embedding.weight, embedding) == (
        method not in ("token rows", "lora on the embedding", "full embedding and norm")
    )
    assert torch.equal(model.lm_head.weight, head) == (
        method not in ("lora on the head", "full head") and not (tied and method == "token rows")
    )


def test_a_head_that_the_file_keeps_beside_a_tied_embedding(tmp_path):
    """LLaMA with tie_word_embeddings true and two different tensors is loaded untied, and written
    so that transformers do not tie it either.
    """
    from safetensors.torch import load_file, save_file

    folder = write_checkpoint(tmp_path / "base", tie_word_embeddings=True)
    tensors = load_file(str(folder / "model.safetensors"))
    save_file(
        tensors | {"lm_head.weight": torch.randn(61, 32)},
        str(folder / "model.safetensors"),
        metadata={"format": "pt"},
    )
    with pytest.warns(UserWarning, match="differs from the embedding"):
        model = load_model(str(folder))
    attach(model, "lora", r=2)
    randomise(model)
    merged_and_exported(model, tmp_path / "merged")
    assert (
        json.loads((tmp_path / "merged" / "config.json").read_text())["tie_word_embeddings"]
        is False
    )


# ---------------------------------------------------------------- what cannot be merged
def state(model) -> dict[str, torch.Tensor]:
    return {name: parameter.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("method", [name for name in ALL if name not in (*MERGEABLE, "bitfit")])
def test_what_cannot_be_merged_says_why_and_changes_nothing(any_tiny, method):
    attach(any_tiny, "ia3", name="first")
    attach_small(any_tiny, method, as_name="bent")
    randomise(any_tiny)
    use(any_tiny, ["first", "bent"])
    before, logits, old = state(any_tiny), any_tiny(IDS), any_tiny.fingerprint
    with pytest.raises(
        UserError,
        match=r"'bent' \(.*\) at .* cannot be merged: .*; evaluate and generate use it unmerged",
    ) as error:
        merge(any_tiny)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="cannot be merged"):
        merge_and_compare(any_tiny, IDS[:1])
    after = state(any_tiny)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(any_tiny(IDS), logits)
    assert any_tiny.fingerprint == old


def test_more_that_cannot_be_merged(tiny):
    attach(tiny, "lora", name="gated", r=2, gate=True)
    with pytest.raises(
        UserError,
        match=(
            r"'gated' \(lora\) at model.layers.0.self_attn.q_proj cannot be "
            r"merged: its gate depends on the token; evaluate"
        ),
    ):
        merge(tiny)
    use(tiny, [])
    attach(tiny, "bitfit", name="norm", sites=["attn_norm"])
    with pytest.raises(UserError, match="this norm has no bias, and cannot get one"):
        merge(tiny)
    attach(tiny, "lora", name="one", r=2)
    attach(tiny, "lora", name="two", r=2)
    use(tiny, [Rows("one", "two")])
    with pytest.raises(
        UserError,
        match=(
            r"'one' \(lora\) and 'two' \(lora\) at .*: each row of a batch has an "
            r"adapter of its own"
        ),
    ):
        merge(tiny)
    attach(tiny, "fusion", name="both", of=["one", "two"], sites=["q", "v"])
    use(tiny, ["one"])
    with pytest.raises(
        UserError, match="'both' is built on 'one', which would be merged: remove it first"
    ):
        merge(tiny)
    assert set(adapter_names(tiny)) == {"gated", "norm", "one", "two", "both"}


def test_weights_that_would_not_be_finite(folder):
    model = load_model(str(folder), dtype=torch.float16)
    attach(model, "lora", r=1, sites=["q", "v"])
    for _, site in all_sites(model):
        for adapter in site.adapters.values():
            adapter.lora_B.data.fill_(1e6)
    before = state(model)
    with pytest.raises(
        UserError,
        match=(
            r"model.layers.0.self_attn.q_proj would hold NaN or infinite values, "
            r"as torch.float16"
        ),
    ):
        merge(model)
    assert all(torch.equal(before[name], value) for name, value in state(model).items())

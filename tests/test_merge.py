"""Merging: what is folded computes the same, and what cannot be folded says so; exported folders are read by transformers, to the same logits."""

import json
from itertools import product

import pytest
import torch
from conftest import write_checkpoint
from methods import ALL, IDS, MERGEABLE, attach_small, randomise
from safetensors import safe_open

import run
from adapters import Average, Rows, attach, load_adapter, merge, parameters, save_adapter, use
from adapters.attach import adapter_names
from adapters.config import resolve
from adapters.formats.merged_model import export_model
from adapters.merge import merge_and_compare
from adapters.places import all_sites, linear_sites
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
    "bitfit": {"kind": "bitfit"},
    "full": {"kind": "full"},
}


def refused(first: str, second: str, bias: bool) -> bool:
    """Whether the second looks at something of the base that the first has changed."""
    changes_bias = first in ("lora-bias", "bitfit", "full") or (bias and first == "ia3")
    if first == "full" and not bias:
        changes_bias = False
    return (second == "dora" and first != "ia3 in") or (second == "bitfit" and changes_bias)


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
            match=r"starts from the base's (weight|bias), which another adapter in front of it has changed; apply it first",
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
    """Behind a LoRA on the head they are refused, in front of it they are folded; in the embedding, where they replace, in any order."""
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
        match="TokenRows starts from the base's weight, which another adapter in front of it has changed",
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
    """LLaMA with tie_word_embeddings true and two different tensors is loaded untied, and written so that transformers do not tie it either."""
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
        match=r"'gated' \(lora\) at model.layers.0.self_attn.q_proj cannot be merged: its gate depends on the token; evaluate",
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
        match=r"'one' \(lora\) and 'two' \(lora\) at .*: each row of a batch has an adapter of its own",
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
        match=r"model.layers.0.self_attn.q_proj would hold NaN or infinite values, as torch.float16",
    ):
        merge(model)
    assert all(torch.equal(before[name], value) for name, value in state(model).items())


# ---------------------------------------------------------------- precision and files
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_folded_in_float32_and_rounded_once(any_folder, tmp_path, dtype):
    model, exact = (load_model(str(any_folder), dtype=one) for one in (dtype, torch.float32))
    for one in (model, exact):
        torch.manual_seed(0)
        attach(one, "lora", name="one", r=3, sites=linear_sites(one), dropout=0.0)
        attach(one, "ia3", name="two")
        randomise(one)
    site = model.blocks[1].get_submodule(model.sites["down"])
    one, two = site.adapters["one"], site.adapters["two"]
    expected = (
        (site.weight.double() + one.scale * one.lora_B.double() @ one.lora_A.double())
        * two.ia3_l.double()
    ).to(dtype)
    unmerged = (model(IDS).float() - exact(IDS)).abs().mean()
    merge(model)
    wrong = site.weight != expected  # float64 may be on the other side of a tie
    assert wrong.float().mean() < 1e-2
    assert (site.weight.double() - expected.double()).abs().max() <= 2 * torch.finfo(
        dtype
    ).eps * expected.double().abs().max()
    assert (model(IDS).float() - exact(IDS)).abs().mean() < 2 * unmerged
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    export_model(model, tmp_path / "merged")
    again = load_model(str(tmp_path / "merged"))
    assert again.dtype == dtype
    assert torch.equal(again(IDS), model(IDS))
    assert apart(transformers_logits(tmp_path / "merged", dtype), model(IDS).float()) < 0.2


@pytest.mark.parametrize("method", [*MERGEABLE, "bitfit"])
def test_every_mergeable_method_in_bfloat16(tmp_path, method):
    folder = write_checkpoint(tmp_path / "base", "opt", dtype=torch.bfloat16)
    model, exact = load_model(str(folder)), load_model(str(folder), dtype=torch.float32)
    for one in (model, exact):
        torch.manual_seed(0)
        attach_small(one, method)
        randomise(one, 0.1)
    merge(model)
    assert ((model(IDS) - exact(IDS)).abs().mean() / exact(IDS).std()).item() < 0.02
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_the_dtype_in_config_json_is_that_of_the_weights(tmp_path):
    raw = {"torch_dtype": "float16", "rope_theta": 777.0, "transformers_version": "4.1"}
    model = load_model(
        str(write_checkpoint(tmp_path / "base", dtype=torch.float16, **raw)), dtype=torch.float32
    )
    attach(model, "lora", r=2)
    randomise(model)
    merged_and_exported(model, tmp_path / "merged")
    before, after = (
        json.loads((tmp_path / name / "config.json").read_text()) for name in ("base", "merged")
    )
    assert after == before | {"torch_dtype": "float32", "architectures": ["LlamaForCausalLM"]}


@pytest.mark.parametrize("shard_bytes", [1, 5000, 20_000])
def test_shards(any_folder, tmp_path, shard_bytes):
    model = load_model(str(any_folder))
    files = export_model(model, tmp_path / "out", shard_bytes=shard_bytes)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    shards = [path for path in files if path.suffix == ".safetensors"]
    assert sorted(set(index["weight_map"].values())) == [path.name for path in shards]
    assert len(shards) > 1
    found = {}
    for number, path in enumerate(shards, start=1):
        assert path.name == f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"format": "pt"}
            inside = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        assert all(index["weight_map"][name] == path.name for name in inside)
        assert sum(tensor.nbytes for tensor in inside.values()) <= shard_bytes or len(inside) == 1
        found |= inside
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in found.values())
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        name: tensor.tolist() for name, tensor in model.named_parameters()
    }
    assert torch.equal(load_model(str(tmp_path / "out"))(IDS), model(IDS))
    assert load_model(str(tmp_path / "out")).fingerprint == model.fingerprint
    assert apart(transformers_logits(tmp_path / "out"), model(IDS)) < 1e-4


def test_nothing_is_written_where_something_is_wrong(tiny, tmp_path, monkeypatch):
    attach(tiny, "lora", r=2)
    out = tmp_path / "out"
    with pytest.raises(
        UserError,
        match=r"an adapter is on at model.layers.0.self_attn.q_proj: merge\(model\) first",
    ):
        export_model(tiny, out)
    use(tiny, [])
    with pytest.raises(UserError, match="shards of 0 bytes"):
        export_model(tiny, out, shard_bytes=0)
    weight = tiny.lm_head.weight
    tiny.lm_head.weight = torch.nn.Parameter(torch.full_like(weight, torch.nan))
    with pytest.raises(UserError, match=r"lm_head.weight holds NaN or infinite values"):
        export_model(tiny, out)
    tiny.lm_head.weight = weight
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
        with pytest.raises(UserError, match=r"the disk has 0\.0 MB left"):
            export_model(tiny, out)
    assert not out.exists()
    out.mkdir()
    (out / "mine").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        export_model(tiny, out)
    with pytest.raises(UserError, match="is not a folder"):
        export_model(tiny, out / "mine")
    assert [path.name for path in out.iterdir()] == ["mine"]


def test_a_folder_that_was_not_finished_is_no_model(tiny, tmp_path, monkeypatch):
    from model import shards

    write, count = shards.write_safetensors, iter(range(100))

    def full(*all_of_it):
        if next(count) == 2:
            raise OSError(28, "No space left on device")
        write(*all_of_it)

    monkeypatch.setattr(shards, "write_safetensors", full)
    with pytest.raises(UserError, match="No space left"):
        export_model(tiny, tmp_path / "out", shard_bytes=20_000)
    assert not list((tmp_path / "out").glob(".*"))
    with pytest.raises(UserError, match="holds neither"):
        load_model(str(tmp_path / "out"))


def test_a_disk_that_does_not_keep_what_was_written_is_noticed(tiny, tmp_path, monkeypatch):
    from model import shards

    write = shards.write_safetensors
    monkeypatch.setattr(
        shards,
        "write_safetensors",
        lambda path, tensors, values: write(path, tensors, lambda tensor: 2 * values(tensor)),
    )
    with pytest.raises(UserError, match="does not hold what was written"):
        export_model(tiny, tmp_path / "out")


# ---------------------------------------------------------------- the command line
@pytest.fixture
def command(capsys):
    """Runs a command; returns its status and what it printed."""

    def act(*arguments) -> tuple[int, str]:
        status = run.main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return status, said.out + said.err

    return act


@pytest.fixture(params=["llama", "bloom", "opt", "gptj"])
def trained(tmp_path, request):
    """(name of a pocket model, folder of a LoRA for it)."""
    model = load_model(f"pocket-{request.param}")
    attach(model, "lora", r=3)
    randomise(model, 0.05)
    save_adapter(model, tmp_path / "adapter", run={"template": "plain"})
    return f"pocket-{request.param}", tmp_path / "adapter"


def test_merge_on_the_command_line(trained, command, tmp_path):
    name, adapter = trained
    status, said = command(
        "merge",
        "--model",
        name,
        "--adapter",
        adapter,
        "--out",
        tmp_path / "merged",
        "--shard-size",
        "0.0005",
    )
    assert status == 0, said
    assert "largest logit difference 0" in said
    assert "on a prompt of" in said
    assert "float16" in said
    assert f"--model {tmp_path / 'merged'}" in said
    model = load_model(name, dtype=torch.float32)
    load_adapter(model, adapter)
    merged = load_model(str(tmp_path / "merged"))
    assert merged.dtype == torch.float16
    assert apart(load_model(str(tmp_path / "merged"), dtype=torch.float32)(IDS), model(IDS)) < 5e-3
    base = load_model(name).folder
    files = {path.name for path in (tmp_path / "merged").iterdir()}
    for file in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        assert (tmp_path / "merged" / file).read_bytes() == (base / file).read_bytes(), file
    assert "model.safetensors.index.json" in files
    generated = [
        command(
            "generate",
            *source,
            "--instruction",
            "Emma has 3 pies and eats 1. How many are left?",
            "--dtype",
            "float32",
        )[1]
        for source in (("--model", name, "--adapter", adapter), ("--model", tmp_path / "merged"))
    ]
    prompts = [
        command(
            "generate",
            *source,
            "--prompt",
            "Emma has 3 pies.",
            "--dtype",
            "float32",
            "--max-new-tokens",
            "8",
        )[1]
        for source in (("--model", name, "--adapter", adapter), ("--model", tmp_path / "merged"))
    ]
    assert prompts[0].splitlines()[0] == prompts[1].splitlines()[0]  # then: pocket models are toys
    assert generated[0]


def test_float32_on_the_command_line_and_the_difference_it_measures(command, tmp_path):
    model = load_model("pocket-llama", dtype=torch.float32)
    attach(model, "lora", r=3)
    randomise(model)
    save_adapter(model, tmp_path / "adapter")
    status, said = command(
        "merge",
        "--model",
        "pocket-llama",
        "--adapter",
        tmp_path / "adapter",
        "--out",
        tmp_path / "merged",
        "--dtype",
        "float32",
    )
    assert status == 0, said
    largest = float(said.partition("largest logit difference ")[2].split()[0])
    deviation = float(said.rpartition("standard deviation of the logits ")[2].split()[0])
    assert 0 < largest < 1e-4 * deviation
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["torch_dtype"] == "float32"
    assert apart(load_model(str(tmp_path / "merged"))(IDS), model(IDS)) < 1e-4


def test_the_difference_is_that_of_the_logits(folder):
    models = [load_model(str(folder), dtype=torch.bfloat16) for _ in range(2)]
    for model in models:
        torch.manual_seed(0)
        attach(model, "lora", r=3, sites=["q", "v", "down"], dropout=0.0)
        randomise(model)
    before = models[0](IDS[:1])
    merge(models[0])
    largest, deviation = merge_and_compare(models[1], IDS[:1])
    assert largest == (models[0](IDS[:1]) - before).abs().max().item() > 0
    assert deviation == pytest.approx(before.std().item())


def test_tokenizer_files_are_copied_byte_for_byte(tiny, tmp_path):
    names = (
        "tokenizer.json",
        "tokenizer.model",
        "vocab.json",
        "merges.txt",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "generation_config.json",
    )
    for number, name in enumerate(names):
        (tiny.folder / name).write_bytes(bytes([number, 255, 10, 13]) * 9)
    (tiny.folder / "pytorch_model.bin").write_bytes(b"old")
    (tiny.folder / "notes.txt").write_text("mine")
    files = export_model(tiny, tmp_path / "out")
    assert {path.name for path in files} == {*names, "config.json", "model.safetensors"}
    assert all(
        (tmp_path / "out" / name).read_bytes() == (tiny.folder / name).read_bytes()
        for name in names
    )


def test_a_model_without_a_tokenizer_is_probed_with_random_ids(folder, command, tmp_path):
    model = load_model(str(folder))
    attach(model, "ia3")
    randomise(model)
    save_adapter(model, tmp_path / "adapter")
    status, said = command(
        "merge", "--model", folder, "--adapter", tmp_path / "adapter", "--out", tmp_path / "merged"
    )
    assert status == 0, said
    assert "32 random token ids" in said


def test_several_adapters_stacked_and_averaged(command, tmp_path):
    model = load_model("pocket-llama", dtype=torch.float32)
    for name in ("one", "two"):
        attach(model, "lora", r=3, name=name)
    randomise(model)
    for name in ("one", "two"):
        save_adapter(model, tmp_path / name, name=name)
    both = (
        "--model",
        "pocket-llama",
        "--adapter",
        tmp_path / "one",
        "--adapter",
        tmp_path / "two",
        "--dtype",
        "float32",
    )
    for entries, more in ((["one", "two"], ()), ([Average("one", "two")], ("--average",))):
        use(model, entries)
        out = tmp_path / f"merged{len(entries)}"
        status, said = command("merge", *both, "--out", out, *more)
        assert status == 0, said
        assert apart(load_model(str(out))(IDS), model(IDS)) < 1e-4


@pytest.mark.filterwarnings("ignore")  # of the base's name
@pytest.mark.parametrize("format", ["native", "paper", "peft", "peft --plain"])
def test_export_on_the_command_line(trained, command, tmp_path, format):
    name, adapter = trained
    status, said = command(
        "export",
        "--model",
        name,
        "--adapter",
        adapter,
        "--out",
        tmp_path / "out",
        "--format",
        *format.split(),
    )
    assert status == 0, said
    assert "adapter_config.json (" in said
    models = [load_model(name), load_model(name)]
    for model, folder in zip(models, (adapter, tmp_path / "out"), strict=True):
        again = load_adapter(model, folder)
    torch.testing.assert_close(
        models[0](IDS), models[1](IDS), rtol=0, atol=0 if format != "peft --plain" else 0.05
    )
    if format == "native":
        assert again == {"template": "plain"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("merge", "--model", "pocket-llama"), "no adapter is given"),
        (("merge", "--adapter", "{lora}", "--shard-size", "0"), "--shard-size 0.0"),
        (("merge", "--adapter", "{lora}", "--out", "{full}"), "is not empty"),
        (
            ("merge", "--adapter", "{bent}"),
            "'default' (bottleneck) at model.layers.0.attn_site cannot be merged",
        ),
        (("merge", "--adapter", "{lora}", "--model", "pocket-opt"), "made for a llama model"),
        (("merge", "--adapter", "{lora}", "--average"), "--average takes two"),
        (("merge", "{full}"), "holds no run.toml"),
        (("export", "--model", "pocket-llama"), "no adapter is given"),
        (("export", "--adapter", "{lora}", "--format", "papr"), "did you mean 'paper'"),
        (
            ("export", "--adapter", "{lora}", "--format", "paper", "--plain"),
            "--plain is for --format peft",
        ),
        (("export", "--adapter", "{bent}", "--format", "paper"), "single Linears"),
        (("export", "--adapter", "{lora}", "--adapter", "{bent}"), "one adapter at a time"),
        (("export", "--adapter", "{lora}", "--out", "{full}"), "is not empty"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_mistakes_on_the_command_line_are_one_line_and_nothing_is_written(
    command, tmp_path, arguments, said
):
    model = load_model("pocket-llama")
    attach(model, "lora", r=2, name="lora")
    attach(model, "parallel", size=2, name="bent")
    for name in ("lora", "bent"):
        save_adapter(model, tmp_path / name, name=name)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    arguments = [
        argument.format(**{name: tmp_path / name for name in ("lora", "bent", "full")})
        for argument in arguments
    ]
    status, printed = command(
        *arguments, *(() if "--out" in arguments else ("--out", tmp_path / "out"))
    )
    assert status == 1
    assert said in printed
    assert printed.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine"]

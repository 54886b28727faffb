"""What every adapter promises: where it sits, what it computes, that it trains, switches, saves and loads strictly."""

import json

import pytest
import torch
from conftest import write_checkpoint
from safetensors.torch import load_file, save_file

from adapters import attach, load_adapter, merge, named_parameters, parameters, save_adapter, use
from adapters.attach import all_sites, linear_sites
from adapters.config import layer_numbers, presets, resolve
from model import UserError, load_model

IDS = torch.randint(3, 61, (2, 7), generator=torch.Generator().manual_seed(2))
PRESETS = sorted(presets())
AT_INPUT = {"preset": "parallel", "writes": "input", "sites": ["gate", "up"]}  # the paper's series adapter on a Linear's input
METHODS = [{"preset": name} for name in PRESETS] + [AT_INPUT]


def small(method: dict, model) -> dict:
    """The method in a tiny size; where a family has no gate, the place in front of its MLP's first Linear alone."""
    sizes = {"r": 3, "dropout": 0.0} if method["preset"] == "lora" else {"size": 5}
    sites = {"sites": [site for site in method["sites"] if site in model.sites]} if "sites" in method else {}
    return method | sizes | sites


def randomise(model) -> None:
    """Adapters away from their identity start."""
    generator = torch.Generator().manual_seed(3)
    for parameter in parameters(model):
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_training_starts_at_the_base_and_off_restores_it_to_the_bit(any_tiny, method):
    base = any_tiny(IDS)
    attach(any_tiny, **small(method, any_tiny))
    assert torch.equal(any_tiny(IDS), base)
    randomise(any_tiny)
    assert not torch.allclose(any_tiny(IDS), base, atol=1e-2)
    use(any_tiny, [])
    assert torch.equal(any_tiny(IDS), base)
    use(any_tiny, ["default"])
    assert not torch.allclose(any_tiny(IDS), base, atol=1e-2)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_every_parameter_gets_a_gradient_also_after_a_pass_without(any_tiny, method, checkpointing):
    attach(any_tiny, **small(method, any_tiny))
    randomise(any_tiny)
    any_tiny.checkpointing = checkpointing
    with torch.no_grad():
        any_tiny(IDS)
    any_tiny(IDS).square().mean().backward()
    for name, parameter in named_parameters(any_tiny).items():
        assert parameter.grad.abs().max() > 0, name
        assert parameter.dtype == torch.float32
    for name, parameter in any_tiny.named_parameters():
        if ".adapters." not in name:
            assert parameter.grad is None, name


def test_series_reads_the_output_and_parallel_the_input(tiny):
    """Against the formulas, written out on one sub-layer and one Linear."""
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


def test_two_adapters_apply_in_the_order_they_are_used(tiny):
    attach(tiny, "series", name="one", size=4)
    attach(tiny, "series", name="two", size=4)
    randomise(tiny)
    site = tiny.blocks[0].mlp_site
    one, two = site.adapters["one"], site.adapters["two"]
    y = torch.randn(1, 3, 32)
    use(tiny, ["two", "one"])
    torch.testing.assert_close(site(y, y), one.after(two.after(y, y, site), y, site))


@pytest.mark.parametrize(
    ("family", "changes"), [("llama", {}), ("llama", {"attention_bias": True}), ("bloom", {}), ("opt", {}), ("opt", {"enable_bias": False}), ("gptj", {})]
)
def test_merged_lora_answers_the_same(tmp_path, family, changes):
    model = load_model(str(write_checkpoint(tmp_path, family, **changes)))
    attach(model, "lora", r=3, sites=linear_sites(model), dropout=0.0)
    randomise(model)
    before = model(IDS)
    merge(model)
    assert not parameters(model)
    torch.testing.assert_close(model(IDS), before, rtol=1e-3, atol=1e-3)
    assert not any(".adapters." in name for name, _ in model.named_parameters())


def test_a_merged_model_is_another_base_and_keeps_what_was_off(folder, tmp_path):
    model = load_model(str(folder))
    attach(model, "parallel", name="off", size=3)
    use(model, [])
    attach(model, "lora", name="on", r=3)
    use(model, ["on"])
    randomise(model)
    merge(model)
    assert {name for _, site in all_sites(model) for name in site.adapters} == {"off"}
    attach(model, "lora", name="later", r=2)
    save_adapter(model, tmp_path / "saved", name="later")
    with pytest.raises(UserError, match="another base model"):
        load_adapter(load_model(str(folder)), tmp_path / "saved")


def test_bottlenecks_say_why_they_cannot_be_merged_and_stay(tiny):
    attach(tiny, "lora", name="lin", r=2)
    attach(tiny, "parallel", name="bent", size=4)
    randomise(tiny)
    before = tiny(IDS)
    with pytest.raises(UserError, match="not a linear map"):
        merge(tiny)
    assert torch.equal(tiny(IDS), before)


def test_parameter_counts_follow_the_shapes(tiny):
    attach(tiny, "lora", r=2, sites=["q", "v"], layers="last 2")
    q, v = 2 * (32 + 32), 2 * (32 + 16)  # two key/value heads of four
    assert sum(p.numel() for p in parameters(tiny)) == 2 * (q + v)


def test_layers():
    assert layer_numbers("all", 4) == [0, 1, 2, 3]
    assert layer_numbers("first 2", 4) == [0, 1]
    assert layer_numbers("last 1", 4) == [3]
    assert layer_numbers((0, 3), 4) == [0, 3]
    for wrong in ("first 9", "last 0", "some", (4,), (), (-1,)):
        with pytest.raises(UserError, match="layers"):
            layer_numbers(wrong, 4)


def test_dropout_only_while_training(tiny):
    attach(tiny, "lora", dropout=0.5)
    randomise(tiny)
    assert torch.equal(tiny(IDS), tiny(IDS))
    tiny.train()
    assert not torch.equal(tiny(IDS), tiny(IDS))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"preset": "prallel"}, "did you mean 'parallel'"),
        ({"preset": "lora", "rank": 4}, "unknown option of lora adapters 'rank'"),
        ({"preset": "parallel", "sise": 4}, "did you mean 'size'"),
        ({"preset": "parallel", "size": "big"}, "should be int"),
        ({"preset": "parallel", "sites": ["attention"]}, "unknown site of llama"),
        ({"preset": "parallel", "sites": "attn"}, "list of site names"),
        ({"preset": "parallel", "act": "tan"}, "did you mean 'tanh'"),
        ({"preset": "parallel", "layers": [3]}, "layers 0 to 2"),
        ({"preset": "lora", "sites": ["attn"]}, "whole sub-layer"),
        ({"preset": "parallel", "writes": "input"}, "not on whole sub-layers"),
        ({"preset": "series", "writes": "input", "sites": ["up"]}, "not there yet"),
        ({"preset": "lora", "r": 0}, "rank"),
        ({"preset": "lora", "sites": ["q", "q_proj"]}, "named twice"),
        ({"preset": "lora", "layers": [0, 0]}, "named twice"),
        ({"preset": "lora", "layers": 2}, "layers = 2"),
        ({"preset": "lora", "layers": "last ²"}, "should be"),
        ({"preset": "lora", "alpha": float("inf")}, "finite"),
        ({"preset": "lora", "name": "1math"}, "no digit first"),
        ({"preset": "lora", "name": "keys"}, "torch's own"),
        ({"preset": resolve("lora"), "r": 4}, "takes no changes"),
    ],
)
def test_mistakes_are_named_and_change_nothing(tiny, arguments, said):
    with pytest.raises(UserError, match=said):
        attach(tiny, **arguments)
    assert not any(site.adapters for _, site in all_sites(tiny))


def test_a_name_is_taken_once(tiny):
    attach(tiny, "lora", name="math")
    with pytest.raises(UserError, match="already has"):
        attach(tiny, "lora", name="math")
    with pytest.raises(UserError, match="did you mean 'math'"):
        use(tiny, ["maths"])


def test_a_table_gives_its_configuration_back():
    config = resolve("parallel", size=7, layers=[0, 2])
    assert resolve(None, **config.table()) == config


# ---------------------------------------------------------------- files
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_saved_and_loaded_answers_the_same(any_folder, tmp_path, method):
    model = load_model(str(any_folder))
    attach(model, **small(method, model), name="math", layers=[0, 2])
    randomise(model)
    save_adapter(model, tmp_path / "saved", name="math", run={"template": "alpaca"})
    other = load_model(str(any_folder))
    assert load_adapter(other, tmp_path / "saved", name="again") == {"template": "alpaca"}
    assert torch.equal(other(IDS), model(IDS))


def break_file(folder, what: str) -> None:
    path = folder / "adapter_model.safetensors"
    tensors, config = load_file(str(path)), json.loads((folder / "adapter_config.json").read_text())
    first = next(iter(tensors))
    if what == "misspelled key":
        tensors[first.replace("q_proj", "q_prj")] = tensors.pop(first)
    if what == "missing key":
        del tensors[first]
    if what == "shape":
        tensors[first] = tensors[first][:1].clone()
    if what == "nan":
        tensors[first][0, 0] = torch.nan
    if what == "family":
        config["llm_adapters"]["family"] = "opt"
    if what == "base":
        config["llm_adapters"]["base_fingerprint"] = "0" * 16
    if what == "option":
        config["llm_adapters"]["adapter"]["rang"] = 8
    if what == "foreign":
        del config["llm_adapters"]
    save_file(tensors, str(path))
    if what == "cut short":
        path.write_bytes(path.read_bytes()[:100])
    (folder / "adapter_config.json").write_text(json.dumps(config))
    if what == "no file":
        path.unlink()


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("misspelled key", "unknown tensor"), ("missing key", "missing"), ("shape", "the configuration asks for"), ("nan", "NaN"),
        ("family", "made for a opt model"), ("base", "another base model"), ("option", "rang"), ("foreign", "other programs"),
        ("cut short", "cannot be read"), ("no file", "is missing"),
    ],
)
def test_loading_is_strict_and_leaves_the_model_as_it_was(tiny, tmp_path, what, said):
    attach(tiny, "lora", r=2)
    save_adapter(tiny, tmp_path / "saved")
    use(tiny, [])
    break_file(tmp_path / "saved", what)
    with pytest.raises(UserError, match=said):
        load_adapter(tiny, tmp_path / "saved", name="other")
    assert all(list(site.adapters) in ([], ["default"]) and site.active == () for _, site in all_sites(tiny))


def test_an_adapter_of_another_base_of_the_same_shape_is_refused(tiny, tmp_path):
    attach(tiny, "parallel", size=3)
    save_adapter(tiny, tmp_path / "saved")
    other = load_model(str(write_checkpoint(tmp_path / "other", seed=1)))
    with pytest.raises(UserError, match="another base model"):
        load_adapter(other, tmp_path / "saved")


def test_non_finite_adapters_are_not_saved(tiny, tmp_path):
    attach(tiny, "lora", r=2)
    next(iter(parameters(tiny))).data[0, 0] = torch.inf
    with pytest.raises(UserError, match="NaN or infinite"):
        save_adapter(tiny, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_peft_reads_our_lora(any_folder, tmp_path):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    model = load_model(str(any_folder))
    attach(model, "lora", r=3, alpha=5.0, sites=["qkv" if model.family == "bloom" else "q", "o", "down"], layers="last 2")
    randomise(model)
    save_adapter(model, tmp_path / "saved", format="peft")
    base = transformers.AutoModelForCausalLM.from_pretrained(any_folder, dtype=torch.float32, attn_implementation="eager")
    theirs = peft.PeftModel.from_pretrained(base, str(tmp_path / "saved")).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(IDS), theirs(IDS).logits, rtol=1e-4, atol=1e-4)


def test_sites_by_family(tmp_path):
    """BLOOM has one Linear for q, k and v: presets say so, a table without the family's sites falls back to `any`."""
    bloom = load_model(str(write_checkpoint(tmp_path / "bloom", "bloom")))
    assert attach(bloom, "lora", r=2).sites == ("qkv",)
    assert attach(load_model(str(write_checkpoint(tmp_path / "opt", "opt"))), "lora", r=2).sites == ("q", "v")
    with pytest.raises(UserError, match="unknown site of bloom 'q'"):
        attach(bloom, "lora", name="other", sites=["q"])
    config = resolve("lora", sites={"any": ["o"], "opt": ["q", "up"]})
    assert resolve(None, **config.table()) == config
    assert (config.on("opt").sites, config.on("gptj").sites) == (("q", "up"), ("o",))
    for sites, said in (({"opt": ["q"]}, "no 'any'"), ({"any": ["q"], "opd": ["q"]}, "did you mean 'opt'"), ({"any": "q"}, "list of site names")):
        with pytest.raises(UserError, match=said):
            resolve("lora", sites=sites)


def test_formats_that_are_not_there_say_so(tiny, tmp_path):
    attach(tiny, "parallel", size=3)
    for name in ("peft", "paper"):
        with pytest.raises(UserError, match=name):
            save_adapter(tiny, tmp_path / name, format=name)
    with pytest.raises(UserError, match="did you mean 'native'"):
        save_adapter(tiny, tmp_path, format="nativ")

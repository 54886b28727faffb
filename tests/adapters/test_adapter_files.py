"""Our own adapter files: whatever is saved comes back, and anything that does not fit is refused
with the model left as it was.
"""

import json

import pytest
import torch
from conftest import write_checkpoint
from methods import ALL, IDS, IN_TURN, attach_small, randomise
from safetensors.torch import load_file, save_file

from adapters import (
    attach,
    load_adapter,
    load_adapters,
    named_parameters,
    parameters,
    save_adapter,
    save_adapters,
    use,
)
from adapters.attach import adapter_names, in_order
from adapters.config import resolve
from adapters.places import all_sites
from model import UserError, load_model


@pytest.mark.parametrize(
    ("any_family", "method"), dict.fromkeys([*(("llama", name) for name in ALL), *IN_TURN])
)
def test_saved_and_loaded_is_the_same_to_the_last_parameter(loaded, any_family, tmp_path, method):
    model, other = loaded(any_family), loaded(any_family)
    if method == "fusion":
        attach_small(model, method)
        randomise(model)
        save_adapters(model, tmp_path / "saved", run={"template": "alpaca"})
        assert load_adapters(other, tmp_path / "saved") == {"template": "alpaca"}
        name = "default"
    else:
        attach_small(model, method, as_name="math")
        randomise(model)
        save_adapter(model, tmp_path / "saved", name="math", run={"template": "alpaca"})
        assert load_adapter(other, tmp_path / "saved", name="again") == {"template": "alpaca"}
        name = "again"
    torch.testing.assert_close(other(IDS), model(IDS), rtol=1e-5, atol=1e-5)
    assert len(parameters(other)) == len(parameters(model))
    before = {
        path.replace("adapters.math", f"adapters.{name}"): parameter
        for path, parameter in named_parameters(model).items()
    }
    for path, parameter in named_parameters(other).items():
        torch.testing.assert_close(parameter, before[path], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", ["p-tuning-lstm", "prefix-projection", "pissa", "vera"])
def test_training_goes_on_from_a_file(folder, tmp_path, method):
    """What a method needs to be trained further is in the file: encoders, starts, shared
    matrices.
    """
    models = [load_model(str(folder)) for _ in range(2)]
    attach_small(models[0], method)
    randomise(models[0])
    save_adapter(models[0], tmp_path / "saved")
    torch.manual_seed(99)  # what the second draws at its start is of no account
    load_adapter(models[1], tmp_path / "saved")
    for model in models:
        optimizer = torch.optim.SGD(parameters(model), lr=1e-2)
        for _ in range(3):
            model(IDS).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(models[1](IDS), models[0](IDS), rtol=1e-4, atol=1e-4)


def break_file(folder, what: str) -> None:
    path = folder / "adapter_model.safetensors"
    tensors, config = load_file(str(path)), json.loads((folder / "adapter_config.json").read_text())
    first = next(iter(tensors))
    if what == "misspelled key":
        tensors[first.replace("q_proj", "q_prj")] = tensors.pop(first)
    if what == "missing key":
        del tensors[first]
    if what == "extra key":
        tensors[first + "_2"] = tensors[first].clone()
    if what == "shape":
        tensors[first] = tensors[first][:1].clone()
    if what == "nan":
        tensors[first][0, 0] = torch.nan
    if what == "integers":
        tensors[first] = tensors[first].int()
    if what == "family":
        config["llm_adapters"]["family"] = "opt"
    if what == "base":
        config["llm_adapters"]["base_fingerprint"] = "0" * 16
    if what == "option":
        config["llm_adapters"]["adapter"]["rang"] = 8
    if what == "section":
        config["llm_adapters"] = 5
    if what == "table":
        config["llm_adapters"]["adapter"] = []
    if what == "no type":
        config = {}
    save_file(tensors, str(path))
    if what == "cut short":
        path.write_bytes(path.read_bytes()[:100])
    (folder / "adapter_config.json").write_text(json.dumps(config))
    if what == "no file":
        path.unlink()
    if what == "no json":
        (folder / "adapter_config.json").write_text("{")
    if what == "link":
        path.rename(folder.parent / "elsewhere")
        path.symlink_to(folder.parent / "elsewhere")


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("misspelled key", r"q_proj.lora_A.weight' is missing; the file has .*q_prj"),
        ("missing key", "is missing"),
        ("extra key", "unknown tensor .*_2'"),
        ("shape", "the configuration asks for"),
        ("nan", "NaN"),
        ("integers", "not as floating point"),
        ("family", "made for a opt model"),
        ("base", "another base model"),
        ("option", "rang"),
        ("section", "no table 'adapter'"),
        ("table", "no table 'adapter'"),
        ("no type", "peft_type"),
        ("cut short", "cannot be read"),
        ("no file", "is missing"),
        ("no json", "cannot be read as JSON"),
        ("link", "outside"),
    ],
)
def test_loading_is_strict_and_leaves_the_model_as_it_was(tiny, tmp_path, what, said):
    attach(tiny, "lora", r=2)
    save_adapter(tiny, tmp_path / "saved")
    attach(tiny, "parallel", name="stays", size=2)
    use(tiny, ["stays"])
    break_file(tmp_path / "saved", what)
    with pytest.raises(UserError, match=said) as error:
        load_adapter(tiny, tmp_path / "saved", name="other")
    assert "\n" not in str(error.value)
    assert adapter_names(tiny) == ["default", "stays"]
    assert in_order(tiny) == ["stays"]
    assert all(
        site.active == tuple(one for name, one in site.adapters.items() if name == "stays")
        for _, site in all_sites(tiny)
    )


def test_an_encoder_that_does_not_make_its_prompt_is_refused(tiny, tmp_path):
    for method in ("p-tuning", "prefix-projection"):
        attach_small(tiny, method, as_name="soft")
        save_adapter(tiny, tmp_path / method, name="soft")
        path = tmp_path / method / "adapter_model.safetensors"
        tensors = load_file(str(path))
        tensors["prompt_embeddings"] += 1
        save_file(tensors, str(path))
        with pytest.raises(UserError, match="not what the encoder beside it makes"):
            load_adapter(tiny, tmp_path / method, name="other")
        from adapters import remove

        remove(tiny, "soft")


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


def test_an_older_file_of_the_other_kind_does_not_stay_beside_a_new_one(tiny, tmp_path):
    attach(tiny, "paper-lora", r=2)
    save_adapter(tiny, tmp_path / "saved", format="paper")
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {
        "adapter_config.json",
        "adapter_model.bin",
    }
    with pytest.raises(UserError, match="holds an adapter already"):
        save_adapter(tiny, tmp_path / "saved")
    save_adapter(tiny, tmp_path / "saved", overwrite=True)
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


def test_formats_are_named(tiny, tmp_path):
    attach(tiny, "parallel", size=3)
    with pytest.raises(UserError, match="did you mean 'native'"):
        save_adapter(tiny, tmp_path, format="nativ")
    with pytest.raises(UserError, match='plain=True is for format="peft"'):
        save_adapter(tiny, tmp_path, plain=True)
    with pytest.raises(UserError, match="did you mean 'default'"):
        save_adapter(tiny, tmp_path, name="defalt")


def test_parts_of_one_method_do_not_get_into_each_others_way(tiny, tmp_path):
    """Two bottlenecks at one site, two soft prompts: their keys begin with the name of the part."""
    table = {
        "a": {"preset": "series", "size": 2},
        "b": {"preset": "parallel", "size": 3},
        "p": {"preset": "prefix", "length": 2},
        "s": {"preset": "prompt"},
    }
    attach(tiny, resolve(**table))
    randomise(tiny)
    save_adapter(tiny, tmp_path / "saved")
    keys = load_file(str(tmp_path / "saved" / "adapter_model.safetensors"))
    assert {
        "a:base_model.model.model.layers.0.attn_site.adapter_down.weight",
        "p:prompt_embeddings",
        "s:prompt_embeddings",
    } <= keys.keys()
    load_adapter(tiny, tmp_path / "saved", name="again")
    use(tiny, ["default"])
    whole = tiny(IDS)
    use(tiny, ["again"])
    torch.testing.assert_close(tiny(IDS), whole)

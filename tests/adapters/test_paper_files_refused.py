"""Files of the paper's kind that we do not compute, or cannot write: refused by name."""

import json
import re

import pytest
import torch
from conftest import write_checkpoint
from paper_code import BLOOM_LORA, make, write_files

from adapters import attach, load_adapter, save_adapter
from adapters.config import resolve
from adapters.formats.folders import read_tensors
from adapters.places import all_sites
from model import UserError, load_model


# ---------------------------------------------------------------- what is refused
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"bias": "adapter_only"}, "bias = 'adapter_only'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"r": 8}, "r = 8: not computed here"),
        (
            {"use_dora": True, "rank_pattern": {"up_proj": 3}},
            "use_dora = True, rank_pattern = {'up_proj': 3}: not computed here",
        ),
        ({"non_linearity": "tan"}, "did you mean 'tanh'"),
        ({"non_linearity": "mish"}, "unknown non_linearity 'mish'"),
        ({"non_linearity": None}, "unknown non_linearity"),
        ({"init_weights": "zeros"}, "unknown init_weights"),
        ({"bottleneck_size": 5.0}, "bottleneck_size = 5.0"),
        ({"bottleneck_size": True}, "bottleneck_size = True"),
        ({"bottleneck_size": 0}, "size = 0 should be a whole number from 1"),
        ({"bottleneck_size": 6}, "the configuration asks for"),
        ({"adapter_dropout": 1.0}, "dropout = 1.0"),
        ({"scaling": "learnt"}, "scaling = 'learnt'"),
        ({"scaling": float("nan")}, "scaling = nan"),
        ({"scaling": "learned"}, "adapter_scaling' is missing"),
        ({"use_parallel_adapter": "yes"}, "use_parallel_adapter = 'yes'"),
        ({"use_parallel_adapter": True}, "the configuration asks for"),
        ({"target_modules": None}, "target_modules = None"),
        ({"target_modules": []}, "should name modules"),
        ({"target_modules": [1]}, "should name modules"),
        ({"target_modules": ["gate_prj", "up_proj"]}, "did you mean 'gate_proj'"),
        ({"target_modules": "model.*(gate_prj)"}, "unknown target module of a llama model"),
        ({"target_modules": "(("}, "not a regular expression"),
        ({"target_modules": ["q_proj"]}, "none at model.layers.0.self_attn.q_proj"),
        ({"target_modules": ["gate_proj", "up_proj"]}, "unknown tensor"),
        (
            {"target_modules": ["gate_proj", "up_proj", "down_proj", "q_proj"]},
            "none at model.layers.0.self_attn.q_proj",
        ),
    ],
    ids=str,
)
def test_what_a_file_says_and_we_do_not_compute_is_refused_by_name(
    tiny, folder, tmp_path, changes, said
):
    make(
        tmp_path / "theirs",
        load_model(str(folder)),
        target_modules=["gate_proj", "up_proj", "down_proj"],
    )
    raw = json.loads((tmp_path / "theirs" / "adapter_config.json").read_text()) | changes
    (tmp_path / "theirs" / "adapter_config.json").write_text(json.dumps(raw))
    with pytest.raises(UserError, match=re.escape(said)) as error:
        load_adapter(tiny, tmp_path / "theirs")
    assert "\n" not in str(error.value)
    assert not any(site.adapters for _, site in all_sites(tiny))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("missing", "is missing"),
        ("more", "unknown tensor"),
        ("misspelled", "adapter_down"),
        ("shape", "asks for"),
        ("nan", "NaN"),
    ],
)
def test_tensors_that_do_not_fit(tiny, folder, tmp_path, what, said):
    make(tmp_path / "theirs", load_model(str(folder)), target_modules=["down_proj"])
    tensors = read_tensors(tmp_path / "theirs")
    first = next(iter(tensors))
    if what == "missing":
        del tensors[first]
    if what == "more":
        tensors["base_model.model.lm_head.adapter_down.weight"] = torch.zeros(5, 32)
    if what == "misspelled":
        tensors[first.replace("down.weight", "dwn.weight")] = tensors.pop(first)
    if what == "shape":
        tensors[first] = tensors[first][:, :-1].clone()
    if what == "nan":
        tensors[first][0, 0] = torch.nan
    torch.save(tensors, tmp_path / "theirs" / "adapter_model.bin")
    with pytest.raises(UserError, match=said):
        load_adapter(tiny, tmp_path / "theirs")
    assert not any(site.adapters for _, site in all_sites(tiny))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"enable_lora": [True, True, True]}, "enable_lora = [True, True, True]"),
        (
            {"init_lora_weights": "pissa", "use_rslora": True},
            "use_rslora = True, init_lora_weights = 'pissa': not computed here",
        ),
        (
            {"target_modules": ["query_key_value"], "bias": "all"},
            "bias = 'all' means that biases of the base were trained too",
        ),
        ({"r": 8}, "[128, 8, 1]"),
        ({"r": 0}, "r = 0"),
        ({"lora_alpha": None}, "lora_alpha = None"),
        ({"lora_dropout": "no"}, "lora_dropout = 'no'"),
        ({"use_rslora": True}, "use_rslora = True: not computed here"),
        ({"target_modules": ["query_key_valu"]}, "did you mean 'query_key_value'"),
        (
            {"target_modules": ["dense_h_to_4h"]},
            "which cannot be a LoRA on the first and the last third",
        ),
        ({"target_modules": ["query_key_value", "lm_head"]}, "rows, which cannot be"),
    ],
    ids=str,
)
def test_blooms_lora_that_does_not_fit(tmp_path, changes, said):
    model = load_model(str(write_checkpoint(tmp_path / "bloom", "bloom", hidden_size=64)))
    tensors = {
        f"base_model.model.transformer.h.{layer}.self_attention.query_key_value"
        f".lora_{leaf}.weight": torch.randn(shape)
        for layer in range(3)
        for leaf, shape in (("A", (8, 64)), ("B", (128, 4, 1)))
    }
    write_files(tmp_path / "theirs", BLOOM_LORA | changes, tensors)
    with pytest.raises(UserError, match=re.escape(said)):
        load_adapter(model, tmp_path / "theirs")
    assert not any(site.adapters for _, site in all_sites(model))


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"preset": "parallel"}, "single Linears, and model.layers.0.attn_site is a sub-layer"),
        ({"preset": "paper-parallel", "gate": True}, "no gate"),
        (
            {"preset": "paper-parallel", "overrides": {"q": {"size": 7}}},
            "one size for all modules, and this adapter has 7, 256",
        ),
        ({"preset": "paper-parallel", "size": [3, 4, 5]}, "one size for all modules"),
        ({"preset": "paper-parallel", "overrides": {"q": {"act": "relu"}}}, "one act for all"),
        ({"preset": "paper-parallel", "overrides": {"v": {"scale": 4.0}}}, "one scale for all"),
        ({"preset": "paper-parallel", "overrides": {"v": {"dropout": 0.5}}}, "one dropout for all"),
        (
            {"preset": "paper-series-h", "overrides": {"down": {"reads": "input"}}},
            "at model.layers.0.mlp.down_proj",
        ),
        ({"preset": "paper-series-p", "sites": ["up"]}, "at model.layers.0.mlp.up_proj"),
        ({"preset": "paper-series-p", "sites": ["o"]}, "none at model.layers.0.self_attn.o_proj"),
        (
            {"preset": "paper-lora", "overrides": {"q": {"r": 3}}},
            "one r for all modules, and this adapter has 3, 8",
        ),
        ({"preset": "paper-lora", "overrides": {"q": {"alpha": 3}}}, "one scale"),
        ({"preset": "paper-lora", "gate": True}, "neither a gate nor a bias"),
        ({"preset": "lora-bias"}, "neither a gate nor a bias"),
        ({"preset": "lora", "sites": ["embed"], "dropout": 0.0}, "is a embedding"),
        ({"preset": "dora"}, "bottlenecks or LoRA alone, and this adapter is dora"),
        ({"preset": "prefix"}, "bottlenecks or LoRA alone, and this adapter is prefix"),
        ({"preset": "mam"}, "this adapter is prefix + bottleneck"),
        (
            {"one": {"preset": "paper-lora"}, "two": {"preset": "paper-lora"}},
            "a mixture with several",
        ),
    ],
    ids=str,
)
def test_what_the_papers_files_cannot_hold_is_refused_and_nothing_written(
    tiny, tmp_path, table, said
):
    attach(tiny, resolve(**table))
    with pytest.raises(UserError, match=re.escape(said)) as error:
        save_adapter(tiny, tmp_path / "saved", format="paper")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "saved").exists()

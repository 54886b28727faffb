"""The paper repository's adapter files: read into the computation its code does, written back, and what they cannot hold refused."""

import json
import re

import pytest
import torch
from conftest import write_checkpoint
from methods import IDS, randomise
from torch import nn

from adapters import attach, load_adapter, save_adapter
from adapters.attach import adapters_named
from adapters.config import resolve
from adapters.formats.folders import read_tensors
from adapters.places import all_sites
from model import UserError, load_model

FIRST = {
    "llama": ["gate_proj", "up_proj"],
    "bloom": ["dense_h_to_4h"],
    "opt": ["fc1"],
    "gptj": ["fc_in"],
}  # mh_adapter
LAST = {
    "llama": "down_proj",
    "bloom": "dense_4h_to_h",
    "opt": "fc2",
    "gptj": "fc_out",
}  # output_adapter
QKV = {
    "llama": ["q_proj", "k_proj", "v_proj"],
    "bloom": ["query_key_value"],
    "opt": ["q_proj", "k_proj", "v_proj"],
    "gptj": ["q_proj", "k_proj", "v_proj"],
}
ACTS = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "gelu": nn.functional.gelu,
    "silu": nn.functional.silu,
    "swish": nn.functional.silu,
    "linear": lambda x: x,
}
BLOOM_LORA = {
    "peft_type": "LORA",
    "r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.05,
    "target_modules": ["query_key_value"],
    "bias": "none",
    "fan_in_fan_out": False,
    "enable_lora": [True, False, True],
    "merge_weights": False,
    "modules_to_save": None,
}


class Theirs(nn.Module):
    """A Linear with an adapter as the formulas of the paper's code say."""

    def __init__(self, linear, raw: dict, kind: str, down, up, scale):
        super().__init__()
        self.weight, self.bias, self.raw, self.kind, self.down, self.up, self.scale = (
            linear.weight,
            linear.bias,
            raw,
            kind,
            down,
            up,
            scale,
        )

    def forward(self, x):
        def f(h):
            return ACTS[self.raw["non_linearity"]](h @ self.down.T) @ self.up.T * self.scale

        def linear(h):
            return h @ self.weight.T + (0 if self.bias is None else self.bias)

        if self.kind == "mh_adapter":
            return linear(x + f(x))
        return linear(x) + f(linear(x) if self.kind == "output_adapter" else x)


class TheirMerged(nn.Module):
    """A fused Linear with a LoRA on the first third of its rows and one on the last (their MergedLinear)."""

    def __init__(self, linear, A, B, scale):
        super().__init__()
        self.weight, self.bias, self.A, self.B, self.scale = linear.weight, linear.bias, A, B, scale

    def forward(self, x):
        y = x @ self.weight.T + self.bias
        inner = nn.functional.conv1d((x @ self.A.T).transpose(1, 2), self.B, groups=2).transpose(
            1, 2
        )
        first, last = inner.chunk(2, dim=-1)
        return y + self.scale * torch.cat((first, torch.zeros_like(first), last), dim=-1)


def targeted(model, targets) -> list[str]:
    linears = [path for path, site in all_sites(model) if site.kind == "Linear"]
    return [
        path
        for path in linears
        if (
            re.fullmatch(targets, path)
            if isinstance(targets, str)
            else any(path.endswith(one) for one in targets)
        )
    ]


def make(folder, model, **changes):
    """A file as the paper's code leaves it, of random numbers -> the logits that its code computes."""
    raw = {
        "peft_type": "BOTTLENECK",
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "base_model_name_or_path": "yahma/llama-7b-hf",
        "bottleneck_size": 5,
        "non_linearity": "tanh",
        "adapter_dropout": 0.0,
        "scaling": 1.0,
        "use_parallel_adapter": False,
        "use_adapterp": False,
        "init_weights": "bert",
        "bias": "none",
        "modules_to_save": None,
    } | changes
    generator = torch.Generator().manual_seed(7)
    tensors = {}
    for path in targeted(model, raw["target_modules"]):
        linear = model.get_submodule(path)
        leaf = path.rpartition(".")[2]
        kind = (
            "parallel_adapter"
            if raw["use_parallel_adapter"]
            else "mh_adapter"
            if leaf in FIRST[model.family]
            else "output_adapter"
        )
        read = linear.out_features if kind == "output_adapter" else linear.in_features
        write = linear.in_features if kind == "mh_adapter" else linear.out_features
        down, up = (
            0.3 * torch.randn(5, read, generator=generator),
            0.3 * torch.randn(write, 5, generator=generator),
        )
        tensors[f"base_model.model.{path}.adapter_down.weight"] = down
        tensors[f"base_model.model.{path}.adapter_up.weight"] = up
        scale = raw["scaling"]
        if scale == "learned":
            scale = tensors[f"base_model.model.{path}.adapter_scaling"] = (
                torch.rand(1, generator=generator) + 0.5
            )
        parent, _, leaf = path.rpartition(".")
        setattr(model.get_submodule(parent), leaf, Theirs(linear, raw, kind, down, up, scale))
    write_files(folder, raw, tensors)
    return model(IDS)


def make_merged(folder, model, **changes):
    """The same of BLOOM's LoRA."""
    raw = BLOOM_LORA | changes
    generator = torch.Generator().manual_seed(7)
    tensors = {}
    for layer, block in enumerate(model.transformer.h):
        A, B = (
            0.3 * torch.randn(8, 32, generator=generator),
            0.3 * torch.randn(64, 4, 1, generator=generator),
        )
        path = f"base_model.model.transformer.h.{layer}.self_attention.query_key_value"
        tensors |= {f"{path}.lora_A.weight": A, f"{path}.lora_B.weight": B}
        block.self_attention.query_key_value = TheirMerged(
            block.self_attention.query_key_value, A, B, raw["lora_alpha"] / raw["r"]
        )
    write_files(folder, raw, tensors)
    return model(IDS)


def write_files(folder, raw: dict, tensors: dict) -> None:
    folder.mkdir(exist_ok=True)
    torch.save(tensors, folder / "adapter_model.bin")
    (folder / "adapter_config.json").write_text(json.dumps(raw))


@pytest.mark.filterwarnings("ignore")  # of the base's name
@pytest.mark.parametrize(
    ("targets", "changes"),
    [
        (lambda f: [*FIRST[f], LAST[f]], {}),
        (lambda f: [LAST[f]], {"use_adapterp": True}),
        (lambda f: FIRST[f], {"scaling": 0.5, "non_linearity": "relu"}),
        (lambda f: [*FIRST[f], LAST[f]], {"scaling": "learned", "non_linearity": "gelu"}),
        (lambda f: QKV[f], {"use_parallel_adapter": True}),
        (
            lambda f: [QKV[f][-1], LAST[f]],
            {
                "use_parallel_adapter": True,
                "scaling": 4.0,
                "non_linearity": "swish",
                "init_weights": "mam_adapter",
            },
        ),
        (
            lambda f: [*FIRST[f], LAST[f]],
            {"use_parallel_adapter": True, "scaling": "learned", "non_linearity": "linear"},
        ),
        (lambda f: rf".*\.[02]\..*({'|'.join([*FIRST[f], LAST[f]])})", {"scaling": 2}),
    ],
    ids=[
        "series H",
        "series P",
        "series at the input",
        "series learned",
        "parallel",
        "parallel mixed",
        "parallel MLP",
        "expression",
    ],
)
def test_bottlenecks_compute_what_the_papers_code_does_and_are_written_back(
    any_folder, tmp_path, targets, changes
):
    model, reference = load_model(str(any_folder)), load_model(str(any_folder))
    expected = make(tmp_path / "theirs", reference, target_modules=targets(model.family), **changes)
    base = model(IDS)
    load_adapter(model, tmp_path / "theirs")
    torch.testing.assert_close(model(IDS), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(model(IDS), base, atol=1e-2)
    assert torch.equal(model(IDS), model(IDS))

    save_adapter(model, tmp_path / "again", format="paper")
    theirs, ours = (
        json.loads((tmp_path / name / "adapter_config.json").read_text())
        for name in ("theirs", "again")
    )
    back = read_tensors(tmp_path / "again")
    assert (tmp_path / "again" / "adapter_model.bin").is_file()
    assert {key: tensor.tolist() for key, tensor in back.items()} == {
        key: tensor.tolist() for key, tensor in read_tensors(tmp_path / "theirs").items()
    }
    assert targeted(load_model(str(any_folder)), ours["target_modules"]) == targeted(
        load_model(str(any_folder)), theirs["target_modules"]
    )
    for key in (
        "bottleneck_size",
        "scaling",
        "use_parallel_adapter",
        "init_weights",
        "peft_type",
        "bias",
    ):
        assert ours[key] == theirs[key], key
    assert ACTS[ours["non_linearity"]] is ACTS[theirs["non_linearity"]]
    assert isinstance(ours["scaling"], float | str)  # the paper's code knows no whole numbers there
    assert isinstance(ours["target_modules"], list)
    again = load_model(str(any_folder))
    load_adapter(again, tmp_path / "again")
    assert torch.equal(again(IDS), model(IDS))


@pytest.mark.parametrize(
    "preset", ["paper-series-h", "paper-series-p", "paper-parallel", "paper-lora"]
)
def test_the_papers_presets_can_be_written_and_are_read_as_they_were(any_folder, tmp_path, preset):
    model, other = load_model(str(any_folder)), load_model(str(any_folder))
    config = attach(model, preset, **({"r": 3} if preset == "paper-lora" else {"size": 3}))
    randomise(model)
    save_adapter(model, tmp_path / "saved", format="paper")
    load_adapter(other, tmp_path / "saved")
    assert torch.equal(other(IDS), model(IDS))
    theirs = next(iter(adapters_named(other, "default").values())).config
    assert {**theirs.only.table(), "overrides": None} == {**config.only.table(), "overrides": None}


def test_some_layers_are_written_as_whole_paths(tiny, folder, tmp_path):
    attach(tiny, "paper-series-h", size=3, layers=[0, 2])
    randomise(tiny)
    save_adapter(tiny, tmp_path / "saved", format="paper")
    targets = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())["target_modules"]
    assert targets[0] == "model.layers.0.mlp.gate_proj"
    assert len(targets) == 6
    other = load_model(str(folder))
    load_adapter(other, tmp_path / "saved")
    assert torch.equal(other(IDS), tiny(IDS))


# ---------------------------------------------------------------- LoRA
@pytest.mark.filterwarnings("ignore")
def test_blooms_lora_on_the_first_and_last_third(tmp_path):
    folder = write_checkpoint(tmp_path / "bloom", "bloom")
    model = load_model(str(folder))
    expected = make_merged(tmp_path / "theirs", load_model(str(folder)))
    base = model(IDS)
    load_adapter(model, tmp_path / "theirs")
    torch.testing.assert_close(model(IDS), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(model(IDS), base, atol=1e-2)
    save_adapter(model, tmp_path / "again", format="paper")
    raw = json.loads((tmp_path / "again" / "adapter_config.json").read_text())
    assert {key: raw[key] for key in BLOOM_LORA} == BLOOM_LORA
    back, first = read_tensors(tmp_path / "again"), read_tensors(tmp_path / "theirs")
    assert back.keys() == first.keys()
    assert all(torch.equal(back[key], first[key]) for key in first)
    eight_bit = tmp_path / "eight bit"  # files of models in 8 bits keep what their code starts with
    make_merged(eight_bit, load_model(str(folder)), fan_in_fan_out=True)
    other = load_model(str(folder))
    load_adapter(other, eight_bit)
    assert torch.equal(other(IDS), model(IDS))


OF_ITS_TIME = {  # fields around such a LoRA, of PEFT 0.2, 0.3.0.dev and later; a warning's words
    "0.3.0.dev": ({"init_lora_weights": True, "fan_in_fan_out": True}, None),
    "initialised otherwise": (
        {"init_lora_weights": "gaussian", "merge_weights": True, "revision": None},
        None,
    ),
    "null in later versions": (
        {"layers_to_transform": None, "rank_pattern": {}, "use_dora": False, "bias": None},
        None,
    ),
    "null targets": ({"target_modules": None}, None),
    "names of other models": (
        {"target_modules": ["query_key_value", "c_attn"]},
        "target_modules names 'c_attn', which this bloom model",
    ),
    "keys of other programs": (
        {"peft_type": "lora", "task": "qa", "domain": ""},
        "passed over task = 'qa': no setting of LORA",
    ),
}


@pytest.mark.parametrize("row", OF_ITS_TIME)
def test_blooms_lora_as_it_was_published(tmp_path, recwarn, row):
    changes, says = OF_ITS_TIME[row]
    folder = write_checkpoint(tmp_path / "bloom", "bloom")
    model = load_model(str(folder))
    changes = changes | {"base_model_name_or_path": str(folder)}
    expected = make_merged(tmp_path / "theirs", load_model(str(folder)), **changes)
    load_adapter(model, tmp_path / "theirs")
    torch.testing.assert_close(model(IDS), expected, rtol=1e-4, atol=1e-4)
    assert len(recwarn) == (says is not None)
    assert says is None or re.search(says, str(recwarn[0].message))


def test_bottlenecks_with_names_of_other_models_and_keys_of_other_programs(tiny, folder, tmp_path):
    targets = ["up_proj", "gate_proj", "down_proj", "dense_h_to_4h", "fc1"]
    changes = {"target_modules": targets, "reduction": 4, "base_model_name_or_path": str(folder)}
    expected = make(tmp_path / "theirs", load_model(str(folder)), **changes)
    with pytest.warns(UserWarning, match="passed over reduction = 4") as caught:
        load_adapter(tiny, tmp_path / "theirs")
    torch.testing.assert_close(tiny(IDS), expected, rtol=1e-4, atol=1e-4)
    assert len(caught) == 2
    assert "passed over reduction = 4: no setting of BOTTLENECK" in str(caught[0].message)
    lacks = "target_modules names 'dense_h_to_4h', 'fc1', which this llama model does not have"
    assert lacks in str(caught[1].message)


@pytest.mark.parametrize(
    ("options", "alpha"), [({"alpha": 6.0}, 6.0), ({"alpha": 6.0, "rslora": True}, 6.0 * 4**0.5)]
)
def test_plain_lora_has_pefts_keys_and_the_papers_fields(any_folder, tmp_path, options, alpha):
    model = load_model(str(any_folder))
    attach(model, "paper-lora", r=4, **options)
    randomise(model)
    save_adapter(model, tmp_path / "saved", format="paper")
    raw, tensors = (
        json.loads((tmp_path / "saved" / "adapter_config.json").read_text()),
        read_tensors(tmp_path / "saved"),
    )
    targets = ["query_key_value"] if model.family == "bloom" else ["q_proj", "v_proj"]
    assert (
        raw["r"],
        raw["target_modules"],
        raw["enable_lora"],
        raw["fan_in_fan_out"],
        raw["merge_weights"],
    ) == (4, targets, None, False, False)
    assert raw["lora_alpha"] == pytest.approx(alpha)
    assert all(
        re.fullmatch(
            r"base_model\.model\..*\.(q_proj|v_proj|query_key_value)\.lora_[AB]\.weight", key
        )
        for key in tensors
    )
    assert len(tensors) == 3 * 2 * len(targets)


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
        f"base_model.model.transformer.h.{layer}.self_attention.query_key_value.lora_{leaf}.weight": torch.randn(
            shape
        )
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

"""Mistral, Qwen2 and Qwen3, the rows of llama.py: what test_parity.py does not compare of them."""

import json
import warnings
from itertools import cycle, product

import pytest
import torch
from conftest import write_checkpoint
from families import LAYER_TYPES, MISTRAL, QWEN2, QWEN3, WINDOW, batch, difference
from likelihoods import PAIRS, assert_same, directly
from merged import merged_and_exported
from methods import BEYOND_A_LINEAR, CROSSED, IDS, attach_small, randomise
from peft_bases import compare, generates_as_in_one_pass, loaded_by_peft, theirs_from
from plans import model_of, peak, step_of
from reference import PROMPTS, by_transformers, positions_of, reference

from adapters import attach, load_adapter, merge, parameters, save_adapter
from adapters.config import resolve
from adapters.formats.merged_model import export_model
from benchmarks.random_weights import random_checkpoint
from eval.generate import generate, left_pad
from eval.likelihood import log_likelihoods
from model import UserError, load_model
from model.config import describe
from train.plan.dry_run import answer
from train.settings import Eval

ROWS = {"mistral": MISTRAL, "qwen2": QWEN2, "qwen3": QWEN3}
MIXED = QWEN2 | WINDOW | {"layer_types": LAYER_TYPES}
WINDOWED = {"mistral": MISTRAL, "qwen2": MIXED, "qwen3": QWEN3 | WINDOW | {"max_window_layers": 1}}


@pytest.fixture(params=ROWS)
def row(request) -> str:
    return request.param


@pytest.fixture
def folder(tmp_path, row):
    """A checkpoint whose layers have sliding windows, all of them or some."""
    return write_checkpoint(tmp_path / f"tiny-{row}", **WINDOWED[row])


@pytest.mark.parametrize("side", ["left", "plain"])
def test_gradients_of_all_weights_equal_transformers(folder, side):
    ours, theirs = load_model(str(folder)), reference(folder)
    ours.requires_grad_(True)
    ids, mask = batch(side)
    ours(ids, mask)[mask.bool()].logsumexp(-1).square().sum().backward()
    expected = theirs(ids, attention_mask=mask, **positions_of(theirs, mask)).logits
    expected[mask.bool()].logsumexp(-1).square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
    assert gradients.keys() == {name for name, _ in theirs.named_parameters()}
    for name, parameter in theirs.named_parameters():
        # a bias of k alone changes nothing: all scores of a query by the same
        scale = parameter.grad.std() + (1e-2 if name.endswith("k_proj.bias") else 0)
        assert (gradients[name] - parameter.grad).abs().max() < 1e-4 * scale, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_close_as_the_reference(tmp_path, row, dtype):
    folder = write_checkpoint(tmp_path, dtype=dtype, **WINDOWED[row])
    ids, mask = batch("left")
    exact = load_model(str(folder), dtype=torch.float32)(ids, mask)
    theirs = reference(folder, dtype)
    with torch.no_grad():
        expected = theirs(ids, attention_mask=mask, **positions_of(theirs, mask)).logits.float()
    ours, real = load_model(str(folder))(ids, mask), mask.bool()
    apart, theirs_apart = ((logits - exact)[real].abs().mean() for logits in (ours, expected))
    assert 0 < apart < 1.3 * theirs_apart


def test_who_sees_whom_by_hand(tmp_path):
    """Window 3: token 6 of a text sees tokens 4, 5 and 6, and behind a prefix of 2 tokens the
    first real token sees both of them, the second one of them and the third none."""
    model = load_model(str(write_checkpoint(tmp_path, **MISTRAL | {"sliding_window": 3})))
    tokens = model.tokens(IDS[:1], None, None, None)
    seen = [row.nonzero().flatten().tolist() for row in tokens.may_look(3)[0, 0]]
    assert seen == [[0], [0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5], [4, 5, 6]]
    attach(model, "prefix", length=2)
    tokens = model.tokens(IDS[:1, :3], None, None, None)
    seen = [row.nonzero().flatten().tolist() for row in tokens.may_look(3)[0, 0]]
    assert seen == [[0, 1, 2], [1, 2, 3], [2, 3, 4]]


def test_a_token_out_of_every_window_changes_nothing(tmp_path):
    """3 layers of window 4: what token t computes depends on tokens t - 9 to t."""
    model = load_model(str(write_checkpoint(tmp_path, **MISTRAL)))
    ids = torch.randint(3, 61, (1, 14), generator=torch.Generator().manual_seed(5))
    other = ids.clone()
    other[0, 2] = 3 + (ids[0, 2] - 2) % 58
    same = (model(ids) == model(other)).all(-1)[0].tolist()
    assert same == [True] * 2 + [False] * 10 + [True] * 2


def test_a_text_within_the_window_needs_no_mask(tmp_path):
    """The fused causal kernel stays, also where a window that is off is in the config."""
    off = QWEN2 | WINDOW | {"use_sliding_window": False}
    for changes in (MISTRAL | {"sliding_window": 9}, off):
        model = load_model(str(write_checkpoint(tmp_path, **changes)))
        ids, _ = batch("plain")
        tokens = model.tokens(ids, None, None, None)
        step = model.step(tokens, None)
        assert step.mask is None
        assert step.window_mask is None


def test_beams_and_likelihoods_equal_transformers(folder):
    model, theirs = load_model(str(folder)), reference(folder)
    for beams in (2, 3):
        found = generate(model, *left_pad(PROMPTS, 0, "cpu"), max_new_tokens=10, beams=beams)
        settings = {"num_beams": beams, "max_new_tokens": 10}
        assert found == by_transformers(theirs, PROMPTS, [], **settings)
    expected = [directly(lambda ids: theirs(ids).logits, *pair) for pair in PAIRS]
    assert_same(log_likelihoods(model, PAIRS, batch_size=4), expected)


PEFTS = {
    "lora": ("LoraConfig", {"r": 3, "target_modules": ["q_proj", "v_proj", "down_proj"]}),
    "ia3": (
        "IA3Config",
        {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    ),
    "norms": ("LNTuningConfig", {"target_modules": ["input_layernorm", "norm"]}),
    "prefix": ("PrefixTuningConfig", {"num_virtual_tokens": 3}),
    "long prefix": ("PrefixTuningConfig", {"num_virtual_tokens": 6}),
    "prompt": ("PromptTuningConfig", {"num_virtual_tokens": 3}),
}


@pytest.mark.filterwarnings("ignore:.*past_key_values:FutureWarning")
@pytest.mark.parametrize(
    ("row", "method"),
    [
        *product(ROWS, ["prefix", "long prefix", "prompt"]),
        *(("mistral", "lora"), ("qwen2", "ia3"), ("qwen3", "norms"), ("qwen2", "lora")),
    ],
)
def test_adapters_equal_peft(folder, tmp_path, method):
    """Logits and gradients of PEFT's adapters, and PEFT's logits of ours; soft prompts and
    prefixes move out of the windows as real tokens do."""
    peft = pytest.importorskip("peft")
    base, (kind, options) = reference(folder), PEFTS[method]
    theirs = theirs_from(base, getattr(peft, kind)(task_type="CAUSAL_LM", **options))
    theirs.save_pretrained(tmp_path / "theirs")
    ours, soft = load_model(str(folder)), "prefix" in method or method == "prompt"
    load_adapter(ours, tmp_path / "theirs")
    compare(ours, theirs, soft=soft)
    if soft:
        generates_as_in_one_pass(ours)
    save_adapter(ours, tmp_path / "ours", format="peft")
    compare(ours, loaded_by_peft(base, tmp_path / "ours"), gradients=False, soft=soft)


IN_WINDOWS = [
    *product(["qwen2", "qwen3"], BEYOND_A_LINEAR),
    *zip(cycle(["qwen2", "qwen3"]), sorted(CROSSED.difference(BEYOND_A_LINEAR))),
]


@pytest.mark.parametrize(("row", "method"), IN_WINDOWS)
def test_every_method_attaches_and_learns(folder, method):
    model = load_model(str(folder))
    attach_small(model, method)
    randomise(model)
    ids = torch.cat((IDS, IDS), dim=1)  # past the windows
    model(ids).logsumexp(-1).square().sum().backward()
    assert all(parameter.grad is not None for parameter in parameters(model))
    assert sum(parameter.grad.abs().sum() for parameter in parameters(model)) > 0


def test_adapters_on_the_norms_of_q_and_k(tmp_path):
    model = load_model(str(write_checkpoint(tmp_path / "base", **QWEN3)))
    attach(model, resolve(kind="ln_tuning", sites=["q_norm", "k_norm"]))
    randomise(model)
    merged_and_exported(model, tmp_path / "merged")


@pytest.mark.parametrize(
    ("row", "method"),
    [*((row, "lora") for row in ROWS), ("qwen2", "ia3"), ("qwen3", "full embedding and norm")],
)
def test_a_merged_model_is_read_by_transformers(folder, tmp_path, method, row):
    model = load_model(str(folder))
    attach_small(model, method)
    randomise(model)
    merged_and_exported(model, tmp_path / "merged")
    raw = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert raw["model_type"] == row
    assert raw["architectures"] == [f"{row.capitalize()}ForCausalLM"]


def test_biases_that_transformers_has_no_place_for_are_not_exported(tmp_path):
    """Qwen2 has biases of q, k and v; Mistral has none; Qwen3 has all four or none."""
    table = {"kind": "bitfit", "sites": ["q", "k", "v"]}
    for name, changes in ROWS.items():
        model = load_model(str(write_checkpoint(tmp_path / name, **changes)))
        attach(model, resolve(**table))
        randomise(model)
        if name != "mistral":
            merged_and_exported(model, tmp_path / f"{name} merged")
            assert (model.blocks[0].self_attn.o_proj.bias is None) == (name == "qwen2")
            continue
        merge(model)
        with pytest.raises(UserError, match="mistral architecture has no place for"):
            export_model(model, tmp_path / "nowhere")


def test_a_window_is_in_the_plan():
    """The mask of a text longer than the window is counted, in a step and in an answer."""
    for changes in (MISTRAL, MISTRAL | {"sliding_window": 12}, MIXED):
        models = [model_of("llama", memory=memory, **changes) for memory in (False, True)]
        dry, wet = (step_of(model) for model in models)
        assert peak(dry) == peak(wet)
        models = [model_of("llama", memory=memory, **changes) for memory in (False, True)]
        dry, wet = (answer(model, Eval(batch_size=2, max_new_tokens=5), 9) for model in models)
        assert dry.peak([0] * 5) == wet.peak([0] * 5)


def test_random_weights_of_a_row_have_its_config(folder, tmp_path):
    """A null that is no default, such as Mistral's sliding_window, stays null."""
    raw = json.loads((folder / "config.json").read_text()) | {"sliding_window": None}
    raw |= {"layer_types": None, "use_sliding_window": False}
    (folder / "config.json").write_text(json.dumps(raw))
    random_checkpoint(str(folder), tmp_path / "random")
    assert describe(str(tmp_path / "random"))[1] == describe(str(folder))[1]


@pytest.mark.parametrize(
    ("base", "change", "said"),
    [
        (MISTRAL, {"use_sliding_window": False}, "holds in every layer of a mistral model"),
        (MISTRAL, {"max_window_layers": 2}, "holds in every layer of a mistral model"),
        (MISTRAL, {"attention_bias": True}, "attention_bias = true is no setting of a mistral"),
        (QWEN2, {"attention_bias": True}, "attention_bias = true is no setting of a qwen2"),
        (QWEN3, {"mlp_bias": True}, "mlp_bias = true is no setting of a qwen3"),
        (QWEN2, {"layer_types": ["full_attention"]}, "for each of the 3 layers"),
        (QWEN2, {"layer_types": ["full_attention", 1, []]}, "for each of the 3 layers"),
        (QWEN2, {"layer_types": ["chunked_attention"] * 3}, "for each of the 3 layers"),
        (QWEN2, {"layer_types": LAYER_TYPES}, "sliding_attention, and sliding_window or"),
        (QWEN3, {"sliding_window": 0}, "sliding_window = 0 is out of range"),
        ({}, {"sliding_window": 5}, "a llama model, which sees all keys"),
        ({}, {"layer_types": LAYER_TYPES}, "sliding_attention, and sliding_window or"),
    ],
)
def test_windows_and_biases_that_contradict_are_refused(tmp_path, base, change, said):
    folder = write_checkpoint(tmp_path, **base)
    raw = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(raw))
    with pytest.raises(UserError, match=said) as error:
        load_model(str(folder))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("base", "change"),
    [
        (MISTRAL, {"sliding_window": None}),
        (MISTRAL, {"sliding_window": False}),
        (MISTRAL, {"layer_types": ["sliding_attention"] * 3, "head_dim": 8}),
        (MISTRAL, {"layer_types": LAYER_TYPES, "head_dim": 8}),  # Ministral, in transformers
        (MISTRAL, {"num_key_value_heads": 2, "head_dim": None, "use_sliding_window": None}),
        (QWEN2, {"use_sliding_window": False, "sliding_window": 4, "max_window_layers": 0}),
        (QWEN2, {"use_sliding_window": True, "sliding_window": None}),
        (QWEN2, {"use_sliding_window": None, "attention_bias": None, "mlp_bias": False}),
        (QWEN3, {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 3}),
        (QWEN3, {"layer_types": ["full_attention"] * 3, "max_window_layers": None}),
    ],
)
def test_windows_that_are_off_are_off(tmp_path, base, change):
    """As transformers reads the same config.json, in logits; nulls that it refuses left out."""
    folder = write_checkpoint(tmp_path, **base)
    raw = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(raw))
    ours = load_model(str(folder))
    strict = {
        key: value
        for key, value in raw.items()
        if value is not None or key in ("sliding_window", "head_dim", "layer_types")
    }
    if strict.get("sliding_window") is False:
        strict["sliding_window"] = None
    (folder / "config.json").write_text(json.dumps(strict))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = reference(folder)
    ids, mask = batch("left")
    with torch.no_grad():
        expected = theirs(ids, attention_mask=mask, **positions_of(theirs, mask)).logits
    assert difference(ours(ids, mask), expected, mask) < 1e-4

"""PEFT's adapter files: PEFT's read by us and ours read by PEFT, logits and gradients compared
with the live library; and files that are broken.
"""

import copy
import json
import re
import warnings

import pytest
import torch
from families import batch, crossed, difference
from peft_bases import (
    ALL,
    BLOCKS,
    EMBED,
    FAMILIES,
    QV,
    loaded_by_peft,
    randomised,
    run_theirs,
    theirs_from,
    tiny_bases,
)
from safetensors.torch import load_file

from adapters import attach, load_adapter, save_adapter
from adapters.attach import adapters_named
from adapters.config import resolve
from adapters.formats.folders import CONFIG, WEIGHTS, native_tensors
from eval.generate import generate
from model import UserError, load_model

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LoRA tensor.*have invalid shape:UserWarning"
)  # PEFT, about its own biases of B
SEEN = [int(token) for token in batch("plain")[0][0, :4]]  # ids of the batch that is compared
FINAL = {"llama": "norm", "bloom": "ln_f", "opt": "decoder.final_layer_norm", "gptj": "ln_f"}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    return tiny_bases(tmp_path_factory.mktemp("peft"))


def file_key(name: str) -> str:
    """PEFT's name of a parameter -> how its file calls it; a bias goes by the module's path
    alone.
    """
    if name.startswith("prompt_encoder"):
        return "prompt_embeddings"
    name = (
        name.replace(".modules_to_save.default", "")
        .replace(".default", "")
        .replace("base_layer.bias", "bias")
    )
    return name.replace("lora_magnitude_vector.weight", "lora_magnitude_vector").replace(
        "token_adapter.trainable_tokens_delta.weight", "trainable"
    )


def our_gradients(model) -> dict[str, torch.Tensor]:
    adapters = adapters_named(model, "default")
    config = next(iter(adapters.values())).config
    kind = config.kind
    if kind == "prefix":
        return {
            "prompt_embeddings": torch.cat([one.prefix.grad for one in adapters.values()], dim=1)
        }
    if kind == "prompt":
        return {"prompt_embeddings": next(iter(adapters.values())).prompt.grad}
    return {
        key.rpartition(":")[2]: tensor.grad
        for key, tensor in native_tensors(config, adapters).items()
        if tensor.requires_grad
    }


def compare(ours, theirs, gradients: bool = True, soft: bool = False) -> None:
    """The same logits over real tokens, and the same gradients of one loss, to 1e-4; padded on
    the left where positions can be given.
    """
    ids, mask = batch("plain" if soft else "left")
    found, expected = ours(ids, mask), run_theirs(theirs, ids, mask, soft)
    assert difference(found.detach(), expected.detach(), mask) < 1e-4
    if not gradients:
        return
    for logits in (found, expected):
        logits[mask.bool()].square().mean().backward()
    right = {
        file_key(name): parameter.grad
        for name, parameter in theirs.named_parameters()
        if parameter.requires_grad
    }
    left = our_gradients(ours)
    assert left.keys() == right.keys()
    largest = max(gradient.abs().max() for gradient in right.values())
    for key, gradient in left.items():
        assert gradient.abs().max() > 0, key
        scale = right[key].abs().max()
        if key.endswith("k_proj.bias") and scale < 1e-6 * largest:
            # noise around zero: softmax does not see what all keys have in common, where
            # positions do not rotate it
            continue
        assert (gradient - right[key]).abs().max() / scale < 1e-4, key


def differs_from_base(ours) -> None:
    """So that nothing is compared with an adapter that does nothing."""
    from adapters import use

    ids, mask = batch("left")
    with torch.no_grad():
        on = ours(ids, mask)
        use(ours, [])
        assert difference(on, ours(ids, mask), mask) > 1e-2
        use(ours, ["default"])


def lora(**options):
    return lambda family: (
        "LoraConfig",
        {"r": 4, "lora_alpha": 6, "lora_dropout": 0.1, "target_modules": QV[family]} | options,
    )


def last(family: str, n: int = 2) -> str:
    return f"{BLOCKS[family]}.{n}"


# a row of the table in formats.md -> the class of PEFT's configuration and its arguments
THEIRS = {
    "lora": lora(),
    "lora defaults": lambda family: ("LoraConfig", {}),
    "rslora": lora(use_rslora=True),
    "dora": lora(use_dora=True),
    "dora rslora": lora(use_dora=True, use_rslora=True),
    "lora_bias": lora(lora_bias=True),
    "patterns": lambda family: lora(
        target_modules=ALL[family],
        rank_pattern={
            rf".*\.1\..*{QV[family][-1]}": 5,
            f"{last(family)}.*": 3,
            f"z*{QV[family][0]}": 2,
        },
        alpha_pattern={f"{last(family, 0)}.*": 7, f"z*{QV[family][-1]}": 3},
    )(family),
    "patterns rslora": lambda family: lora(
        use_rslora=True, rank_pattern={f"{last(family)}.*": 9}, alpha_pattern={".*": 2.5}
    )(family),
    "layers": lora(layers_to_transform=[0, 2]),
    "one layer": lambda family: lora(
        layers_to_transform=1, layers_pattern=BLOCKS[family].rpartition(".")[2]
    )(family),
    "layers and a whole path": lambda family: lora(
        target_modules=[QV[family][0], "lm_head"], layers_to_transform=[2]
    )(family),
    "regex": lambda family: lora(target_modules=rf".*\.(0|2)\..*({'|'.join(ALL[family][:2])})")(
        family
    ),
    "all-linear": lora(target_modules="all-linear", r=2),
    "excluded": lambda family: lora(
        target_modules="all-linear", exclude_modules=[ALL[family][-1], f"{last(family, 1)}.fc1"]
    )(family),
    "excluded by regex": lambda family: lora(
        target_modules=ALL[family], exclude_modules=r".*\.1\..*"
    )(family),
    "head": lambda family: lora(target_modules=[*QV[family], "lm_head"])(family),
    "head saved": lora(modules_to_save=["lm_head"]),
    "embedding and norm saved": lambda family: lora(modules_to_save=[EMBED[family], FINAL[family]])(
        family
    ),
    "modules saved by the end of a name": lambda family: lora(
        modules_to_save=["norm"] if family != "gptj" else ["_1"]
    )(family),
    "whole MLPs saved": lambda family: lora(
        modules_to_save=["mlp"] if family != "opt" else ["fc1", "fc2"]
    )(family),
    "bias all": lora(bias="all"),
    "bias lora_only": lora(bias="lora_only"),
    "bias all, dora": lora(bias="all", use_dora=True),
    "embedding": lambda family: lora(target_modules=[*QV[family], EMBED[family]])(family),
    "embedding rslora": lambda family: lora(
        target_modules=[EMBED[family]], use_rslora=True, rank_pattern={EMBED[family]: 5}
    )(family),
    "tokens": lora(trainable_token_indices=[SEEN[2], SEEN[0], SEEN[3]]),
    "tokens by module": lambda family: lora(
        trainable_token_indices={EMBED[family]: [SEEN[3], SEEN[1]]}
    )(family),
    "everything": lambda family: lora(
        bias="all",
        lora_bias=True,
        use_rslora=True,
        modules_to_save=[FINAL[family]],
        trainable_token_indices=[SEEN[2], SEEN[1]],
    )(family),
    "ia3": lambda family: ("IA3Config", {}),
    "ia3 regex": lambda family: (
        "IA3Config",
        {
            "target_modules": ".*(" + "|".join(ALL[family]) + ")",
            "feedforward_modules": f".*{ALL[family][-1]}",
        },
    ),
    "ia3, head saved": lambda family: ("IA3Config", {"modules_to_save": ["lm_head"]}),
    "adalora": lambda family: (
        "AdaLoraConfig",
        {
            "init_r": 5,
            "target_r": 2,
            "lora_alpha": 9,
            "r": 8,
            "total_step": 50,
            "tinit": 5,
            "tfinal": 10,
        },
    ),
    "adalora, head saved, biases": lambda family: (
        "AdaLoraConfig",
        {
            "init_r": 5,
            "target_r": 2,
            "lora_alpha": 9,
            "total_step": 50,
            "modules_to_save": ["lm_head"],
            "bias": "lora_only",
        },
    ),
    "hira": lambda family: (
        "HiraConfig",
        {"r": 4, "target_modules": ALL[family], "rank_pattern": {QV[family][0]: 3}},  # not obeyed
    ),
    "hira, head saved": lambda family: ("HiraConfig", {"r": 4, "modules_to_save": ["lm_head"]}),
    "miss": lambda family: ("MissConfig", {"r": 6, "target_modules": ALL[family]}),
    "miss in layers": lambda family: (
        "MissConfig",
        {"r": 8, "target_modules": QV[family], "layers_to_transform": [0, 2]},
    ),
    "road_1": lambda family: ("RoadConfig", {"variant": "road_1", "group_size": 8}),
    "road_2": lambda family: (
        "RoadConfig",
        {"variant": "road_2", "group_size": 4, "target_modules": ALL[family]},
    ),
    "road_4": lambda family: (
        "RoadConfig",
        {"variant": "road_4", "group_size": 8, "target_modules": ALL[family]},
    ),
    "oft": lambda family: ("OFTConfig", {"oft_block_size": 4, "target_modules": ALL[family]}),
    "oft, exact": lambda family: (
        "OFTConfig",
        {"r": 4, "oft_block_size": 0, "use_cayley_neumann": False},
    ),
    "oft, 7 terms": lambda family: (
        "OFTConfig",
        {"oft_block_size": 8, "num_cayley_neumann_terms": 7},
    ),
    "shira": lambda family: ("ShiraConfig", {"r": 2, "target_modules": ALL[family]}),
    "shira of a seed": lambda family: ("ShiraConfig", {"r": 1, "random_seed": 5}),
    "vera": lambda family: (
        "VeraConfig",
        {"r": 8, "target_modules": ALL[family], "vera_dropout": 0.1},
    ),
    "vera without projection": lambda family: (
        "VeraConfig",
        {
            "r": 8,
            "target_modules": ALL[family],
            "save_projection": False,
            "projection_prng_key": 11,
        },
    ),
    "vera in one layer": lambda family: ("VeraConfig", {"r": 8, "layers_to_transform": [1]}),
    "ln tuning": lambda family: (
        "LNTuningConfig",
        {"target_modules": [FINAL[family]] if family == "opt" else None},
    ),
    "ln tuning in some": lambda family: (
        "LNTuningConfig",
        {"target_modules": r".*\.(0|1)\.(.*norm|ln_1)"},
    ),
    "ln tuning of the last norm": lambda family: (
        "LNTuningConfig",
        {"target_modules": [FINAL[family]]},
    ),
    "prefix": lambda family: ("PrefixTuningConfig", {"num_virtual_tokens": 4}),
    "prefix projection": lambda family: (
        "PrefixTuningConfig",
        {"num_virtual_tokens": 4, "prefix_projection": True, "encoder_hidden_size": 6},
    ),
    "prompt": lambda family: ("PromptTuningConfig", {"num_virtual_tokens": 4}),
    "p-tuning": lambda family: (
        "PromptEncoderConfig",
        {"num_virtual_tokens": 4, "encoder_hidden_size": 6},
    ),
    "p-tuning lstm": lambda family: (
        "PromptEncoderConfig",
        {
            "num_virtual_tokens": 4,
            "encoder_hidden_size": 6,
            "encoder_reparameterization_type": "LSTM",
        },
    ),
}
SOFT = ("prefix", "prefix projection", "prompt", "p-tuning", "p-tuning lstm")


IN_EVERY_FAMILY = (
    *("lora", "dora", "patterns", "all-linear", "head", "embedding and norm saved"),
    *("whole MLPs saved", "bias all", "embedding", "tokens", "everything", "ia3"),
    *("ln tuning", "prefix", "ln-tuning"),
    *("lora on the embedding", "lora with overrides"),
)


@pytest.mark.parametrize(("family", "row"), crossed(THEIRS, IN_EVERY_FAMILY))
def test_we_compute_what_peft_saved(bases, tmp_path, family, row):
    import peft

    folder, base = bases[family]
    kind, options = THEIRS[row](family)
    theirs = theirs_from(base, getattr(peft, kind)(task_type="CAUSAL_LM", **options))
    theirs.save_pretrained(tmp_path)
    ours = load_model(str(folder))
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore" if row == "patterns" else "error"
        )  # its base is this one; its patterns overlap
        load_adapter(ours, tmp_path)
    differs_from_base(ours)
    compare(
        ours,
        theirs,
        gradients=row not in ("prefix projection", "p-tuning", "p-tuning lstm"),
        soft=row in SOFT,
    )
    if row in SOFT:
        generates_as_in_one_pass(ours)
    save_adapter(
        ours, tmp_path / "again", format="peft"
    )  # and what we make of it, PEFT reads again
    compare(ours, loaded_by_peft(base, tmp_path / "again"), gradients=False, soft=row in SOFT)


def test_files_of_older_versions_are_read(bases, tmp_path):
    import peft

    folder, base = bases["opt"]
    theirs = theirs_from(base, peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["fc1"]))
    theirs.save_pretrained(tmp_path, safe_serialization=False)
    assert not (tmp_path / WEIGHTS).exists()
    few = ("peft_type", "task_type", "r", "lora_alpha", "target_modules", "base_model_name_or_path")
    fields = {
        key: value
        for key, value in json.loads((tmp_path / CONFIG).read_text()).items()
        if key in few
    }
    (tmp_path / CONFIG).write_text(
        json.dumps(fields | {"fan_in_fan_out": False, "enable_lora": None, "merge_weights": False})
    )
    ours = load_model(str(folder))
    load_adapter(ours, tmp_path)
    compare(ours, theirs)


def generates_as_in_one_pass(model) -> None:
    """Greedy generation with a cache, and without one."""
    ids, mask = batch("left")
    made = generate(model, ids, mask, max_new_tokens=4)
    for row, new in enumerate(made):
        text = ids[row][mask[row].bool()].tolist()
        for token in new:
            with torch.no_grad():
                assert int(model(torch.tensor([text]))[0, -1].argmax()) == token
            text.append(token)


def attention(family: str) -> list[str]:
    return ["qkv"] if family == "bloom" else ["q", "v"]


# our tables; what they are called in a PEFT file, and whether PEFT reads our own file as it is
OURS = {
    "lora": ({"preset": "lora", "r": 3}, "LORA", True),
    "lora in a layer": ({"preset": "lora", "r": 3, "layers": [1]}, "LORA", True),
    "rslora": ({"preset": "rslora", "r": 3}, "LORA", True),
    "lora-bias": ({"preset": "lora-bias", "r": 3}, "LORA", True),
    "lora by layer": ({"preset": "lora", "r": [2, 3, 4]}, "LORA", True),
    "lora with overrides": (
        {
            "kind": "lora",
            "sites": ["o", "up", "down"],
            "r": 3,
            "overrides": {"down": {"alpha": 5.0}, ".*1.*": {"r": 2}},
        },
        "LORA",
        True,
    ),
    "lora, rslora in places": (
        {"kind": "lora", "sites": ["o", "down"], "r": 3, "overrides": {"down": {"rslora": True}}},
        "LORA",
        True,
    ),
    "lora, biases in places": (
        {"kind": "lora", "sites": ["o", "down"], "r": 3, "overrides": {"down": {"bias": True}}},
        "LORA",
        False,
    ),
    "lora on the embedding": ({"kind": "lora", "sites": ["embed", "o"], "r": 3}, "LORA", True),
    "dora": ({"preset": "dora", "r": 3}, "LORA", True),
    "pissa": ({"preset": "pissa", "r": 3, "alpha": 5.0}, "LORA", False),
    "pissa with biases": ({"preset": "pissa", "r": 3, "alpha": 5.0, "bias": True}, "LORA", False),
    "adalora": ({"preset": "adalora", "init_r": 4, "target_r": 2}, "ADALORA", True),
    "adalora of several ranks": (
        {
            "preset": "adalora",
            "init_r": 4,
            "target_r": 2,
            "overrides": {"down": {"init_r": 3, "alpha": 9.0}},
        },
        "ADALORA",
        False,
    ),
    "vera": ({"preset": "vera", "r": 8, "seed": 5}, "VERA", True),
    "hira": ({"preset": "hira", "r": 3}, "HIRA", True),
    "hira by layer": ({"preset": "hira", "r": [2, 3, 4]}, "HIRA", False),
    "miss": ({"preset": "miss", "r": 6}, "MISS", True),
    "miss in a layer": ({"preset": "miss", "r": 6, "layers": [1]}, "MISS", True),
    "road": ({"preset": "road", "variant": "road_4", "group_size": 8}, "ROAD", True),
    "oft": ({"preset": "oft", "block": 4}, "OFT", True),
    "oft, exact": ({"preset": "oft", "block": 4, "terms": 0}, "OFT", True),
    "shira": ({"preset": "shira", "r": 2, "seed": 3}, "SHIRA", True),
    "shira of large weights": ({"preset": "shira", "r": 2, "mask": "magnitude"}, "SHIRA", True),
    "ia3": ({"preset": "ia3"}, "IA3", True),
    "ia3 in a layer": ({"preset": "ia3", "layers": "last 1"}, "IA3", True),
    "ia3, all inputs": ({"kind": "ia3", "sites": ["o", "down"], "scales": "input"}, "IA3", True),
    "ln-tuning": ({"preset": "ln-tuning"}, "LN_TUNING", True),
    "ln-tuning in a layer": ({"preset": "ln-tuning", "layers": [0]}, "LN_TUNING", True),
    "prefix": ({"preset": "prefix", "length": 4}, "PREFIX_TUNING", True),
    "prefix with a gate": ({"preset": "prefix", "length": 4, "gate": True}, "PREFIX_TUNING", True),
    "prefix-projection": (
        {"preset": "prefix-projection", "length": 4, "projection": 6},
        "PREFIX_TUNING",
        True,
    ),
    "prompt": ({"preset": "prompt", "length": 4, "scale": 2.0}, "PROMPT_TUNING", True),
    "p-tuning": ({"preset": "p-tuning", "length": 4, "hidden": 6}, "P_TUNING", True),
    "p-tuning-lstm": ({"preset": "p-tuning-lstm", "length": 4, "hidden": 6}, "P_TUNING", True),
    "lora and the head": (
        {
            "lora": {"preset": "lora", "r": 3},
            "full": {"kind": "full", "sites": ["head", "final_norm"]},
        },
        "LORA",
        False,
    ),
    "lora and rows": (
        {
            "lora": {"preset": "lora", "r": 3},
            "rows": {"kind": "token_rows", "sites": ["embed"], "ids": SEEN[:3]},
        },
        "LORA",
        False,
    ),
    "lora and its biases": (
        {"lora": {"preset": "lora", "r": 3}, "biases": {"kind": "bitfit", "sites": ["q", "v"]}},
        "LORA",
        False,
    ),
    "dora and all biases": (
        {"dora": {"preset": "dora", "r": 3}, "biases": {"kind": "bitfit", "sites": []}},
        "LORA",
        False,
    ),
}
NO_BIAS = (
    "lora and its biases",
    "dora and all biases",
)  # nothing there in families without biases in Linears


def ours_with(folder, family: str, table: dict):
    """The model with an adapter of this table, its weights random."""
    model = load_model(str(folder))
    table = copy.deepcopy(table)
    if "rows" in table and model.tied:
        table["rows"]["sites"] = ["embed", "head"]
    if "biases" in table:
        paths = [
            path
            for path, module in model.named_modules()
            if getattr(module, "bias", None) is not None
        ]
        table["biases"]["sites"] = paths if not table["biases"]["sites"] else attention(family)
    torch.manual_seed(0)
    attach(model, resolve(**table))
    randomised(
        parameter
        for adapter in adapters_named(model, "default").values()
        for parameter in adapter.parameters()
    )
    return model


@pytest.mark.parametrize(("family", "row"), crossed(OURS, IN_EVERY_FAMILY))
def test_peft_computes_what_we_saved(bases, tmp_path, family, row):
    folder, base = bases[family]
    table, kind, as_it_is = OURS[row]
    if row in NO_BIAS and family in ("llama", "gptj"):
        pytest.skip("the Linears of this family have no biases")
    ours = ours_with(folder, family, table)
    differs_from_base(ours)
    soft = kind in ("PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING")
    same_parameters = (as_it_is and not soft) or row in (
        *NO_BIAS,
        "lora and the head",
        "lora and rows",
    )
    save_adapter(ours, tmp_path / "peft", format="peft")
    written = json.loads((tmp_path / "peft" / CONFIG).read_text())
    assert written["peft_type"] == kind
    assert "llm_adapters" not in written
    compare(ours, loaded_by_peft(base, tmp_path / "peft"), gradients=same_parameters, soft=soft)
    save_adapter(ours, tmp_path / "native")
    written = json.loads((tmp_path / "native" / CONFIG).read_text())
    assert (written["peft_type"] == kind) == as_it_is
    if as_it_is:
        ours.zero_grad()
        compare(
            ours, loaded_by_peft(base, tmp_path / "native"), gradients=same_parameters, soft=soft
        )
    for form in ("native", "peft"):  # and so do we again
        again = load_model(str(folder))
        load_adapter(again, tmp_path / form)
        ids, mask = batch("left")
        assert difference(again(ids, mask).detach(), ours(ids, mask).detach(), mask) < 1e-4
    if soft:
        generates_as_in_one_pass(again)


PLAIN = [
    row
    for row in OURS
    if row.startswith(("lora", "rslora", "pissa", "adalora", "vera"))
    and " and " not in row
    and "bias" not in row
]


@pytest.mark.parametrize("row", PLAIN)
def test_a_plain_lora_is_right_for_who_knows_only_alpha_and_r(bases, tmp_path, row):
    family = FAMILIES[PLAIN.index(row) % 4]
    folder, base = bases[family]
    ours = ours_with(folder, family, OURS[row][0])
    save_adapter(ours, tmp_path, format="peft", plain=True)
    fields, tensors = json.loads((tmp_path / CONFIG).read_text()), load_file(tmp_path / WEIGHTS)
    assert fields["lora_alpha"] == fields["r"]
    assert not any(
        key.endswith("_pattern") or key.startswith("use_")
        for key, value in fields.items()
        if value and key != "layers_pattern"
    )
    assert all(
        fields["r"] == (len(tensor) if "_A" in key else tensor.shape[1])
        for key, tensor in tensors.items()
    )
    assert all(re.search(r"\.(lora_[AB]\.weight|lora_embedding_[AB])$", key) for key in tensors)
    compare(ours, loaded_by_peft(base, tmp_path), gradients=False)


@pytest.mark.parametrize(
    ("table", "plain", "says"),
    [
        ({"preset": "series", "size": 3}, False, "PEFT has no place for bottleneck"),
        ({"preset": "mam"}, False, "PEFT has no place for bottleneck beside prefix"),
        ({"preset": "unipelt"}, False, "PEFT has no place for prefix [+] lora [+] bottleneck"),
        ({"preset": "bitfit"}, False, "PEFT has no place for bitfit"),
        ({"preset": "invertible"}, False, "PEFT has no place for invertible"),
        ({"preset": "lora", "gate": True}, False, "PEFT has no place for that"),
        ({"preset": "prefix", "layers": "first 2"}, False, "prefix in some of the layers"),
        ({"kind": "full", "sites": ["head"]}, False, "PEFT has no place for full"),
        (
            {"one": {"preset": "lora"}, "two": {"preset": "lora", "sites": ["o"]}},
            False,
            "PEFT has no place for lora",
        ),
        (
            {"one": {"preset": "lora"}, "biases": {"kind": "bitfit", "sites": ["q"]}},
            False,
            "biases of all modules",
        ),
        (
            {"biases": {"kind": "bitfit", "sites": ["q", "v"]}, "one": {"preset": "dora"}},
            False,
            "PEFT does not scale the trained biases beside DoRA",
        ),
        (
            {"one": {"preset": "lora"}, "full": {"kind": "full", "sites": ["q"]}},
            False,
            r"no place for full and lora at one module \(model.layers.0",
        ),
        (
            {"one": {"preset": "lora"}, "full": {"kind": "full", "sites": ["head"]}},
            True,
            "plain LoRA has no place for full",
        ),
        (
            {"kind": "lora", "sites": ["embed", "q"], "overrides": {"q": {"bias": True}}},
            False,
            "biases of B beside a LoRA on the embedding",
        ),
        ({"preset": "dora"}, True, "DoRA changes the length"),
        ({"preset": "ia3"}, True, "no product of two matrices"),
        ({"preset": "prompt"}, True, "no product of two matrices"),
        ({"preset": "lora-bias"}, True, "no place for the biases of B"),
        ({"preset": "lora", "gate": True}, True, "PEFT has no place for that"),
    ],
    ids=str,
)
def test_what_peft_has_no_place_for_is_said_and_nothing_is_written(
    tiny, tmp_path, table, plain, says
):
    attach(tiny, resolve(**table))
    with pytest.raises(UserError, match=says) as error:
        save_adapter(tiny, tmp_path / "out", format="peft", plain=plain)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
    save_adapter(tiny, tmp_path / "native")
    fields = json.loads((tmp_path / "native" / CONFIG).read_text())
    assert plain or fields["peft_type"] not in (
        "LORA",
        "PREFIX_TUNING",
    )  # so that PEFT does not read what it cannot compute


def test_a_bottleneck_says_what_each_module_has(tiny, tmp_path):
    attach(tiny, "paper-series-h", size=3, layers=[1])
    save_adapter(tiny, tmp_path)
    fields = json.loads((tmp_path / CONFIG).read_text())
    assert fields["peft_type"] == "BOTTLENECK"
    assert fields["bottleneck_size"] == 3
    assert fields["modules"] == {
        "model.layers.1.mlp.gate_proj": "mh_adapter",
        "model.layers.1.mlp.up_proj": "mh_adapter",
        "model.layers.1.mlp.down_proj": "output_adapter",
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_adalora_whose_ranks_peft_has_cut(bases, tmp_path, family):
    import peft

    folder, base = bases[family]
    options = {
        "init_r": 5,
        "target_r": 2,
        "lora_alpha": 9,
        "total_step": 8,
        "tinit": 1,
        "tfinal": 2,
        "deltaT": 1,
        "target_modules": ALL[family],
    }
    theirs = theirs_from(base, peft.AdaLoraConfig(task_type="CAUSAL_LM", **options))
    ids, mask = batch("left")
    for step in range(1, 8):
        run_theirs(theirs, ids, mask, soft=False)[mask.bool()].square().mean().backward()
        theirs.base_model.update_and_allocate(step)
    theirs.zero_grad()
    theirs.save_pretrained(tmp_path)
    shapes = {
        tensor.shape[0]
        for key, tensor in load_file(tmp_path / WEIGHTS).items()
        if key.endswith("lora_E")
    }
    assert len(shapes) > 1  # it did cut
    ours = load_model(str(folder))
    load_adapter(ours, tmp_path)
    adapters = adapters_named(ours, "default")
    assert all(one.lora_A.shape[0] == 5 for one in adapters.values())
    compare(ours, theirs, gradients=False)
    compare(ours, loaded_by_peft(base, tmp_path), gradients=False)
    save_adapter(ours, tmp_path / "again", format="peft")
    compare(ours, loaded_by_peft(base, tmp_path / "again"), gradients=False)
    fields = json.loads((tmp_path / CONFIG).read_text())
    name, masked = next(iter(fields["rank_pattern"].items()))
    for wrong, says in (
        (masked[1:], "should be init_r = 5 times"),
        (3, "should be init_r = 5 times"),
        ([not one for one in masked], "leaves a rank of"),
    ):
        (tmp_path / CONFIG).write_text(json.dumps(fields | {"rank_pattern": {name: wrong}}))
        with pytest.raises(UserError, match=says):
            load_adapter(load_model(str(folder)), tmp_path)

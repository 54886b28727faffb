"""Adapter files that PEFT writes, read by us: logits and gradients of the live library."""

import json
import warnings

import pytest
from families import crossed
from peft_bases import (
    ALL,
    BLOCKS,
    EMBED,
    FINAL,
    QV,
    SEEN,
    bases,  # noqa: F401
    compare,
    differs_from_base,
    generates_as_in_one_pass,
    loaded_by_peft,
    theirs_from,
)

from adapters import load_adapter, save_adapter
from adapters.formats.folders import CONFIG, WEIGHTS
from model import load_model

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LoRA tensor.*have invalid shape:UserWarning"
)  # PEFT, about its own biases of B


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
    *("all-linear", "head", "embedding and norm saved"),
    *("whole MLPs saved", "bias all", "embedding", "tokens", "ia3"),
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

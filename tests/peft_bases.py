"""Tiny models of the four families, and PEFT's adapters on them: for tests that compare with it."""

import copy
import json
import warnings

import pytest
import torch
from conftest import write_checkpoint
from families import TINY, batch, difference
from safetensors.torch import load_file, save_file

from adapters import load_adapter
from adapters.formats.folders import CONFIG, WEIGHTS
from model import load_model

ADALORA = {"init_r": 5, "target_r": 2, "lora_alpha": 9, "total_step": 50, "tinit": 5, "tfinal": 10}
IDS = [3, 9, 4]  # of tokens

FAMILIES = list(TINY)
QV = {
    "llama": ["q_proj", "v_proj"],
    "bloom": ["query_key_value"],
    "opt": ["q_proj", "v_proj"],
    "gptj": ["q_proj", "v_proj"],
}
ALL = {
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "bloom": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
    "opt": ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"],
    "gptj": ["q_proj", "k_proj", "v_proj", "out_proj", "fc_in", "fc_out"],
}
BLOCKS = {
    "llama": "model.layers",
    "bloom": "transformer.h",
    "opt": "model.decoder.layers",
    "gptj": "transformer.h",
}
EMBED = {"llama": "embed_tokens", "bloom": "word_embeddings", "opt": "embed_tokens", "gptj": "wte"}


def tiny_bases(folder) -> dict:
    """By family: the folder of a tiny checkpoint and the reference from it, not to be changed."""
    pytest.importorskip("peft", reason="peft is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    made = {}
    for family in FAMILIES:
        path = write_checkpoint(folder / f"tiny-{family}", family)
        reference = transformers.AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, attn_implementation="eager"
        )
        made[family] = path, reference.eval()
    return made


def randomised(parameters) -> None:
    """Every parameter away from its start, which often changes nothing."""
    generator = torch.Generator().manual_seed(3)
    for parameter in parameters:
        parameter.data = parameter.data + 0.3 * torch.randn(parameter.shape, generator=generator)


def theirs_from(base, config):
    """A new PEFT adapter on a copy of the base, with random weights."""
    import peft

    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(copy.deepcopy(base), config).eval()
    randomised(parameter for parameter in model.parameters() if parameter.requires_grad)
    return model


def loaded_by_peft(base, folder):
    import peft

    soft = json.loads((folder / CONFIG).read_text())["peft_type"] in (
        "PREFIX_TUNING",
        "PROMPT_TUNING",
        "P_TUNING",
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = peft.PeftModel.from_pretrained(
            copy.deepcopy(base), folder, is_trainable=not soft
        ).eval()
    assert not [str(one.message) for one in caught if "missing adapter keys" in str(one.message)]
    if soft:
        model.prompt_encoder["default"].embedding.weight.requires_grad_()
    return model


def run_theirs(model, ids, mask, soft: bool):
    if soft:  # positions are not theirs to choose; prompts come out as tokens in front
        return model(ids, attention_mask=mask).logits[:, -ids.shape[1] :]
    where = (
        {}
        if model.config.model_type == "bloom"
        else {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    )
    return model(ids, attention_mask=mask, **where).logits


def saved_by_peft(base, folder, kind: str, options: dict, **save):
    """A folder that PEFT wrote, with random weights -> PEFT's logits."""
    import peft

    theirs = theirs_from(base, getattr(peft, kind)(task_type="CAUSAL_LM", **options))
    theirs.save_pretrained(folder, **save)
    return logits(theirs)


def logits(theirs):
    ids, mask = batch("left")
    return run_theirs(theirs, ids, mask, soft=False).detach()


def edit(folder, fields: dict | None = None, keys=None) -> None:
    """Change fields of a saved configuration, and its tensors' keys by a function of a key."""
    if fields:
        raw = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps(raw | fields))
    if keys:
        tensors = load_file(folder / WEIGHTS)
        save_file({keys(key): tensor for key, tensor in tensors.items()}, str(folder / WEIGHTS))


def loaded(base, folder):
    """(our model with the adapter, the warnings that loading gave)."""
    model = load_model(str(base))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_adapter(model, folder)
    said = [str(one.message) for one in caught]
    assert not any("\n" in line for line in said)
    return model, said


def same_logits(model, expected) -> bool:
    ids, mask = batch("left")
    with torch.no_grad():
        return difference(model(ids, mask), expected, mask) < 1e-4


def lora(**options):
    return "LoraConfig", {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]} | options

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
from adapters.attach import adapters_named
from adapters.formats.folders import CONFIG, WEIGHTS, native_tensors
from eval.generate import generate
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
    peft = pytest.importorskip("peft", reason="peft is not installed")
    # a README.md, which takes as long as the rest of what PEFT saves
    peft.PeftModel.create_or_update_model_card = lambda *arguments: None
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


def made_by_hand(folder, r: int = 4) -> tuple[dict, dict[str, torch.Tensor]]:
    """The two files of a LoRA on the queries and values of the tiny LLaMA, without PEFT."""
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(folder),
        "inference_mode": True,
        "r": r,
        "lora_alpha": 8,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": ["q_proj", "v_proj"],
    }
    tensors = {}
    for layer in range(3):
        for name, out in (("q_proj", 32), ("v_proj", 16)):
            path = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors |= {
                f"{path}.lora_A.weight": torch.randn(r, 32),
                f"{path}.lora_B.weight": torch.randn(out, r),
            }
    return fields, tensors

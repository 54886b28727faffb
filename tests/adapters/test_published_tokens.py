"""Published adapters: copies of embedding and head, and trained tokens."""

import copy
import json

import pytest
import torch
from conftest import write_checkpoint
from families import batch, difference
from peft_bases import (
    ADALORA,
    EMBED,
    FAMILIES,
    IDS,
    QV,
    bases,  # noqa: F401
    edit,
    loaded,
    loaded_by_peft,
    logits,
    lora,
    randomised,
    same_logits,
    saved_by_peft,
    theirs_from,
)
from safetensors.torch import load_file, save_file

from adapters import attach, load_adapter, save_adapter
from adapters.attach import adapters_named
from adapters.config import resolve
from adapters.formats.folders import CONFIG, WEIGHTS, read_adapter
from model import UserError, load_model
from model.config import read_config, skeleton

# ---------------------------------------------------------------- copies of the base's
COPIES = {
    "beside": lambda family: {},
    "on the embedding": lambda family: {"target_modules": [EMBED[family]]},
    "on the head": lambda family: {"target_modules": [*QV[family], "lm_head"]},
    "on both": lambda family: {"target_modules": [EMBED[family], "lm_head"]},
}


@pytest.mark.parametrize(
    ("family", "row"),
    [*(("llama", row) for row in COPIES), *((family, "on both") for family in FAMILIES[1:])],
)
@pytest.mark.parametrize("trained", [False, True])
def test_copies_of_the_embedding_and_the_head(bases, tmp_path, family, row, trained):
    """save_embedding_layers: PEFT loads what it saved in place of the base's."""
    folder, base = bases[family]
    other = copy.deepcopy(base)
    if trained:
        weights = {
            id(one): one
            for one in (other.get_input_embeddings().weight, other.get_output_embeddings().weight)
        }
        randomised(weights.values())
    options = {"r": 4, "target_modules": QV[family]} | COPIES[row](family)
    saved_by_peft(other, tmp_path, "LoraConfig", options, save_embedding_layers=True)
    edit(tmp_path, {"base_model_name_or_path": str(folder)})
    model, said = loaded(folder, tmp_path)
    expected = logits(loaded_by_peft(base, tmp_path))
    assert same_logits(model, expected)
    assert len(said) == trained
    assert not trained or "they take its place, as in PEFT" in said[0]
    save_adapter(model, tmp_path / "ours")
    assert same_logits(loaded(folder, tmp_path / "ours")[0], expected)


def test_copies_are_left_out_for_a_model_without_weights(bases, tmp_path):
    """A plan knows shapes alone, so that no copy differs."""
    folder, base = bases["llama"]
    options = {"r": 4, "target_modules": ["q_proj", "embed_tokens"]}
    saved_by_peft(base, tmp_path, "LoraConfig", options, save_embedding_layers=True)
    config, _, _ = read_adapter(skeleton(*read_config(folder)), tmp_path)
    assert (config.kind, config.only.sites) == ("lora", ("q", "embed"))


@pytest.mark.parametrize("kind", ["lora", "tokens"])
def test_a_base_with_more_tokens_is_asked_for(bases, tmp_path, kind):
    folder, base = bases["llama"]
    other = copy.deepcopy(base)
    other.resize_token_embeddings(70, mean_resizing=False)
    options = lora() if kind == "lora" else ("TrainableTokensConfig", {"token_indices": [64, 65]})
    saved_by_peft(other, tmp_path, *options, save_embedding_layers=True)
    with pytest.raises(
        UserError, match=r"its vocabulary was changed.*resize_token_embeddings\(70\)"
    ) as error:
        load_adapter(load_model(str(folder)), tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["embed_tokens", "lm_head"])
def test_a_saved_module_of_a_base_with_more_tokens_asks_for_it(bases, tmp_path, name):
    folder, base = bases["llama"]
    other = copy.deepcopy(base)
    other.resize_token_embeddings(75, mean_resizing=False)
    saved_by_peft(other, tmp_path, *lora(modules_to_save=[name]), save_embedding_layers=False)
    with pytest.raises(UserError, match=r"resize_token_embeddings\(75\)$") as error:
        load_adapter(load_model(str(folder)), tmp_path)
    path = {"embed_tokens": "model.embed_tokens", "lm_head": "lm_head"}[name]
    assert f"tensor 'base_model.model.{path}.weight' (modules_to_save) is [75, " in str(error.value)
    assert "\n" not in str(error.value)


def test_another_saved_module_of_another_shape_is_named_by_the_files_key(bases, tmp_path):
    folder, base = bases["llama"]
    saved_by_peft(base, tmp_path, *lora(modules_to_save=["norm"]))
    key = "base_model.model.model.norm.weight"
    tensors = load_file(tmp_path / WEIGHTS)
    save_file(tensors | {key: torch.ones(5)}, tmp_path / WEIGHTS)
    with pytest.raises(UserError, match=r"tensor 'base_model.*norm.weight' .* is \[5\]") as error:
        load_adapter(load_model(str(folder)), tmp_path)
    assert str(error.value).endswith(": the adapter is of another base")


def test_what_starts_from_the_base_does_not_take_another_one(bases, tmp_path):
    folder, base = bases["llama"]
    other = copy.deepcopy(base)
    randomised([other.lm_head.weight, other.model.embed_tokens.weight])
    for number, options in enumerate(
        (
            lora(use_dora=True, target_modules=["lm_head"]),
            ("TrainableTokensConfig", {"token_indices": IDS}),
        )
    ):
        saved_by_peft(other, tmp_path / str(number), *options, save_embedding_layers=True)
        with pytest.raises(UserError, match="another part of the adapter starts from it"):
            load_adapter(load_model(str(folder)), tmp_path / str(number))


# ---------------------------------------------------------------- TRAINABLE_TOKENS
@pytest.mark.parametrize("family", FAMILIES)
def test_trainable_tokens_are_token_rows_both_ways(bases, tmp_path, family):
    folder, base = bases[family]
    expected = saved_by_peft(
        base, tmp_path / "theirs", "TrainableTokensConfig", {"token_indices": IDS}
    )
    model, said = loaded(folder, tmp_path / "theirs")
    assert said == []
    assert same_logits(model, expected)
    assert not same_logits(load_model(str(folder)), expected)
    config = next(iter(adapters_named(model, "default").values())).config
    assert (config.kind, list(config.only.options.ids)) == ("token_rows", IDS)
    save_adapter(model, tmp_path / "peft", format="peft")
    save_adapter(model, tmp_path / "native")
    assert json.loads((tmp_path / "peft" / CONFIG).read_text())["peft_type"] == "TRAINABLE_TOKENS"
    assert (
        load_file(tmp_path / "peft" / WEIGHTS).keys()
        == load_file(tmp_path / "theirs" / WEIGHTS).keys()
    )
    assert (
        difference(logits(loaded_by_peft(base, tmp_path / "peft")), expected, batch("left")[1])
        < 1e-4
    )
    for written in ("peft", "native"):
        assert same_logits(loaded(folder, tmp_path / written)[0], expected)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (
            {"target_modules": ["lm_head"]},
            "means lm_head: trained rows are known here for the embedding",
        ),
        (
            {"target_modules": ["embed_tokens", "lm_head"]},
            "trained rows are known here for the embedding",
        ),
        (
            {"target_modules": ["embed_tokens", "q_proj"]},
            "trained rows are known here for the embedding",
        ),
        ({"token_indices": []}, "token_indices = .* should be a list of token ids"),
        ({"token_indices": [1, True, 3]}, "should be a list of whole numbers"),
        ({"token_indices": [3, 3, 4]}, "each once"),
        ({"token_indices": [3, 4]}, r"is \[3, 32\], the configuration asks for \[2, 32\]"),
        ({"token_indices": [3, 4, 1000]}, "the model has token ids 0 to 60"),
    ],
)
def test_trainable_tokens_that_do_not_fit(bases, tmp_path, fields, says):
    folder, base = bases["llama"]
    saved_by_peft(base, tmp_path, "TrainableTokensConfig", {"token_indices": IDS})
    edit(tmp_path, fields)
    with pytest.raises(UserError, match=says):
        load_adapter(load_model(str(folder)), tmp_path)


def test_the_rows_of_a_tied_head_are_the_embeddings(bases, tmp_path):
    folder, base = bases["bloom"]
    expected = saved_by_peft(base, tmp_path, "TrainableTokensConfig", {"token_indices": IDS})
    tensors = load_file(tmp_path / WEIGHTS)
    head = next(key for key in tensors if "lm_head" in key)
    save_file(
        {key: tensor for key, tensor in tensors.items() if key != head}, str(tmp_path / WEIGHTS)
    )
    assert same_logits(loaded(folder, tmp_path)[0], expected)
    save_file({head: tensors[head]}, str(tmp_path / WEIGHTS))
    assert same_logits(loaded(folder, tmp_path)[0], expected)
    save_file(tensors | {head: tensors[head] + 1}, str(tmp_path / WEIGHTS))
    with pytest.raises(UserError, match="differ, and the head is tied"):
        load_adapter(load_model(str(folder)), tmp_path)


def test_rows_under_a_tied_head_with_a_bias_are_refused_both_ways(tmp_path):
    import peft
    import transformers

    folder = write_checkpoint(tmp_path / "tiny", "gptj", tie_word_embeddings=True)
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    theirs_from(
        base, peft.TrainableTokensConfig(task_type="CAUSAL_LM", token_indices=IDS)
    ).save_pretrained(tmp_path / "theirs")
    with pytest.raises(UserError, match="make PEFT forget the bias of lm_head"):
        load_adapter(load_model(str(folder)), tmp_path / "theirs")
    ours = load_model(str(folder))
    attach(ours, resolve(kind="token_rows", sites=["embed", "head"], ids=IDS))
    with pytest.raises(UserError, match="forgets the bias of a head"):
        save_adapter(ours, tmp_path / "out", format="peft")


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_beside_adalora(bases, tmp_path, family):
    folder, base = bases[family]
    expected = saved_by_peft(
        base, tmp_path, "AdaLoraConfig", ADALORA | {"trainable_token_indices": IDS}
    )
    assert same_logits(loaded(folder, tmp_path)[0], expected)

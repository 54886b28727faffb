"""Merging where the head is tied to the embedding, and where a whole copy stands."""

import json
from itertools import product

import pytest
import torch
from conftest import write_checkpoint
from families import TINY
from merged import (
    apart,
    merged_and_exported,
    seeded,  # noqa: F401
)
from methods import IDS, attach_small, randomise
from safetensors import safe_open

from adapters import attach, load_adapter, merge, save_adapter, use
from adapters.config import resolve
from model import UserError, load_model


def test_rows_of_tokens_start_from_the_base_of_the_head(tmp_path):
    """Behind a LoRA on the head they are refused, in front of it they are folded; in the
    embedding, where they replace, in any order.
    """
    model = load_model(str(write_checkpoint(tmp_path, tie_word_embeddings=True)))
    attach(
        model, resolve(kind="token_rows", sites=["embed", "head"], ids=[5, int(IDS[0, 1])]), "rows"
    )
    attach(model, "lora", name="low", sites=["head"], r=2, dropout=0.0)
    attach(model, "lora", name="inside", sites=["embed"], r=2, dropout=0.0)
    randomise(model)
    use(model, ["low", "rows"])
    with pytest.raises(
        UserError,
        match=(
            "TokenRows starts from the base's weight, which another adapter in "
            "front of it has changed"
        ),
    ):
        merge(model)
    for order in (["inside", "rows"], ["rows", "low", "inside"]):
        use(model, order)
        before = model(IDS)
        again = load_model(str(tmp_path))
        for name in ("rows", "low", "inside"):
            save_adapter(model, tmp_path / name, name, overwrite=True)
            load_adapter(again, tmp_path / name, name)
        use(again, order)
        merge(again)
        assert apart(again(IDS), before) < 1e-4


def test_a_full_copy_from_before_its_linear_got_a_bias(tiny):
    attach(tiny, "bitfit", name="bias", sites=["up"])
    attach(tiny, resolve(kind="full", sites=["gate", "up"]), "copy")
    randomise(tiny)
    use(tiny, ["bias"])
    merge(tiny)
    use(tiny, ["copy"])
    before = tiny(IDS)
    merge(tiny)
    assert apart(tiny(IDS), before) < 1e-4
    assert tiny.config.mlp_bias


# ---------------------------------------------------------------- tied heads
AT_THE_ENDS = ["token rows", "full embedding and norm"]
MORE = ["lora on the embedding", "lora on the head", "full head", "lora", "bitfit head"]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("family", "method"), [*product(TINY, AT_THE_ENDS), *product(["llama"], MORE)]
)
def test_tied_heads_stay_tied_where_both_change_alike_and_are_untied_elsewhere(
    tmp_path, family, tied, method
):
    model = load_model(str(write_checkpoint(tmp_path / "base", family, tie_word_embeddings=tied)))
    if method == "bitfit head":
        attach(model, "bitfit", sites=["head"])
    else:
        attach_small(model, method)
    randomise(model)
    old = model.fingerprint
    embedding, head = model.input_embedding.weight.clone(), model.lm_head.weight.clone()
    if method == "bitfit head" and family != "gptj":
        merge(model)
    else:
        merged_and_exported(model, tmp_path / "merged")
        raw = json.loads((tmp_path / "merged" / "config.json").read_text())
        with safe_open(tmp_path / "merged" / "model.safetensors", "pt") as file:
            assert ("lm_head.weight" in file.keys()) == (not model.tied)  # noqa: SIM118
        assert raw["tie_word_embeddings"] == model.tied
    stays = method in ("token rows", "lora", "bitfit head")
    assert model.tied == (tied and stays)
    assert model.config.tie_word_embeddings == model.tied
    assert model.fingerprint != old
    assert torch.equal(model.input_embedding.weight, embedding) == (
        method not in ("token rows", "lora on the embedding", "full embedding and norm")
    )
    assert torch.equal(model.lm_head.weight, head) == (
        method not in ("lora on the head", "full head") and not (tied and method == "token rows")
    )


def test_a_head_that_the_file_keeps_beside_a_tied_embedding(tmp_path):
    """LLaMA with tie_word_embeddings true and two different tensors is loaded untied, and written
    so that transformers do not tie it either.
    """
    from safetensors.torch import load_file, save_file

    folder = write_checkpoint(tmp_path / "base", tie_word_embeddings=True)
    tensors = load_file(str(folder / "model.safetensors"))
    save_file(
        tensors | {"lm_head.weight": torch.randn(61, 32)},
        str(folder / "model.safetensors"),
        metadata={"format": "pt"},
    )
    with pytest.warns(UserWarning, match="differs from the embedding"):
        model = load_model(str(folder))
    attach(model, "lora", r=2)
    randomise(model)
    merged_and_exported(model, tmp_path / "merged")
    assert (
        json.loads((tmp_path / "merged" / "config.json").read_text())["tie_word_embeddings"]
        is False
    )

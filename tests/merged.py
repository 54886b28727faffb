"""Merged models, and what transformers computes with them."""

import pytest
import torch
from methods import IDS

from adapters import merge, parameters
from adapters.formats.merged_model import export_model
from model import load_model


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """Largest difference, in standard deviations of the logits."""
    return ((one - other).abs().max() / other.std()).item()


def transformers_logits(folder, dtype=torch.float32) -> torch.Tensor:
    """What live transformers make of the folder; they must miss no tensor and leave none over."""
    transformers = pytest.importorskip("transformers")
    theirs, said = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", output_loading_info=True
    )
    assert not any(said[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), (
        said
    )
    with torch.no_grad():
        return theirs.eval()(IDS).logits.float()


def merged_and_exported(model, folder) -> None:
    """Merge, export, and read again with transformers and our own load_model: the logits stay."""
    before = model(IDS)
    merge(model)
    assert apart(model(IDS), before) < 1e-4
    assert not parameters(model)
    assert not any(".adapters." in name for name, _ in model.named_parameters())
    export_model(model, folder)
    again = load_model(str(folder))
    assert torch.equal(again(IDS), model(IDS))
    assert again.tied == model.tied
    assert again.fingerprint == model.fingerprint
    assert apart(transformers_logits(folder), before) < 1e-4

"""Published adapters: the folders that they lie in."""

import copy
import warnings

import pytest
import torch
from peft_bases import (
    bases,  # noqa: F401
    loaded,
    logits,
    lora,
    randomised,
    same_logits,
    saved_by_peft,
)
from safetensors.torch import load_file

from adapters import load_adapter
from adapters.formats.folders import CONFIG, OLD_WEIGHTS, WEIGHTS
from model import UserError, load_model


# ---------------------------------------------------------------- folders
def test_an_adapter_in_a_folder_of_its_name_is_found(bases, tmp_path):
    import peft

    folder, base = bases["llama"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(
            copy.deepcopy(base), peft.LoraConfig(task_type="CAUSAL_LM", r=3), adapter_name="math"
        ).eval()
    randomised(one for one in theirs.parameters() if one.requires_grad)
    theirs.save_pretrained(tmp_path)
    assert not (tmp_path / CONFIG).exists()
    expected = logits(theirs)
    model, said = loaded(folder, tmp_path)
    assert said == []
    assert same_logits(model, expected)

    theirs.add_adapter("code", peft.LoraConfig(task_type="CAUSAL_LM", r=2))
    theirs.save_pretrained(tmp_path)
    with pytest.raises(UserError) as error:
        load_adapter(load_model(str(folder)), tmp_path)
    assert str(error.value).endswith(
        f"there are several below: give {tmp_path / 'code'}, {tmp_path / 'math'}"
    )

    theirs.add_adapter("default", peft.LoraConfig(task_type="CAUSAL_LM", r=2))
    theirs.save_pretrained(tmp_path)  # "default" lies in the folder itself
    loaded(folder, tmp_path)


@pytest.mark.parametrize("steps", [[500], [500, 1000, 90]])
@pytest.mark.parametrize("below", ["", "math", "adapter_model"])
def test_the_checkpoints_of_a_trainer_are_named(bases, tmp_path, steps, below):
    folder, base = bases["llama"]
    for step in steps:
        saved_by_peft(base, tmp_path / f"checkpoint-{step}" / below, *lora())
    with pytest.raises(UserError, match="a trainer's checkpoints") as error:
        load_adapter(load_model(str(folder)), tmp_path)
    assert str(tmp_path / f"checkpoint-{max(steps)}" / below) in str(error.value)
    assert "\n" not in str(error.value)
    loaded(folder, tmp_path / f"checkpoint-{steps[0]}")
    saved_by_peft(base, tmp_path, *lora())  # the trainer's last word lies above them
    loaded(folder, tmp_path)


def test_an_adapter_further_down_is_named(bases, tmp_path):
    folder, base = bases["llama"]
    saved_by_peft(base, tmp_path / "runs" / "first" / "adapter", *lora())
    with pytest.raises(
        UserError, match=f"there is one below: give {tmp_path / 'runs' / 'first' / 'adapter'}"
    ):
        load_adapter(load_model(str(folder)), tmp_path / "runs")


def test_an_adapter_of_a_repository_in_the_hubs_cache(bases, tmp_path):
    """Its files are links to the repository's blobs, also in a folder of the adapter's name."""
    folder, base = bases["llama"]
    expected = saved_by_peft(base, tmp_path / "models--me--lora" / "blobs", *lora())
    snapshot = tmp_path / "models--me--lora" / "snapshots" / "abc"
    (snapshot / "math").mkdir(parents=True)
    for name in (CONFIG, WEIGHTS):
        (snapshot / "math" / name).symlink_to(f"../../../blobs/{name}")
    assert same_logits(loaded(folder, snapshot)[0], expected)
    assert same_logits(loaded(folder, snapshot / "math")[0], expected)
    (tmp_path / "elsewhere").write_text("{}")
    (snapshot / "math" / CONFIG).unlink()
    (snapshot / "math" / CONFIG).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="outside"):
        load_adapter(load_model(str(folder)), snapshot / "math")


@pytest.mark.parametrize(
    "key", ["", ".", "module", "base_model.model", "base_model.model.", "lora_A.x"]
)
def test_keys_that_are_none(bases, tmp_path, key):
    folder, base = bases["llama"]
    saved_by_peft(base, tmp_path, *lora())
    tensors = load_file(tmp_path / WEIGHTS)
    torch.save(tensors | {key: torch.ones(2)}, tmp_path / OLD_WEIGHTS)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(UserError, match="unknown tensor"):
        load_adapter(load_model(str(folder)), tmp_path)


def test_a_link_out_of_the_folder_is_not_followed(bases, tmp_path):
    folder, base = bases["llama"]
    saved_by_peft(base, tmp_path / "elsewhere", *lora())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "math").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is no adapter folder"):
        load_adapter(load_model(str(folder)), tmp_path / "out")

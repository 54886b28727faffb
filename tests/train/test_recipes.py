"""Recipes whose settings depend on model, data and adapter, and the paper's last version."""

import pytest

from model import UserError
from train.settings import settings

PRESETS = ("final-lora", "final-series-math", "final-series", "final-parallel", "final-prefix")
MODELS = ("llama-7b", "llama-13b", "bloomz-7b1", "gptj-6b")
INT8 = {  # --load_8bit in math_running_commands
    ("llama-7b", "final-series-math"), ("llama-7b", "final-series"),
    ("llama-13b", "final-series-math"), ("llama-13b", "final-series"),
    ("bloomz-7b1", "final-lora"), ("bloomz-7b1", "final-parallel"),
    ("gptj-6b", "final-parallel"),
}  # fmt: skip


def made(model, preset, data=None, recipe="paper-final", sets=()):
    options = {"model": model, "adapter": {"preset": preset}} | ({"data": data} if data else {})
    return settings(None, recipe, options, list(sets))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("preset", PRESETS)
def test_each_row_of_the_last_math_table(model, preset):
    s = made(f"models/{model}", preset)
    train, prefix = s.train, preset == "final-prefix"
    series = model.startswith("llama") and "series" in preset
    assert (s.data, s.template, s.eval.beams) == ("math_10k", "paper-final", 4)
    assert s.eval.max_new_tokens == 256
    assert (train.batch_size, train.epochs, train.learning_rate) == (
        (8, 5, 3e-2) if prefix else (16, 3, 3e-4)
    )
    assert (train.micro_batch_size, train.cutoff, train.prompt_weight) == (4, 256, 1.0)
    assert (train.warmup_steps, train.schedule, train.best) == (100, "linear", True)
    assert train.validation_rows == (120 if prefix or series else 0)
    assert train.validate_every == (10 if prefix else 80 if series else 0)
    assert s.quantize == ("llm-int8" if (model, preset) in INT8 else "")
    assert train.checkpointing == ("block" if model == "llama-13b" else "none")


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("preset", PRESETS)
def test_each_row_of_the_last_commonsense_table(model, preset):
    s = made(model, preset, "commonsense_170k")
    train, prefix = s.train, preset == "final-prefix"
    assert (train.batch_size, train.epochs, train.learning_rate) == (
        (8, 5, 3e-2) if prefix else (16, 3, 3e-4)
    )
    assert (train.validation_rows, train.prompt_weight) == (120, 1.0)
    assert (s.quantize, s.eval.beams, s.eval.max_new_tokens) == ("", 4, 32)
    assert train.checkpointing == ("block" if model == "llama-13b" else "none")


RECIPE = """
data = "none"
[train]
epochs = 2
[[when]]
adapter = ["lora", "ia3"]
use.train = { epochs = 4, clip = 0.5 }
[[when]]
model = ["a"]
data = ["alpaca"]
use.train.epochs = 5
"""


@pytest.mark.parametrize(
    ("model", "preset", "data", "sets", "epochs", "clip"),
    [
        ("b", "series", None, (), 2, 1.0),
        ("b", "lora", None, (), 4, 0.5),
        ("a", "lora", None, (), 4, 0.5),  # only one of two conditions holds
        ("models/a", "ia3", "alpaca", (), 5, 0.5),  # the later entry wins
        ("b", "series", "alpaca", ("model=a",), 5, 1.0),  # what is set last is asked
        ("b", "series", None, ("adapter.preset=lora",), 4, 0.5),
        ("b", "lora", None, ("train.epochs=9",), 9, 0.5),
    ],
)
def test_entries_that_hold_lie_over_the_recipe(model, preset, data, sets, epochs, clip, tmp_path):
    path = tmp_path / "r.toml"
    path.write_text(RECIPE)
    s = made(model, preset, data, str(path), sets)
    assert (s.train.epochs, s.train.clip) == (epochs, clip)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[[when]]\nadapter = ["lara"]', "did you mean 'lora'"),
        ('[[when]]\nadapter = "lora"', "adapter = 'lora' should be a list of texts"),
        ('[[when]]\nadaptor = ["lora"]', "unknown setting 'adaptor'"),
        ('[[when]]\nuse.data = "alpaca"', "use cannot change model, data or adapter"),
        ("[when]\nuse.seed = 3", "when should be a list of tables"),
        ("[[when]]\nuse.train.epochz = 3", "unknown setting 'epochz'"),
    ],
)
def test_what_an_entry_cannot_be(text, said, tmp_path):
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        made("a", "lora", recipe=str(path))
    assert said in str(error.value)
    assert "r.toml" in str(error.value)

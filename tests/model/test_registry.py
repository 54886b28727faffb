"""Names of models: which there are, their parameter counts, and the commands that show them."""

import re

import pytest

from model import UserError
from model.config import describe, skeleton
from model.registry import POCKET, REGISTRY, pocket_names, resolve
from model.show import count, models_text, show_text


def test_the_pocket_models_are_small_and_of_every_family():
    from model.config import FAMILIES

    assert set(pocket_names()) == {f"pocket-{family}" for family in FAMILIES}
    for name in pocket_names():
        assert sum(path.stat().st_size for path in resolve(name).iterdir()) <= 4 * 2**20


PUBLISHED = {  # parameters, as counted for these checkpoints elsewhere
    "llama-7b": 6_738_415_616, "llama-13b": 13_015_864_320, "llama-30b": 32_528_943_616,
    "llama-65b": 65_285_660_672, "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248, "llama-3.2-1b": 1_235_814_400, "llama-3.2-3b": 3_212_749_824,
    "tinyllama-1.1b": 1_100_048_384,
    "smollm2-135m": 134_515_008, "smollm2-360m": 361_821_120, "smollm2-1.7b": 1_711_376_384,
    "bloom-560m": 559_214_592, "bloom-1b1": 1_065_314_304,
    "bloom-1b7": 1_722_408_960, "bloom-3b": 3_002_557_440, "bloom-7b1": 7_069_016_064,
    "bloom": 176_247_271_424, "opt-125m": 125_239_296,
    "mistral-7b": 7_241_732_096, "qwen2.5-0.5b": 494_032_768, "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688, "qwen2.5-7b": 7_615_616_512, "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976, "qwen3-4b": 4_022_468_096, "qwen3-8b": 8_190_735_360,
    "opt-350m": 331_196_416, "opt-1.3b": 1_315_758_080, "opt-2.7b": 2_651_596_800,
    "opt-6.7b": 6_658_473_984, "gptj-6b": 6_050_882_784,
}  # fmt: skip


def test_parameter_counts_of_the_registry():
    for name, parameters in PUBLISHED.items():
        family, config, _ = describe(name)
        assert count(skeleton(family, config)) == parameters, name


def test_models_lists_every_name():
    text = models_text()
    assert set(pocket_names()) | set(REGISTRY) == {
        line.split()[0] for line in text.splitlines()[1:-2]
    }
    assert "6,738,415,616      13.5 GB  huggyllama/llama-7b" in text


@pytest.mark.parametrize(
    "name",
    ["llama-3.2-1b", "qwen2.5-3b", "qwen3-4b", "bloom-560m", "opt-350m", "gptj-6b", "pocket-opt"],
)
def test_show_adds_up(name):
    """Sites add up to the block, the parts to the model."""
    text = show_text(name)
    numbers = [
        int(found[1].replace(",", ""))
        for found in re.finditer(r"^  .*?([\d,]+)(?:   .* in 16 bits)?$", text, re.MULTILINE)
    ]
    family, config, _ = describe(name)
    model = skeleton(family, config)
    rows = len(model.sites)
    assert sum(numbers[:rows]) == numbers[rows] == count(model.blocks[0])
    assert sum(numbers[rows + 1 : -1]) == numbers[-1] == count(model)
    assert model.picture in text


def test_show_draws_what_a_row_has():
    """The norms of q and k of Qwen3, each of a head's size, where the rotary positions begin."""
    text = show_text("qwen3-0.6b")
    assert text.startswith("qwen3-0.6b: qwen3, 596,049,920 parameters")
    assert "[q] ─ [q_norm] ─ rotary" in text
    assert "[k] ─ [k_norm] ─ rotary" in text
    assert re.search(r"\[k_norm\] +self_attn\.k_norm +128, norm +128\n", text)
    assert "q_norm" not in show_text("qwen2.5-0.5b")
    assert "window of 4,096 keys in all layers" in show_text("mistral-7b")


def test_show_reads_a_folder_without_weights(tmp_path):
    (tmp_path / "config.json").write_text((POCKET / "bloom" / "config.json").read_text())
    assert "[qkv]" in show_text(str(tmp_path))
    with pytest.raises(UserError, match="cannot be reached"):
        show_text("someone/model")

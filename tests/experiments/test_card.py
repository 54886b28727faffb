"""The model card of exported folders."""

import json
import re
import shutil

import pytest
from in_command import command

from experiments.run import run as python_run
from files.errors import UserError
from train.settings import settings

CARD = ("--set", "train.max_steps=2", "--set", "eval.items=3", "--tests", "svamp,multiarith")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("a-secret-place")
    rows = [{"instruction": f"What is {n} plus 1?", "output": str(n + 1)} for n in range(8)]
    (folder / "mine.json").write_text(json.dumps(rows))
    (folder / "test").mkdir()
    tests = [{"instruction": f"What is {n} plus 1?", "answer": str(n + 1)} for n in (3, 20)]
    (folder / "sums.json").write_text(json.dumps(tests))
    command(
        "train", "--model", "pocket-llama", "--adapter", "lora", "--data", folder / "mine.json",
        "--tests", folder / "sums.json", "--out", folder / "run", "--set", "train.max_steps=2",
        "--train-on-test",
    )  # fmt: skip
    return folder / "run"


@pytest.mark.parametrize(
    "words",
    [("export", "--for", "transformers"), ("export", "--for", "peft"), ("merge",),
     ("export", "--format", "native"), ("export", "--for", "vllm"),
     ("export", "--for", "llama.cpp")],
    ids=" ".join,
)  # fmt: skip
def test_a_card_in_every_exported_folder(run, tmp_path, words):
    command(words[0], run, *words[1:], "--out", tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    front = text.split("---")[1]
    library = {
        "transformers": "transformers",
        "merge": "transformers",
        "native": None,
        "llama.cpp": "gguf",
    }
    assert re.search(r'library_name: "(\w+)"|$', front)[1] == library.get(words[-1], "peft")
    assert "base_model" not in front  # a pocket model is not on the hub
    assert "| sums | " in text
    assert "with the adapter" in text
    assert re.search(r"\[\d+\.\d, \d+\.\d\] of 2", text)  # intervals
    assert "1 of 2 problems are in the training data" in text
    assert 'data = "mine.json"' in text  # the settings, without the place
    for path in (tmp_path / "out").iterdir():
        assert b"a-secret-place" not in path.read_bytes(), path


def test_a_finished_run_is_not_overwritten_from_python(run):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="holds a finished run: give another folder"):
        python_run(settings(options={"model": "pocket-llama"}), run)
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_an_adapter_trained_further_is_beside_what_it_was_before(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "predictions-base.jsonl").rename(
        tmp_path / "run" / "predictions-before.jsonl"
    )
    command("export", tmp_path / "run", "--out", tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "| test set | before | with the adapter |" in text


@pytest.mark.parametrize("size", [0, -1])
def test_shards_have_a_size(run, tmp_path, size):
    words = ("--for", "transformers", "--shard-size", size, "--out", tmp_path / "out")
    assert "should be a number of GB" in command("export", run, *words, status=1)
    assert not (tmp_path / "out").exists()


def test_a_known_base_is_named_as_on_the_hub(tmp_path):
    from experiments.card import write_card

    write_card(
        tmp_path, "huggyllama/llama-7b", "peft", "lora at q, v", [(tmp_path, {})], None, "use"
    )
    text = (tmp_path / "README.md").read_text()
    assert 'base_model: "huggyllama/llama-7b"' in text
    assert "## Results" not in text  # nothing is known of an adapter outside of its run

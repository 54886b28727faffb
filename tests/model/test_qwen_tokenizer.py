"""Qwen2's cut of texts, and how files say whose they are: against transformers."""

import json
import random
import shutil
from pathlib import Path

import pytest
import transformers
from tokenizer_folders import (
    gpt2_files,  # noqa: F401
    write,
)

from model import UserError, load_tokenizer

transformers.logging.set_verbosity_error()


# ---------------------------------------------------------------- vocab.json and merges.txt
QWEN_TEXTS = [
    "Tom has 12345 pens, 3.14 and 1,000.", "I'm, you'RE, it's, we'LL, they'd, I've, don't, 'tis",
    "café cafe\u0301 ﬁ Å \u1e9b\u0323", "  two  spaces ", "a\n\n\nb\r\n c\t\td \n ",
    "日本語と中文。",
    "🙂👍🏽 👨‍👩‍👧",
    "x=1;y_2+=z**2 # ok!!!\n\tdef f():", "١٢٣ ½ Ⅷ ²", "مرحبا بالعالم", "नमस्ते दुनिया", "", " ",
    "\n",
    "<|im_start|>user\nhi 42<|im_end|>\n", "a<|im_end|>b", "\u00a0\u3000\u200b", "A\u0301B C\u0327",
    "<tool_call>\n{}</tool_call>", "a<|box|>b",
]  # fmt: skip
ADDED = {
    "<|endoftext|>": 50256, "<|im_start|>": 50257, "<|im_end|>": 50258, "<tool_call>": 50259,
    "<|box|>": 50260,
}  # fmt: skip


def merges_folder(folder: Path, gpt2_files, config: dict, names: dict, added: dict | None) -> str:
    folder.mkdir(exist_ok=True)
    for source, name in zip(gpt2_files, ("vocab.json", "merges.txt"), strict=True):
        shutil.copy(source, folder / name)
    if added is not None:
        write(folder, added_tokens=added)
    return write(folder, config=config, tokenizer_config=names)


@pytest.fixture(scope="module")
def first_merges(gpt2_files, tmp_path_factory) -> tuple[Path, Path]:
    """GPT-2's bytes, its first 1,000 merges and its end of a text."""
    vocabulary, merges = (path.read_text().splitlines() for path in gpt2_files)
    pieces = json.loads("\n".join(vocabulary))
    few = {piece: n for piece, n in pieces.items() if n < 1256} | {"<|endoftext|>": 1256}
    folder = tmp_path_factory.mktemp("merges")
    (folder / "vocab.json").write_text(json.dumps(few))
    (folder / "merges.txt").write_text("\n".join(merges[:1001]) + "\n")
    return folder / "vocab.json", folder / "merges.txt"


QWEN_NAMES = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": None,
              "additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}  # fmt: skip


@pytest.mark.parametrize(
    ("where", "model", "kind"),
    [
        ("added_tokens.json", "qwen2", "Qwen2Tokenizer"), ("added_tokens.json", "qwen3", None),
        ("added_tokens_decoder", "qwen2", None), ("added_tokens_decoder", "qwen3",
            "Qwen2TokenizerFast"),
    ],
)  # fmt: skip
def test_qwen2_as_in_transformers(tmp_path, gpt2_files, where, model, kind):
    names = QWEN_NAMES | ({"tokenizer_class": kind} if kind else {})
    config = {"model_type": model, "bos_token_id": 50256, "eos_token_id": 50258}
    flags = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    table = {
        str(number): {"content": text, "special": text.startswith("<|"), **flags}
        for text, number in ADDED.items()
    }
    in_file = where == "added_tokens.json"
    names |= {} if in_file else {"added_tokens_decoder": table}
    folder = merges_folder(tmp_path, gpt2_files, config, names, ADDED if in_file else None)
    ours = load_tokenizer(folder)
    theirs = transformers.Qwen2Tokenizer.from_pretrained(folder)
    words = [
        *"aÉ9 '\n\t.;我🙂\u0301\r",
        "'s",
        "'LL",
        "  ",
        "12",
        "<|im_end|>",
        "\u00a0",
        "the",
        "ß",
    ]
    rng = random.Random(0)
    texts = ["".join(rng.choices(words, k=12)) for _ in range(200)]
    for text in [*QWEN_TEXTS, *texts]:
        ids = theirs(text)["input_ids"]
        assert ours.encode(text) == ids, text
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True), text
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == (None, 50258, 50256)
    assert ours.size == 50261
    gpt2 = transformers.GPT2Tokenizer.from_pretrained(folder)
    assert gpt2("a  b 1234 I'M")["input_ids"] != ours.encode("a  b 1234 I'M")  # the cut matters


@pytest.mark.parametrize(
    ("config", "kind", "cut"),
    [
        ({"model_type": "opt"}, None, "gpt2"), ({"model_type": "gptj"}, None, "gpt2"),
        ({"model_type": "gpt2"}, "GPT2TokenizerFast", "gpt2"), ({}, "CodeGenTokenizer", "gpt2"),
        ({"model_type": "llama"}, "GPT2Tokenizer", "gpt2"),
        ({"model_type": "qwen3"}, None, "qwen2"),
        ({"model_type": "qwen2"}, "GPT2Tokenizer", "qwen2"), ({}, "Qwen2Tokenizer", "qwen2"),
        ({"model_type": "llama", "tokenizer_class": "Qwen2Tokenizer"}, None, "qwen2"),
        ({"model_type": "opt"}, "PreTrainedTokenizerFast", None),
        ({"model_type": "llama"}, None, None),
        ({}, None, None), ({"model_type": "bloom"}, None, None), ({}, "RobertaTokenizer", None),
        ({"model_type": "opt"}, "LlamaTokenizer", None), ({"model_type": ["opt"]}, None, None),
        ({"model_type": "qwen3"}, {"a": 1}, None), ({"model_type": "mistral"}, None, None),
    ],
)  # fmt: skip
def test_how_the_files_say_whose_they_are(tmp_path, first_merges, config, kind, cut):
    names = {"tokenizer_class": kind} if kind else {}
    folder = merges_folder(tmp_path, first_merges, config, names, None)
    if cut is None:
        with pytest.raises(UserError, match="GPT2Tokenizer or CodeGenTokenizer or Qwen2") as error:
            load_tokenizer(folder)
        assert "\n" not in str(error.value)
        return
    reference = transformers.Qwen2Tokenizer if cut == "qwen2" else transformers.GPT2Tokenizer
    theirs = reference.from_pretrained(folder)
    ours = load_tokenizer(folder)
    for text in ("a  b 1234 I'M", "cafe\u0301\n\nx"):
        assert ours.encode(text) == theirs(text)["input_ids"]

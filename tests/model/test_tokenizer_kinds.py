"""Templates with EOS, and special tokens of Llama-2's files: against transformers."""

import json
import shutil
from pathlib import Path

import pytest
import transformers
from tokenizer_folders import (
    gpt2_files,  # noqa: F401
    package_file,
    write,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer

from data.batches import encode_prompt, encode_row
from data.prompts import template
from model import UserError, load_tokenizer

transformers.logging.set_verbosity_error()


# ---------------------------------------------------------------- EOS of the template
VOCAB = ["<s>", "</s>", "<sep>", "Tom", "has", "pens", "?"]
BOS, EOS, SEP = 0, 1, 2
TEMPLATES = {  # single template -> what stands in front of a text
    "$A </s>": [],
    "<s> $A </s>": [BOS],
    "<s> $A": [BOS],
    "$A": [],
    "</s> $A": [EOS],
    "</s> $A </s>": [EOS],
    "<s> $A </s> </s>": [BOS],
    "<s> <sep> $A <sep> </s>": [BOS, SEP],
    "$A <sep>": [],
}


def saved_with(folder: Path, post_processor, **names) -> str:
    inner = Tokenizer(models.WordLevel({word: n for n, word in enumerate(VOCAB)}, unk_token="?"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.add_special_tokens(VOCAB[:3])
    if post_processor is not None:
        inner.post_processor = post_processor
    write(folder, tokenizer_config={"bos_token": "<s>", "eos_token": "</s>"} | names)
    inner.save(str(folder / "tokenizer.json"))
    return str(folder)


def of_template(single: str):
    tokens = [(word, n) for n, word in enumerate(VOCAB[:3])]
    return processors.TemplateProcessing(single=single, pair=f"{single} $B", special_tokens=tokens)


@pytest.mark.parametrize("single", TEMPLATES)
@pytest.mark.parametrize("add_eos", [{}, {"add_eos_token": True}, {"add_eos_token": False}])
def test_a_template_puts_something_in_front_only(tmp_path, single, add_eos):
    tokenizer = load_tokenizer(saved_with(tmp_path, of_template(single), **add_eos))
    before, words = TEMPLATES[single], [3, 4, 5]
    assert tokenizer.encode("Tom has pens") == before + words
    assert tokenizer.encode("Tom has pens", bos=False) == words
    assert tokenizer.encode("") == before
    assert tokenizer.encode("Tom </s>") == [*before, 3, EOS]  # the text's own
    row = {"instruction": "Tom has", "output": "pens"}
    assert encode_prompt(tokenizer, row, template("plain"))[1] == [*before, 3, 4]
    example, _ = encode_row(tokenizer, row, template("plain"), cutoff=50)
    assert example.ids == [*before, *words, EOS]
    assert example.weights[-2:] == [1, 1]


@pytest.mark.parametrize(
    "post_processor",
    [
        processors.RobertaProcessing(("</s>", EOS), ("<s>", BOS)),
        processors.BertProcessing(("</s>", EOS), ("<s>", BOS)),
        processors.Sequence([processors.ByteLevel(), of_template("<s> $A </s>")]),
    ],
)
def test_other_post_processors(tmp_path, post_processor):
    tokenizer = load_tokenizer(saved_with(tmp_path, post_processor))
    assert tokenizer.encode("Tom pens") == [BOS, 3, 5]
    assert tokenizer.encode("") == [BOS]


@pytest.mark.parametrize("kind", [None, "LlamaTokenizer", "PreTrainedTokenizerFast"])
def test_add_bos_token_beside_a_template(tmp_path, kind):
    """A file's BOS stays with add_bos_token = false, as in transformers; true adds one."""
    names = {"tokenizer_class": kind} if kind else {}
    folder = saved_with(tmp_path, of_template("<s> $A"), add_bos_token=False, **names)
    assert load_tokenizer(folder).encode("Tom") == [BOS, 3]
    if kind != "LlamaTokenizer":  # which transformers makes of BPE only
        assert AutoTokenizer.from_pretrained(folder)("Tom")["input_ids"] == [BOS, 3]
    folder = saved_with(tmp_path, of_template("$A </s>"), add_bos_token=True, **names)
    assert load_tokenizer(folder).encode("Tom") == [BOS, 3]


@pytest.fixture(scope="module")
def llama_model() -> Path:
    return package_file("mistral_common", "data", "tokenizer.model.v1")


def test_add_eos_token_beside_the_other_files(tmp_path, llama_model, gpt2_files):
    names = {"add_eos_token": True, "tokenizer_class": "GPT2Tokenizer"}
    write(tmp_path / "merges", tokenizer_config=names | {"eos_token": "<|endoftext|>"})
    for source, name in zip(gpt2_files, ("vocab.json", "merges.txt"), strict=True):
        shutil.copy(source, tmp_path / "merges" / name)
    write(tmp_path / "pieces", tokenizer_config=names | {"eos_token": "</s>"})
    shutil.copy(llama_model, tmp_path / "pieces" / "tokenizer.model")
    for folder in ("merges", "pieces"):
        tokenizer = load_tokenizer(str(tmp_path / folder))
        assert tokenizer.eos_id not in tokenizer.encode("Tom has pens")
        row = {"instruction": "Tom has", "output": "pens"}
        example, _ = encode_row(tokenizer, row, template("plain"), cutoff=50)
        assert example.ids[-1] == tokenizer.eos_id
        assert example.ids.count(tokenizer.eos_id) == 1


# ---------------------------------------------------------------- normalized special tokens
NORMALIZER = {
    "type": "Sequence",
    "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ],
}
SPECIAL_TEXTS = [
    "Tom", "Tom</s>", "Tom</s>has", "Tom</s> has", "Tom </s> has", "<s>Tom", "<s> Tom", "</s>",
    "</s></s>", "a</s></s>b", "a </s> </s> b", "x<unk>y", "a\n</s>\nb", "  two  spaces</s>", "",
    "<s>[INST] Tom [/INST] has </s><s>[INST] pens [/INST]", "né</s>日本", " </s> ", "<s", "</s",
]  # fmt: skip


def first_pieces(model: dict, count: int) -> dict:
    """LLaMA's BPE with its bytes, its first merges, and its characters, which come last."""
    pieces = list(model["vocab"])
    kept = {piece: i for i, piece in enumerate(dict.fromkeys([*pieces[:count], *pieces[31743:]]))}

    def stays(left: str, right: str) -> bool:
        return left in kept and right in kept and left + right in kept

    merges = [pair for pair in model["merges"] if stays(*pair)]
    return model | {"vocab": kept, "merges": merges}


@pytest.fixture(scope="module")
def llama_json(llama_model, tmp_path_factory) -> dict:
    """A tokenizer.json of some of LLaMA's pieces, in the form of Llama-2's files of 2023."""
    folder = tmp_path_factory.mktemp("pieces")
    shutil.copy(llama_model, folder / "tokenizer.model")
    raw = json.loads(transformers.LlamaTokenizer.from_pretrained(str(folder))._tokenizer.to_str())
    raw["pre_tokenizer"], raw["normalizer"] = None, NORMALIZER
    raw["post_processor"] = json.loads(
        processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
        ).__getstate__()
    )
    raw["model"] = first_pieces(raw["model"] | {"unk_token": "<unk>"}, 2000)
    return raw


def llama_2(folder: Path, raw: dict, normalized: bool, more: dict, **names) -> str:
    """The files with the special tokens' flag; more: an added token's fields or {}."""
    tokens = [token | {"normalized": normalized} for token in raw["added_tokens"]]
    if more:
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
        tokens.append(flags | {"id": len(raw["model"]["vocab"])} | more)
    named = {
        f"{kind}_token": {"__type": "AddedToken", "content": text, "normalized": normalized,
                          "lstrip": False, "rstrip": False, "single_word": False}
        for kind, text in (("bos", "<s>"), ("eos", "</s>"), ("unk", "<unk>"))
    }  # fmt: skip
    write(folder, tokenizer=raw | {"added_tokens": tokens}, tokenizer_config=named | names)
    return write(folder, config={"model_type": "llama"})


@pytest.mark.parametrize(
    ("kind", "legacy"),
    [
        ("LlamaTokenizer", {}), ("LlamaTokenizer", {"legacy": False}),
        ("LlamaTokenizerFast", {"legacy": True}), ("CodeLlamaTokenizer", {"legacy": True}),
    ],
)  # fmt: skip
def test_normalized_special_tokens_of_llama(tmp_path, llama_json, kind, legacy):
    folder = llama_2(tmp_path, llama_json, True, {}, tokenizer_class=kind, **legacy)
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    for text in SPECIAL_TEXTS:
        ids = theirs(text)["input_ids"]
        assert ours.encode(text) == ids, text
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True), text
        assert ours.decode(ids, special=True) == theirs.decode(ids), text
    assert ours.decode([1, 2, 0]) == ""


@pytest.mark.parametrize(
    "more",
    [
        {"content": "<x>"}, {"content": "<x>", "special": True}, {"content": "<x>", "lstrip": True},
        {"content": "<x>", "rstrip": True, "special": True}, {"content": "<x>", "normalized": True},
    ],
)  # fmt: skip
def test_added_tokens_beside_normalized_ones(tmp_path, llama_json, more):
    folder = llama_2(tmp_path, llama_json, True, more, tokenizer_class="LlamaTokenizer")
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    for text in ("a<x>b", "a <x> b", "<x>", "<x></s>", "</s> <x>\n\nb", "<x><x>"):
        ids = theirs(text)["input_ids"]
        assert ours.encode(text) == ids, text
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True), text


@pytest.mark.parametrize("kind", [None, "PreTrainedTokenizerFast"])
def test_other_classes_are_read_as_the_file_says(tmp_path, llama_json, kind):
    """As transformers does, which leaves the special tokens in the text; we do not."""
    names = {"tokenizer_class": kind} if kind else {}
    folder = llama_2(tmp_path, llama_json, True, {}, **names)
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    for text in SPECIAL_TEXTS:
        assert ours.encode(text) == theirs(text)["input_ids"], text
    assert ours.decode([1, llama_json["model"]["vocab"]["ing"], 2]) == "ing"


def test_files_whose_special_tokens_are_not_normalized_stay_as_they_are(tmp_path, llama_json):
    folder = llama_2(tmp_path, llama_json, False, {}, tokenizer_class="LlamaTokenizer")
    ours, file = load_tokenizer(folder), Tokenizer.from_file(f"{folder}/tokenizer.json")
    for text in SPECIAL_TEXTS:
        assert ours.encode(text) == file.encode(text).ids, text


@pytest.mark.parametrize("there", [True, False])
def test_a_named_token_is_special_though_the_file_does_not_say_so(tmp_path, llama_json, there):
    raw = json.loads(json.dumps(llama_json))
    eos = raw["added_tokens"].pop(2)
    raw["added_tokens"] += [eos | {"special": False}] if there else []
    write(tmp_path, tokenizer=raw, config={"model_type": "llama"})
    write(tmp_path, tokenizer_config={"eos_token": "</s>", "bos_token": "<s>"})
    ours, theirs = load_tokenizer(str(tmp_path)), AutoTokenizer.from_pretrained(str(tmp_path))
    for text in ("Tom</s>has", "</s>", "a </s>"):
        ids = theirs(text)["input_ids"]
        assert ours.encode(text) == ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


# ---------------------------------------------------------------- added tokens of tokenizer.model
def test_added_tokens_beside_tokenizer_model(tmp_path, llama_model):
    shutil.copy(llama_model, tmp_path / "tokenizer.model")
    flags = {"normalized": False, "single_word": False}
    table = {
        "32000": {"content": "<|im_end|>", "special": True, **flags},
        "32001": {"content": "<call>", "special": False, **flags},
        "32002": {"content": "<call>>", "special": False, "lstrip": True, "rstrip": True, **flags},
    }
    write(tmp_path, tokenizer_config={"added_tokens_decoder": table})
    ours = load_tokenizer(str(tmp_path))
    a, b = ours.encode("a", bos=False), ours.encode("b", bos=False)
    assert ours.size == 32003
    assert ours.encode("a<|im_end|>b", bos=False) == [*a, 32000, *b]
    assert ours.encode("a<call>>b", bos=False) == [*a, 32002, *b]
    assert ours.encode("a <call>>\n b", bos=False) == [*a, 32002, *b]
    assert ours.encode("a<call>b<call>", bos=False) == [*a, 32001, *b, 32001]
    ids = [1, *a, 32000, *b, 32001, *b, 2, 0]
    assert ours.decode(ids) == "a b<call> b"
    assert ours.decode(ids, special=True) == "<s> a<|im_end|> b<call> b</s><unk>"


@pytest.mark.parametrize(
    "table",
    [[], "x", {"a": {"content": "x"}}, {"-1": {"content": "x"}}, {"5": "x"}, {"5": {}},
     {"5": {"content": ""}}, {"5": {"content": 7}}, {"99999999999": {"content": "x"}}],
)  # fmt: skip
def test_malformed_added_tokens(tmp_path, llama_model, table):
    shutil.copy(llama_model, tmp_path / "tokenizer.model")
    write(tmp_path, tokenizer_config={"added_tokens_decoder": table or [1]})
    with pytest.raises(UserError, match=r"tokenizer_config\.json: added_tokens_decoder"):
        load_tokenizer(str(tmp_path))

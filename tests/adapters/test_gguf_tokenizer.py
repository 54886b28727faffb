"""Tokenizers in GGUF files: what stands in the fields, and the tokens that llama.cpp makes by them.

llama.cpp's sentencepiece is written down here; the rest it is asked itself, where it is installed.
"""

import json
from itertools import chain, pairwise
from pathlib import Path

import pytest
import sentencepiece
from gguf_reader import LlamaCpp, needs_llama_cpp, package
from tokenizer_folders import (
    TEXTS,
    gpt_folder,  # noqa: F401
    llama_folder,  # noqa: F401
    write,
)
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from adapters.formats.gguf_files import write_file
from adapters.formats.gguf_tokenizer import tokenizer_fields
from files.errors import UserError
from model import load_tokenizer
from model.tokenizer_bounds import BLOOM, LLAMA3, QWEN2

PREPEND = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
WORDS = pre_tokenizers.ByteLevel(add_prefix_space=False)
DIGITS = pre_tokenizers.Digits(individual_digits=True)
MORE = ["I'm, you'RE 12345 3.14!!\n\n\n x", "hello the there", "a<eos>b <eos>", " the  the\n"]


def split(pattern: str):
    cut = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence([cut, BYTES])


CUTS = {  # llama.cpp's name -> pre-tokenizer, normalizer, ignore_merges
    "gpt-2": (WORDS, None, False),
    "smollm": (pre_tokenizers.Sequence([DIGITS, WORDS]), None, False),
    "llama-bpe": (split(LLAMA3), None, True),
    "qwen2": (split(QWEN2), normalizers.NFC(), False),
    "bloom": (split(BLOOM), None, False),
}  # fmt: skip


def byte_level(folder: Path, name: str = "gpt-2", **flags) -> str:
    """A tokenizer.json with GPT-2's bytes and a few merges; flags: of its EOS."""
    cut, normalizer, ignore_merges = CUTS[name]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("1", "2"), ("l", "l"), ("'", "s"), ("Ċ", "Ċ")]
    pieces = [*letters, *("".join(pair) for pair in merges), "hello"]  # hello: no merge makes it
    vocab = {piece: number for number, piece in enumerate(pieces)}
    inner = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=ignore_merges))
    inner.pre_tokenizer, inner.normalizer = cut, normalizer
    inner.add_special_tokens([AddedToken("<eos>", normalized=False, special=True, **flags)])
    inner.add_tokens([AddedToken("<tool>", normalized=False)])
    return saved(inner, folder, {"eos_token": "<eos>", "pad_token": "<eos>"})


def like_llama(folder: Path, byte_fallback: bool = True) -> str:
    """Sentencepiece's BPE as a tokenizer.json, with BOS in its template."""
    letters = [f"<0x{byte:02X}>" for byte in range(256)] + ["▁", *"aehilost."]
    merges = [("h", "e"), ("▁", "t"), ("l", "l"), ("▁t", "he"), ("t", "he"), ("i", "s"), ("l", "o")]
    pieces = ["<unk>", "<s>", "<eos>", *letters, *("".join(pair) for pair in merges)]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    inner = Tokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=byte_fallback)
    )
    inner.normalizer = normalizers.Sequence(PREPEND)
    names = ("<unk>", "<s>", "<eos>")
    inner.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in names])
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    special = {"bos_token": "<s>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return saved(inner, folder, special)


def saved(inner: Tokenizer, folder: Path, names: dict) -> str:
    folder.mkdir(exist_ok=True)
    inner.save(str(folder / "tokenizer.json"))
    return write(folder, tokenizer_config=names)


def fields_of(folder: str, more: int = 3) -> dict:
    """The fields without their prefix; more: rows of the embedding without a token."""
    tokenizer = load_tokenizer(folder)
    fields = tokenizer_fields(tokenizer, tokenizer.size + more, "{{ messages }}")
    assert fields.pop("tokenizer.chat_template") == "{{ messages }}"
    return {key.removeprefix("tokenizer.ggml."): value for key, value in fields.items()}


def in_llama_cpp(folder: str, path: Path) -> LlamaCpp:
    """llama.cpp with this tokenizer and no weights."""
    fields = {f"tokenizer.ggml.{key}": value for key, value in fields_of(folder).items()}
    sizes = {"context_length": 64, "embedding_length": 32, "block_count": 1,
             "feed_forward_length": 32, "attention.head_count": 1,
             "attention.layer_norm_rms_epsilon": 1e-5}  # fmt: skip
    write_file(path, "llama", fields | {f"llama.{k}": v for k, v in sizes.items()}, {})
    return LlamaCpp(path, vocab_only=True)


def sentencepiece_ids(fields: dict, text: str) -> list[int]:
    """How llama.cpp cuts a text without special tokens: the best pair of neighbours first."""
    ids = {text: number for number, text in enumerate(fields["tokens"])}
    pieces = list((" " * (fields["add_space_prefix"] and text != "") + text).replace(" ", "▁"))
    while True:
        pairs = [
            (-fields["scores"][ids[one + other]], n)
            for n, (one, other) in enumerate(pairwise(pieces))
            if one + other in ids
        ]
        if not pairs:
            break
        n = min(pairs)[1]
        pieces[n : n + 2] = [pieces[n] + pieces[n + 1]]
    whole = [[ids[piece]] if piece in ids else
             [ids[f"<0x{byte:02X}>"] for byte in piece.encode()] for piece in pieces]  # fmt: skip
    return [*chain(*whole)]


@pytest.mark.parametrize("name", CUTS)
def test_byte_level(name, tmp_path):
    folder = byte_level(tmp_path, name)
    raw = json.loads((tmp_path / "tokenizer.json").read_text())
    fields = fields_of(folder)
    assert (fields["model"], fields["pre"]) == ("gpt2", name)
    assert fields["merges"] == [" ".join(pair) for pair in raw["model"]["merges"]]
    vocab, size = raw["model"]["vocab"], len(raw["model"]["vocab"])
    assert [fields["tokens"].index(token) for token in vocab] == [*vocab.values()]
    end = ["<eos>", "<tool>", *(f"[PAD{size + 2 + n}]" for n in range(3))]
    assert fields["tokens"][size:] == end
    types = package().TokenType
    kinds = [*size * [types.NORMAL], types.CONTROL, types.USER_DEFINED, *3 * [types.UNUSED]]
    assert fields["token_type"] == kinds
    assert fields["eos_token_id"] == fields["padding_token_id"] == size
    assert "bos_token_id" not in fields
    assert (fields["add_bos_token"], fields["add_eos_token"]) == (False, False)


@pytest.mark.parametrize("kind", ["tokenizer.model", "tokenizer.json"])
def test_sentencepiece(kind, request, tmp_path):
    folder = like_llama(tmp_path)
    if kind == "tokenizer.model":
        folder = str(request.getfixturevalue("llama_folder"))
    fields, tokenizer = fields_of(folder), load_tokenizer(folder)
    assert fields["model"] == "llama"
    assert fields["add_bos_token"]
    assert fields["bos_token_id"] == tokenizer.bos_id == 1
    types = package().TokenType
    assert fields["token_type"][fields["tokens"].index("<0x0A>")] == types.BYTE
    assert fields["token_type"][1] == types.CONTROL
    for text in [*TEXTS, *MORE]:
        if "<" not in text and "\x00" not in text:
            assert sentencepiece_ids(fields, text) == tokenizer.encode(text, bos=False), text


@needs_llama_cpp
@pytest.mark.parametrize("kind", [*CUTS, "pocket", "gpt_folder", "llama_folder", "like_llama"])
def test_tokens_of_llama_cpp(kind, request, tmp_path):
    """Texts that NFC changes are left out: llama.cpp has no normalizer."""
    if kind == "pocket":
        folder = "pocket-llama"
    elif kind in CUTS:
        folder = byte_level(tmp_path, kind)
    else:
        folder = like_llama(tmp_path) if kind == "like_llama" else request.getfixturevalue(kind)
    tokenizer, llama = load_tokenizer(str(folder)), in_llama_cpp(str(folder), tmp_path / "v.gguf")
    for text in [*TEXTS, *MORE]:
        if "\x00" in text or (kind == "qwen2" and "\u0301" in text):
            continue
        assert llama.ids(text) == tokenizer.encode(text), text


@pytest.mark.parametrize(("scheme", "said"), [("first", 1), ("always", 0), ("never", 0)])
def test_a_space_in_front_where_the_file_has_it_as_a_pre_tokenizer(scheme, said, tmp_path, recwarn):
    before = fields_of(like_llama(tmp_path))
    raw = json.loads((tmp_path / "tokenizer.json").read_text())
    cut = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}
    write(tmp_path, tokenizer=raw | {"normalizer": None, "pre_tokenizer": cut})
    assert fields_of(str(tmp_path)) == before | {"add_space_prefix": scheme != "never"}
    write(tmp_path, tokenizer=raw | {"normalizer": raw["normalizer"]["normalizers"][1]})
    assert fields_of(str(tmp_path)) == before | {"add_space_prefix": False}
    assert len([w for w in recwarn if "a space after special tokens" in str(w.message)]) == said


def pieces(folder: Path, **options) -> str:
    """A tokenizer.model, trained on a few words."""
    words = [
        "Tom has three pens and Amy has four",
        "how many pens has Tom now",
        "one two three",
    ] * 9
    with (folder / "tokenizer.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(words), model_writer=file, minloglevel=2, byte_fallback=True,
            vocab_size=310, hard_vocab_limit=False, remove_extra_whitespaces=False, **options,
        )  # fmt: skip
    return write(folder, tokenizer_config={"eos_token": "</s>"})


REFUSED = {
    "unigram": (
        lambda f: pieces(f, model_type="unigram", normalization_rule_name="identity"),
        "unigram scores",
    ),
    "other letters": (lambda f: pieces(f, model_type="bpe"), "a normalization of the text"),
    "an end that takes spaces with it": (lambda f: byte_level(f, rstrip=True), "'<eos>' with rstr"),
    "no bytes": (lambda f: like_llama(f, byte_fallback=False), "it has no byte_fallback"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_tokenizers_that_llama_cpp_has_no_form_for(what, tmp_path):
    make, why = REFUSED[what]
    with pytest.raises(UserError, match=why):
        fields_of(make(tmp_path))


def test_a_trained_tokenizer_model(tmp_path):
    folder = pieces(tmp_path, model_type="bpe", normalization_rule_name="identity")
    fields, tokenizer = fields_of(folder), load_tokenizer(folder)
    assert tokenizer.bos_id is None  # no file names it, and it is in front of each text
    assert (fields["bos_token_id"], fields["add_bos_token"]) == (1, True)
    for text in ("Tom has  two pens", "manyseven ", "ﬁ²"):
        assert sentencepiece_ids(fields, text) == tokenizer.encode(text, bos=False)


def test_a_cut_that_has_no_name_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(CUTS, "gpt-2", (split(r"\d+"), None, False))
    with pytest.raises(UserError, match=r"the pre-tokenizer .*\\d+"):
        fields_of(byte_level(tmp_path))


def test_no_end_is_refused(tmp_path):
    folder = byte_level(tmp_path)
    write(tmp_path, tokenizer_config={})
    with pytest.raises(UserError, match="has no EOS"):
        fields_of(folder)

"""Text to ids and back, for both kinds of tokenizer file."""

import io
import json

import pytest

from model import UserError, load_tokenizer

TEXTS = ["Tom has 3 pens.", "  two  spaces", "naïve café", "日本語と中文", "مرحبا", "🙂👍🏽",
         "def f(x):\n\treturn x**2", "1,234.50 and 2048", "\u0000\u200b", ""]


@pytest.fixture(scope="module")
def sentencepiece_folder(tmp_path_factory):
    """A small tokenizer.model made as LLaMA's is: BPE, bytes for what is unknown, digits one by one."""
    import sentencepiece

    folder, model = tmp_path_factory.mktemp("spm"), io.BytesIO()
    sentences = ["the cat sat on the mat and looked at the dog", "we have 12 apples and 7 pears in two boxes"] * 50
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=model, vocab_size=350, model_type="bpe", byte_fallback=True, split_digits=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    (folder / "config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": -1}))
    return folder


@pytest.mark.parametrize("text", TEXTS)
def test_round_trip(sentencepiece_folder, text):
    for name in ("pocket-llama", str(sentencepiece_folder)):
        tokenizer = load_tokenizer(name)
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_sentencepiece_special_ids(sentencepiece_folder):
    tokenizer = load_tokenizer(str(sentencepiece_folder))
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, None)
    assert tokenizer.encode("the cat")[0] == 1
    assert tokenizer.encode("the cat", bos=False) == tokenizer.encode("the cat")[1:]


def test_pocket_numbers_and_prompt_are_single_tokens():
    from data.prompts import PREAMBLE, RESPONSE

    tokenizer = load_tokenizer("pocket-llama")
    for text in (" 0", " 7", " 42", " 130", PREAMBLE, RESPONSE):
        assert len(tokenizer.encode(text)) == 1, text
    assert tokenizer.eos_id is not None
    assert tokenizer.pad_id is not None


def test_same_ids_as_transformers():
    transformers = pytest.importorskip("transformers")
    from model.registry import resolve

    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(resolve("pocket-llama") / "tokenizer.json"))
    ours = load_tokenizer("pocket-llama")
    for text in TEXTS:
        assert ours.encode(text) == theirs(text)["input_ids"]


def test_broken_files_are_named(tmp_path):
    with pytest.raises(UserError, match="holds no tokenizer"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.model").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"tokenizer\.model cannot be read"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json cannot be read"):
        load_tokenizer(str(tmp_path))

"""Text to ids and back, for every kind of tokenizer file, against transformers."""

import io
import json
import shutil

import pytest
from tokenizer_folders import (
    TEXTS,
    gpt_folder,  # noqa: F401
    llama_folder,  # noqa: F401
    opt_folder,  # noqa: F401
    whole_opt_folder,  # noqa: F401
)

from model import UserError, load_tokenizer


@pytest.fixture(
    scope="module", params=["pocket-llama", "llama_folder", "gpt_folder", "whole_opt_folder"]
)
def any_tokenizer(request):
    return load_tokenizer(
        request.param
        if request.param.startswith("pocket")
        else str(request.getfixturevalue(request.param))
    )


def test_round_trip(any_tokenizer):
    for text in TEXTS:
        if "</s>" not in text:
            assert any_tokenizer.decode(any_tokenizer.encode(text)) == text


def test_bytes_that_are_no_text_do_not_stop_decoding(any_tokenizer):
    ids = any_tokenizer.encode("🙂", bos=False)
    for cut in range(1, len(ids)):
        assert set(any_tokenizer.decode(ids[:cut])) <= {"\ufffd", " "}


def test_a_space_between_prompt_and_answer_is_kept(any_tokenizer):
    whole = any_tokenizer.encode("The capital of France is Paris now.")
    for cut in range(1, len(whole)):
        before, behind = whole[:cut], whole[cut:]
        assert (
            any_tokenizer.decode(before) + any_tokenizer.decode(behind, after=before)
            == "The capital of France is Paris now."
        )


def test_llama_ids(llama_folder):
    """Against transformers; where its conversion (5.23) leaves sentencepiece's own ids, at
    leading and double spaces, against those.
    """
    transformers = pytest.importorskip("transformers")
    pytest.importorskip(
        "google.protobuf", reason="transformers reads tokenizer.model through protobuf"
    )
    ours = load_tokenizer(str(llama_folder))
    theirs = transformers.LlamaTokenizer.from_pretrained(str(llama_folder), add_bos_token=True)
    for text in TEXTS:
        if not text.startswith(" ") and "  " not in text.rstrip() and "</s>" not in text:
            assert ours.encode(text) == theirs(text)["input_ids"], text
            assert ours.decode(ours.encode(text)) == theirs.decode(
                theirs(text)["input_ids"], skip_special_tokens=True
            )
    assert ours.encode("  two  spaces") == [1, 259, 989, 28705, 10599]
    assert ours.encode(" one") == [1, 28705, 624]
    assert ours.encode("a</s>b") == [
        1,
        264,
        2,
        287,
    ]  # each part begins with LLaMA's own space, as LLaMA-1's published tokenizer.json says
    assert (ours.bos_id, ours.eos_id, ours.pad_id, ours.size) == (1, 2, None, 32000)
    assert ours.encode("a b")[0] == 1
    assert ours.encode("a b", bos=False) == ours.encode("a b")[1:]


def test_gptj_ids(gpt_folder):
    transformers = pytest.importorskip("transformers")
    ours, theirs = (
        load_tokenizer(str(gpt_folder)),
        transformers.GPT2Tokenizer.from_pretrained(str(gpt_folder)),
    )
    for text in [*TEXTS, "one<|endoftext|>two"]:
        ids = ours.encode(text)
        assert ids == theirs(text)["input_ids"], text
        assert ours.decode(ids) == theirs.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
    assert (ours.bos_id, ours.eos_id, ours.pad_id, ours.size) == (50256, 50256, None, 50257)


def test_opt_ids(opt_folder):
    transformers = pytest.importorskip("transformers")
    ours, theirs = (
        load_tokenizer(str(opt_folder)),
        transformers.GPT2Tokenizer.from_pretrained(str(opt_folder)),
    )
    for text in TEXTS:
        assert (
            ours.encode(text, bos=False) == theirs(text, add_special_tokens=False)["input_ids"]
        ), text
        assert ours.encode(text) == [2, *ours.encode(text, bos=False)], text
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == (2, 2, 1)
    (opt_folder / "tokenizer_config.json").unlink()  # the family's rule without it
    assert load_tokenizer(str(opt_folder)).encode("pens")[0] == 2


def test_a_template_that_has_the_bos_gets_no_second_one(tmp_path, opt_folder):
    """tokenizer.json files with their own template, beside add_bos_token in tokenizer_config.json
    (Llama-2).
    """
    from tokenizers import Tokenizer, processors

    made = load_tokenizer(str(opt_folder)).inner.inner
    made.post_processor = processors.TemplateProcessing(
        single="</s> $A", special_tokens=[("</s>", 2)]
    )
    made.save(str(opt_folder / "tokenizer.json"))
    ids = load_tokenizer(str(opt_folder)).encode("pens")
    assert ids[0] == 2
    assert ids.count(2) == 1
    plain = Tokenizer.from_file(str(opt_folder / "tokenizer.json"))
    plain.post_processor = processors.ByteLevel()
    plain.save(str(opt_folder / "tokenizer.json"))
    assert load_tokenizer(str(opt_folder)).encode("pens") == ids


def test_galactica_has_no_bos(opt_folder):
    """It is an OPT with a tokenizer.json of its own, which puts nothing in front."""
    load_tokenizer(str(opt_folder)).inner.inner.save(str(opt_folder / "tokenizer.json"))
    (opt_folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast"}'
    )
    (opt_folder / "config.json").write_text('{"model_type": "opt", "bos_token_id": 0}')
    ours = load_tokenizer(str(opt_folder))
    assert ours.encode("pens") == ours.encode("pens", bos=False)


def test_settings_of_tokenizer_config(llama_folder, gpt_folder, tmp_path):
    transformers = pytest.importorskip("transformers")
    for name in ("tokenizer.model", "config.json"):
        shutil.copy(llama_folder / name, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": false}')
    (tmp_path / "added_tokens.json").write_text('{"<pad>": 32000}')
    ours = load_tokenizer(str(tmp_path))
    assert ours.encode("a<pad>b") == [264, 32000, 287]
    assert (ours.size, ours.decode([264, 32000])) == (32001, "a")
    other = tmp_path / "gpt"
    shutil.copytree(gpt_folder, other)
    (other / "added_tokens.json").write_text('{"<|extra|>": 50257}')
    config = json.loads((other / "tokenizer_config.json").read_text())
    (other / "tokenizer_config.json").write_text(json.dumps(config | {"add_prefix_space": True}))
    ours, theirs = (
        load_tokenizer(str(other)),
        transformers.GPT2Tokenizer.from_pretrained(str(other)),
    )
    assert ours.encode("hello<|extra|>b")[1] == 50257
    assert ours.encode("hello") == theirs("hello")["input_ids"]


def test_sentencepiece_without_a_bos(tmp_path):
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sat on the mat"] * 50),
        model_writer=model,
        vocab_size=270,
        model_type="bpe",
        byte_fallback=True,
        bos_id=-1,
        minloglevel=2,
        hard_vocab_limit=False,
    )
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    assert load_tokenizer(str(tmp_path)).encode("the cat") == load_tokenizer(str(tmp_path)).encode(
        "the cat", bos=False
    )


def test_pocket_numbers_and_prompt_are_single_tokens():
    from data.prompts import PREAMBLE, RESPONSE

    tokenizer = load_tokenizer("pocket-llama")
    for text in (" 0", " 7", " 42", " 130", PREAMBLE, RESPONSE):
        assert len(tokenizer.encode(text)) == 1, text
    assert tokenizer.eos_id is not None
    assert tokenizer.pad_id is not None


def test_pocket_ids():
    transformers = pytest.importorskip("transformers")
    from model.registry import resolve

    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(resolve("pocket-llama") / "tokenizer.json")
    )
    ours = load_tokenizer("pocket-llama")
    for text in TEXTS:
        assert ours.encode(text) == theirs(text)["input_ids"]


def test_broken_files_are_named(tmp_path, gpt_folder):
    with pytest.raises(UserError, match="holds no tokenizer"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(UserError, match=r"merges\.txt is missing"):
        load_tokenizer(str(tmp_path))
    for vocab, merges, named in (
        ('{"a": "b"}', "a b", "vocab"),
        ('{"a": -1}', "a b", "vocab"),
        ("[]", "a b", "vocab"),
        ('{"a": 0}', "a b", "merges"),
        ('{"a": 0}', "a\nb c d", "merges"),
    ):
        (tmp_path / "vocab.json").write_text(vocab)
        (tmp_path / "merges.txt").write_text(merges)
        with pytest.raises(UserError, match=named) as error:
            load_tokenizer(str(tmp_path))
        assert "\n" not in str(error.value)
    (tmp_path / "tokenizer.model").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"tokenizer\.model cannot be read"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json cannot be read"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text("7")
    with pytest.raises(UserError, match=r"tokenizer_config\.json holds"):
        load_tokenizer(str(tmp_path))

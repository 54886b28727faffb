"""Tokenizers as Mistral's and Qwen's folders have them, against transformers."""

import json

import pytest

from model import load_tokenizer

TEXTS = [
    "Hello this is a test.",
    "  two  spaces\n\nand lines\t\ttabs ",
    "I'll say 1234567 or 3.14!",
    "cafe\u0301 Ünï",
    "人工智能 🦙",
    "<|im_start|>user\nhi<|im_end|>\n",
    "a</s>b",
    "",
]


def qwen_like():
    """Byte-level BPE behind NFC and the pattern that cuts single digits; no BOS."""
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )

    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
        ]
    )
    return tokenizer, {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "bos_token": None,
        "pad_token": "<|endoftext|>",
        "add_bos_token": False,
    }


def mistral_like():
    """Sentencepiece's BPE as tokenizer.json: ▁ in front and for spaces, bytes for the unknown."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    letters = [f"<0x{byte:02X}>" for byte in range(256)] + ["▁", *"aehilost."]
    pieces = ["<unk>", "<s>", "</s>", *letters]
    merges = [("▁", "t"), ("h", "e"), ("l", "l"), ("i", "s"), ("▁t", "he"), ("ll", "o")]
    pieces += [first + second for first, second in merges]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    bpe = models.BPE(
        vocab=vocab,
        merges=merges,
        unk_token="<unk>",
        byte_fallback=True,
        fuse_unk=True,
        ignore_merges=False,
    )
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in ("<unk>", "<s>", "</s>")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer, {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }


@pytest.mark.parametrize("made", [qwen_like, mistral_like])
def test_tokenizers_of_their_kind_equal_transformers(tmp_path, made):
    transformers = pytest.importorskip("transformers")
    tokenizer, names = made()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(names))
    ours = load_tokenizer(str(tmp_path))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == theirs(text)["input_ids"], text
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True), text
        assert ours.encode(text, bos=False) == theirs(text, add_special_tokens=False)["input_ids"]
    assert ours.eos_id == theirs.eos_token_id
    assert ours.bos_id == theirs.bos_token_id

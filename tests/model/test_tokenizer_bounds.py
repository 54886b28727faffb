"""Files of tokenizers that multiply a text, backtrack for ever, or load for minutes."""

import json
import sys

import pytest

from files import tokenizing
from files.errors import UserError
from model.added_tokens import read_added_tokens
from model.tokenizer import Tokenizer
from model.tokenizer_bounds import InChild, growth

SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
DOUBLED = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
ENDLESS = {
    "type": "Split",
    "pattern": {"Regex": "(a+)+$x"},
    "behavior": "Isolated",
    "invert": False,
}
LIMITS = r"needs more than 256 MB|takes longer than 0.5 s|makes [\d,]+ of"
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


@pytest.fixture(autouse=True)
def low_limits(monkeypatch):
    """A quarter of what a user has, so that as little is computed in vain."""
    assert (tokenizing.SECONDS, tokenizing.MEMORY) == (2, 2**30)
    monkeypatch.setattr(tokenizing, "SECONDS", 0.5)
    monkeypatch.setattr(tokenizing, "MEMORY", 2**28)


def folder(path, model: dict | None = None, **parts):
    """A folder with a tokenizer.json of these parts."""
    vocabulary = {"type": "BPE", "vocab": {"a": 0, "▁": 1, "b": 2}, "merges": []}
    raw = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": []}
    raw |= dict.fromkeys(("normalizer", "pre_tokenizer", "post_processor", "decoder"))
    raw |= {"model": vocabulary | (model or {})} | parts
    (path / "tokenizer.json").write_text(json.dumps(raw))
    return path


def sequence(*parts, kind: str = "normalizers") -> dict:
    return {"type": "Sequence", kind: list(parts)}


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"normalizer": sequence(*[DOUBLED] * 40)}, LIMITS),
        ({"normalizer": sequence(*[DOUBLED | {"content": "a" * 1000}] * 2)}, LIMITS),
        ({"pre_tokenizer": ENDLESS}, "cannot be used: Onig|takes longer"),
        (
            {"normalizer": {"type": "Replace", "pattern": {"Regex": "(a+)+$x"}, "content": ""}},
            "cannot be used|takes longer",
        ),
        ({"pre_tokenizer": sequence(*[BYTES] * 40, kind="pretokenizers")}, LIMITS),
    ],
)
def test_a_text_is_cut_up_within_bounds(tmp_path, parts, said):
    text = ("a" * 49 + "é") if "pre_tokenizer" in parts else "a" * 50
    with pytest.raises(UserError, match=said) as error:
        Tokenizer(folder(tmp_path, **parts)).encode(text)
    assert len(str(error.value).splitlines()) == 1


def test_answers_are_put_together_within_bounds(tmp_path):
    tokenizer = Tokenizer(folder(tmp_path, decoder=sequence(*[DOUBLED] * 40, kind="decoders")))
    with pytest.raises(UserError, match=LIMITS):
        tokenizer.decode([0] * 10)


def test_an_unknown_pattern_gives_the_same_tokens_in_the_child_process(tmp_path):
    split = ENDLESS | {"pattern": {"Regex": "b+|a"}}
    tokenizer = Tokenizer(folder(tmp_path, pre_tokenizer=split))
    assert isinstance(tokenizer.inner.inner, InChild)
    assert tokenizer.encode("abba") == [0, 2, 2, 0]
    assert tokenizer.encode_with_offsets("ab") == ([0, 2], [(0, 1), (1, 2)])
    assert tokenizer.decode([0, 2]) == tokenizer.inner.inner.inner.decode([0, 2])


def test_ordinary_parts_run_in_this_process(tmp_path):
    assert growth(sequence({"type": "Prepend", "prepend": "▁"}, SPACES)) == 1
    assert growth(sequence(*[DOUBLED] * 5)) == 32
    assert growth({"type": "Something"}) == float("inf")
    tokenizer = Tokenizer(folder(tmp_path, normalizer=SPACES, pre_tokenizer=BYTES))
    assert not isinstance(tokenizer.inner.inner, InChild)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a" * 9999, 0.0]]}}, "vocabulary"),
        ({"added_tokens": [{"id": 3, "content": "ab" * 999}]}, "added tokens"),
        ({"model": {"dropout": 0.5}}, r"model.dropout = 0.5: it would cut the same text"),
    ],
)
def test_what_would_load_for_minutes_or_draw_tokens_is_refused(tmp_path, parts, said):
    with pytest.raises(UserError, match=said):
        Tokenizer(folder(tmp_path, **parts))


@pytest.mark.parametrize("change", [{"vocab": dict.fromkeys("abcd", 0)}, {"merges": ["a b"] * 4}])
def test_a_vocabulary_without_end(tmp_path, monkeypatch, change):
    monkeypatch.setattr("model.tokenizer_bounds.ENTRIES", 3)
    with pytest.raises(UserError, match=f"its {next(iter(change))} has 4 entries: too many"):
        Tokenizer(folder(tmp_path, change))


def test_a_template_of_many_pieces_is_not_run(tmp_path):
    """Its pieces and their ids multiply: 500 of each would be 250,000 tokens a text."""
    pieces = [{"SpecialToken": {"id": "b", "type_id": 0}}] * 400
    many = {"b": {"id": "b", "ids": [2] * 300, "tokens": ["b"] * 301}}
    template = {"type": "TemplateProcessing", "single": pieces, "pair": [], "special_tokens": many}
    with pytest.raises(UserError, match="post_processor has 1,001 entries: too many"):
        Tokenizer(folder(tmp_path, post_processor=template))


def test_added_tokens_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr("model.added_tokens.ADDED", 5)
    (tmp_path / "added_tokens.json").write_text('{"<1>": 1, "<2>": 2}')
    with pytest.raises(UserError, match="added tokens have 6 characters: too many"):
        read_added_tokens(tmp_path, {})


def test_a_template_puts_few_tokens_before_a_text(tmp_path):
    pieces = [{"SpecialToken": {"id": "b", "type_id": 0}}] * 65
    pieces.append({"Sequence": {"id": "A", "type_id": 0}})
    template = {
        "type": "TemplateProcessing", "single": pieces, "pair": pieces,
        "special_tokens": {"b": {"id": "b", "ids": [2], "tokens": ["b"]}},
    }  # fmt: skip
    with pytest.raises(UserError, match="puts 65 tokens before every text"):
        Tokenizer(folder(tmp_path, post_processor=template))


def test_a_panic_of_the_library_is_one_line(tmp_path, capfd):
    broken = {"type": "Precompiled", "precompiled_charsmap": "AAAABBBB"}
    with pytest.raises(UserError, match=r"tokenizer\.json cannot be read: Precompiled"):
        Tokenizer(folder(tmp_path, normalizer=broken))
    assert capfd.readouterr().err == ""
    print("stderr is there again", file=sys.stderr)
    assert "there again" in capfd.readouterr().err

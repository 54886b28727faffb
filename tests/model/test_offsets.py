"""Tokens with the characters that they stand for."""

import random
from importlib.util import find_spec
from pathlib import Path

import pytest

from model import UserError, load_tokenizer

TEXTS = ["", " ", "Tom has 3 pens.", "Héllo 日本 \n x\U0001f600  y", "</s>a</s> b", "a</s>\n<s> 日"]


def sentencepiece_folder(folder: Path) -> Path:
    source = Path(find_spec("mistral_common").origin).parent / "data" / "tokenizer.model.v1"
    (folder / "tokenizer.model").write_bytes(source.read_bytes())
    return folder


@pytest.fixture(params=["pocket-llama", "tokenizer.model"])
def tokenizer(request, tmp_path):
    if request.param == "pocket-llama":
        return load_tokenizer("pocket-llama")
    return load_tokenizer(str(sentencepiece_folder(tmp_path)))


def test_ids_are_those_of_encode_and_places_cover_the_text(tokenizer):
    draw = random.Random(0)
    letters = "aé日\U0001f600 \n\t bcXY  n\u0301"
    texts = TEXTS + ["".join(draw.choices(letters, k=draw.randint(1, 25))) for _ in range(200)]
    for text in texts:
        ids, places = tokenizer.encode_with_offsets(text)
        assert ids == tokenizer.encode(text, bos=False), text
        assert all(0 <= start <= end <= len(text) for start, end in places), text
        starts = [start for start, _ in places]
        assert starts == sorted(starts)
        covered = {n for start, end in places for n in range(start, end)}
        assert all(text[n].isspace() for n in range(len(text)) if n not in covered), text


def test_a_special_token_is_one_place(tmp_path):
    tokenizer = load_tokenizer(str(sentencepiece_folder(tmp_path)))
    ids, places = tokenizer.encode_with_offsets("one</s> two")
    (at,) = [n for n, token in enumerate(ids) if tokenizer.is_special(token)]
    assert places[at] == (3, 7)
    assert places[-1] == (7, 11)


def test_a_model_that_changes_its_text_is_refused(tmp_path, monkeypatch):
    tokenizer = load_tokenizer(str(sentencepiece_folder(tmp_path)))
    inner = tokenizer.inner
    with pytest.raises(UserError, match="changes the text that it encodes"):
        inner.places("two", inner.ask("encode", ["one"])[0])

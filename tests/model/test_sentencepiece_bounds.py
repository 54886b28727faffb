"""A tokenizer.model of other people: parsed and run in the child process."""

import struct

import pytest

from files import tokenizing
from files.errors import UserError
from model import tokenizer_sentencepiece
from model.tokenizer import Tokenizer


# ---------------------------------------------------------------- protobuf by hand
def number(n: int) -> bytes:
    low, rest = n & 127, n >> 7
    return bytes([low | 128]) + number(rest) if rest else bytes([low])


def part(field: int, content: bytes) -> bytes:
    return number(field << 3 | 2) + number(len(content)) + content


def piece(text: str, kind: int = 1) -> bytes:
    return part(1, part(1, text.encode()) + b"\x18" + number(kind))


PIECES = piece("<unk>", 2) + piece("<s>", 3) + piece("</s>", 3) + b"".join(map(piece, "▁abc"))
BPE = part(2, b"\x18\x02")


def folder(path, pieces: bytes = PIECES, normalizer: bytes = b""):
    """A folder with a tokenizer.model of these pieces."""
    (path / "tokenizer.model").write_bytes(pieces + BPE + part(3, normalizer + b"\x18\x01\x20\x01"))
    return path


def growing(length: int) -> bytes:
    """A normalizer whose table makes so many characters of an "a"."""
    units = [0] * 256
    first = 1 ^ ord("a")
    units[0], units[first], units[200] = 1 << 10, ord("a") | 1 << 8 | (first ^ 200) << 10, 1 << 31
    table = struct.pack("<256I", *units)
    return part(2, struct.pack("<I", len(table)) + table + b"b" * length + b"\0")


def test_it_is_run_as_it_stands(tmp_path):
    tokenizer = Tokenizer(folder(tmp_path))
    ids = tokenizer.encode("ab</s> c")
    assert ids == [1, 3, 4, 5, 2, 3, 6]
    assert tokenizer.decode(ids) == "ab c"
    assert tokenizer.decode(ids[1:], special=True) == "ab</s> c"
    assert (tokenizer.bos_id, tokenizer.inner.token_id("b"), tokenizer.inner.token_id("z")) == (
        None, 5, None,
    )  # fmt: skip
    folder(tmp_path, PIECES + piece("ab"))  # the file is another one now
    assert Tokenizer(tmp_path).encode("ab") == [1, 3, 7]


def test_a_text_that_is_multiplied(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizing, "SECONDS", 0.3)
    tokenizer = Tokenizer(folder(tmp_path, normalizer=growing(300_000)))
    assert tokenizer.encode("b") == [1, 3, 5]
    with pytest.raises(UserError, match=r"tokenizer\.model (takes longer|needs more|makes)"):
        tokenizer.encode("a" * 1000)


@pytest.mark.parametrize("content", [b"", b"nothing", piece("a"), PIECES + piece("a") + BPE])
def test_what_sentencepiece_cannot_read(tmp_path, content):
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(UserError, match=r"tokenizer\.model cannot be read: ") as error:
        Tokenizer(tmp_path)
    assert len(str(error.value).splitlines()) == 1


def test_too_many_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer_sentencepiece, "SPECIAL", 2)
    with pytest.raises(UserError, match="3 control and added tokens are too many"):
        Tokenizer(folder(tmp_path))
    pieces = tokenizing.Pieces.__new__(tokenizing.Pieces)
    monkeypatch.setattr(tokenizing, "PIECES", 3)
    pieces.inner = type("Inner", (), {"vocab_size": lambda self: 4})()
    with pytest.raises(UserError, match="it has 4 pieces"):
        pieces.table()

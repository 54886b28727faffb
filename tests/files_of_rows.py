"""Files of rows in any form, and what reading them gives and says."""

import json

import pytest

from data.rows import read_table
from model import UserError


@pytest.fixture
def write(tmp_path):
    def make(name: str, content) -> str:
        path = tmp_path / name
        if not isinstance(content, str):
            content = "\n".join(map(json.dumps, content))
        path.write_text(content)
        return path

    return make


BOTH = ("instruction", "answer")


@pytest.fixture
def read(tmp_path):
    """read(name, content, ...): the rows of a file with this content."""

    def write_and_read(name: str, content: str | bytes, columns=None, need=BOTH) -> list[dict]:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return read_table(path, columns, need)

    write_and_read.folder = tmp_path
    return write_and_read


@pytest.fixture
def said(read):
    """said(name, content, ...): the one line that such a file ends in."""

    def fail(*arguments, **named) -> str:
        with pytest.raises(UserError) as error:
            read(*arguments, **named)
        assert "\n" not in str(error.value)
        assert str(read.folder / arguments[0]) in str(error.value)
        return str(error.value)

    return fail

"""The command line in this process: importing torch anew takes seconds."""

import contextlib
import io
import re
from pathlib import Path

from cli.main import COMMANDS, build_parser, main

__all__ = ["COMMANDS", "build_parser", "command", "main", "mentions"]
HERE = Path(__file__).parent


def command(*words, status: int | None = 0) -> str:
    """What it says on both outputs; the status must be this one (None: any)."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        ended = main([str(word) for word in words])
    assert status in (ended, None), told.getvalue()
    return told.getvalue()


def mentions(test: str, *texts: str) -> None:
    """Fail unless the test FILE::NAME is there and its source, decorators too, has these texts."""
    file, _, name = test.partition("::")
    source = (HERE / file).read_text()
    decorators = r"(?:^@pytest[^\n]*\n(?:(?!def |@pytest\.fixture)[^\n]*\n)*)?"
    body = rf"^def {name}\(.*?(?=^def |^@|^class |\Z)"
    found = re.search(decorators + body, source, re.M | re.S)
    assert found, f"there is no test {test}"
    for text in texts:
        assert text in found[0], f"{test} does not mention {text}"

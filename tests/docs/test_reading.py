"""The core stays small enough to be read: the list of docs/design-notes.md."""

import re

from pages import BY_NAME
from processes import ROOT

BOUND = 5_000


def test_what_to_read_is_at_most_5000_lines():
    section = re.search(r"^## What to read\n(.*?)^## ", BY_NAME["design-notes"], re.DOTALL | re.M)[
        1
    ]
    rows = [line for line in section.splitlines() if line.startswith("| ")]
    named = re.findall(r"`([^`]+\.py)`", "\n".join(rows))
    files = [path for name in named for path in ROOT.glob(name)]
    assert len(files) == len(set(files)) >= len(named)
    for needed in ("model/llama.py", "adapters/methods/lora.py", "train/loop.py"):
        assert ROOT / needed in files
    for name in re.findall(r"`([^`*]+(?:\.py|/))`", section):
        assert (ROOT / name).exists(), name
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert sum(lines.values()) <= BOUND, sum(lines.values())
    assert f"under {BOUND:,} lines" in section

"""What report.html and table.html share: the frame, one self-contained file, light and dark, any
width; and what each test set tests, in a line."""

import html
from pathlib import Path

from data.sources import SOURCES

STYLE = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")


def page(title: str, body: str, wide: bool = False) -> str:
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{esc(title)}</title><style>{STYLE}</style>
<body{' class="wide"' * wide}>
<h1>{esc(title)}</h1>
{body}
</body></html>
"""


def esc(text: object) -> str:
    return html.escape(str(text))


def paragraph(text: str, small: bool = False) -> str:
    if not text:
        return ""
    return f"<p><small>{esc(text)}</small></p>" if small else f"<p>{esc(text)}</p>"


def explanation(name: str, data: str) -> str:
    """What the test set of this name tests; data: what the run was trained on."""
    unseen = name.endswith("-unseen")
    known = {key.lower(): source.problems for key, source in SOURCES.items()}
    text = known.get(name.lower().removesuffix("-unseen"))
    if not text:
        return f"rows held out of {data}" if name in data else "rows of your file"
    if unseen or data == "wordproblems":
        text = text.replace(" (", "; generated, modelled on ")[:-1]
    return text + "; in sentence forms that training did not have" * unseen

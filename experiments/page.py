"""The frame of report.html and table.html: one self-contained file, light and dark, any width."""

import html
from pathlib import Path

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

"""Tables of scores: rows of cells, made once and printed as text, Markdown, HTML or CSV."""

import csv
import html
import io
from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """One cell of a table."""

    text: str = ""
    detail: str = ""  # what belongs to a figure: "[38.1, 46.0] of 250"; smaller in HTML
    bar: float | None = None  # in HTML a bar of this share of the cell's width
    marked: bool = False  # in HTML bold and red

    def __str__(self) -> str:
        return f"{self.text} {self.detail}".strip()


@dataclass(frozen=True)
class Table:
    """Heads and rows of cells or texts; the first `names` columns are names, the others figures."""

    heads: tuple[str, ...]
    rows: list[list[Cell | str]]  # when made, cells only
    names: int = 1

    def __post_init__(self):
        cells = [[Cell(c) if isinstance(c, str) else c for c in row] for row in self.rows]
        object.__setattr__(self, "rows", cells)

    def to_text(self) -> list[str]:
        """Lines with aligned columns: names and details on the left, figures on the right."""
        columns = list(zip(*self.rows, strict=True)) or [()] * len(self.heads)
        lines = [""] * (len(self.rows) + 1)
        for number, (head, cells) in enumerate(zip(self.heads, columns, strict=True)):
            wide = max((len(cell.text) for cell in cells), default=0)
            if number < self.names:
                texts = [head, *(cell.text for cell in cells)]
            elif any(cell.detail for cell in cells):
                texts = [head, *(f"{cell.text:>{wide}} {cell.detail}" for cell in cells)]
            else:
                wide = max(wide, len(head))
                texts = [f"{text:>{wide}}" for text in (head, *(cell.text for cell in cells))]
            wide = max(map(len, texts))
            lines = [f"{line}  {text:{wide}}" for line, text in zip(lines, texts, strict=True)]
        return [line[2:].rstrip() for line in lines]

    def to_markdown(self) -> str:
        rows = [self.heads, ["---"] * len(self.heads), *([str(c) for c in r] for r in self.rows)]
        return "".join(f"| {' | '.join(row)} |\n" for row in rows)

    def to_html(self) -> str:
        """A <table> within a box that scrolls sideways where the page is narrow."""
        kinds = ["" if number < self.names else ' class="n"' for number in range(len(self.heads))]
        pairs, rows = zip(kinds, self.heads, strict=True), ""
        heads = "".join(f"<th{kind}>{html.escape(head)}</th>" for kind, head in pairs)
        for row in self.rows:
            cells = (f"<td{kind}>{cell_html(c)}</td>" for kind, c in zip(kinds, row, strict=True))
            rows += f"<tr>{''.join(cells)}</tr>"
        return f'<div class="scroll"><table><tr>{heads}</tr>\n{rows}</table></div>'

    def to_csv(self) -> str:
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        texts = [self.heads, *([cell.text for cell in row] for row in self.rows)]
        writer.writerows([[as_text(text) for text in row] for row in texts])
        return buffer.getvalue()


def as_text(text: str) -> str:
    """A cell that a spreadsheet does not compute: ' before =, +, -, @, tab or line end, except for
    numbers."""
    try:
        float(text)
    except ValueError:
        return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r", "\n") and text else text
    return text


def cell_html(cell: Cell) -> str:
    text = html.escape(cell.text)
    text = f'<b class="wrong">{text}</b>' if cell.marked else text
    if cell.detail:
        interval, bracket, rest = html.escape(cell.detail).partition("]")
        rest = f"<span>{rest}</span>" if rest else ""  # on a line of its own where it is narrow
        text = f"{text} <small>{interval}{bracket}{rest}</small>"
    if cell.bar is not None:
        text += f'<span class="bar"><i style="width:{100 * cell.bar:.1f}%"></i></span>'
    return text

"""The rationales that the six math sets ship, read by both readers, beside the published row of the
model that wrote them."""

from data.sources import source_rows
from eval.answers import MODES, is_right, read_answer
from experiments.published import figures_table, published


def teacher_figures(data_dir: str = "") -> dict[str, list[float]]:
    """Reader -> percent right of each full set, in the order of Table 1, and their mean.

    Raises UserError where the data is missing.
    """
    sets = {name: source_rows(name, data_dir) for name in published()["math-v1"].sets}
    figures = {}
    for mode in MODES:
        right = [
            sum(is_right(read_answer(row["output"], name, mode), row["answer"]) for row in rows)
            for name, rows in sets.items()
        ]
        percents = [100 * n / len(rows) for n, rows in zip(right, sets.values(), strict=True)]
        figures[mode] = [*percents, sum(percents) / len(percents)]
    return figures


def teacher_lines(data_dir: str = "") -> list[str]:
    table, figures = published()["math-v1"], teacher_figures(data_dir)
    rows = {
        "rationales, strict": table.figures(figures["strict"]),
        "rationales, the paper's reader": table.figures(figures["paper"]),
        f"published, {table.teacher[0]}": table.figures(table.teacher[1]),
    }
    return [
        *figures_table("over the full sets", rows, digits=2).to_text(),
        "The published row does not follow from the rationales that were published with the data: "
        "both readers score them higher on every set.",
        "The readers differ most in AQuA, where the paper's takes the first capital A to E of a "
        'text, even that of "Answer".',
    ]

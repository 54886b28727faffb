"""The rationales that the six math sets ship, read by both readers, beside the published row of the model that wrote them."""

from data.sources import source_rows
from eval.answers import MODES, is_right, read_answer
from experiments.published import published
from experiments.text import figure_lines


def teacher_figures(data_dir: str = "") -> dict[str, list[float]]:
    """reader -> percent right of each full set in the order of Table 1, and their mean. Raises UserError where the data is missing."""
    sets = {name: source_rows(name, data_dir) for name in published()["math-v1"].sets}
    figures = {}
    for mode in MODES:
        right = [
            sum(is_right(read_answer(row["output"], name, mode), row["answer"]) for row in rows)
            for name, rows in sets.items()
        ]
        percents = [100 * one / len(rows) for one, rows in zip(right, sets.values(), strict=True)]
        figures[mode] = [*percents, sum(percents) / len(percents)]
    return figures


def teacher_lines(data_dir: str = "") -> list[str]:
    table, figures = published()["math-v1"], teacher_figures(data_dir)
    rows = {
        "rationales, strict": figures["strict"],
        "rationales, the paper's reader": figures["paper"],
        f"published, {table.teacher[0]}": table.teacher[1],
    }
    return [
        *figure_lines("over the full sets", table.sets, rows, digits=2),
        "The published row does not follow from the rationales that were published with the data: by either reader they score higher on every set.",
        'The readers differ most in AQuA, where the paper\'s takes the first capital A to E of a text, that of "Answer" too.',
    ]

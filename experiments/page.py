"""What report.html and table.html share: the frame, one self-contained file, light and dark, any
width; and what each test set tests, in a line."""

import html
from pathlib import Path

STYLE = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")

ABOUT = {
    "multiarith": "arithmetic word problems of two or more steps (Roy & Roth 2015)",
    "addsub": "addition and subtraction in short stories (Hosseini et al. 2014)",
    "singleeq": "word problems that one equation solves (Koncel-Kedziorski et al. 2015)",
    "svamp": "one-step problems, reworded so that key words mislead (Patel et al. 2021)",
    "gsm8k": "grade-school problems of two to eight steps (Cobbe et al. 2021)",
    "aqua": "algebra with five options, A to E (Ling et al. 2017)",
    "mathqa": "GRE and GMAT problems with five options, A to E (Amini et al. 2019)",
    "mawps": "a collection of arithmetic word problems (Koncel-Kedziorski et al. 2016)",
    "boolq": "yes-or-no questions, asked without their passage (Clark et al. 2019)",
    "piqa": "which of two solutions works: everyday physics (Bisk et al. 2020)",
    "social_i_qa": "what people feel, want and do next: three answers (Sap et al. 2019)",
    "hellaswag": "which of four endings continues a text (Zellers et al. 2019)",
    "winogrande": "which of two names a pronoun means (Sakaguchi et al. 2020)",
    "arc-easy": "school science that word overlap often solves (Clark et al. 2018)",
    "arc-challenge": "school science that word overlap does not solve (Clark et al. 2018)",
    "openbookqa": "science facts with common sense: four answers (Mihaylov et al. 2018)",
}


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
    text = ABOUT.get(name.lower().removesuffix("-unseen"))
    if text is None:
        return f"rows held out of {data}" if name in data else "rows of your file"
    if unseen or data == "wordproblems":
        text = text.replace(" (", "; generated, modelled on ")[:-1]
    return text + "; in sentence forms that training did not have" * unseen

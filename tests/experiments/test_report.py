"""report.html: what it holds, and that it fits every screen."""

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace

import pytest

from adapters import attach
from adapters.config import resolve
from data.sources import SOURCES
from eval.answers import KINDS
from eval.score import Score
from eval.table import Cell, Table
from experiments.comparable import Conditions
from experiments.curves import loss_chart, smooth, ticks
from experiments.entries import Entry
from experiments.page import explanation
from experiments.published import published
from experiments.report import write_report
from experiments.results import PublishedRow
from experiments.table import write_table
from model import load_model

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
LONG = "word" * 60  # a word that no screen has room for
FACTS = {
    "adapter": "parallel",
    "model": "pocket-llama",
    "data": "wordproblems",
    "continued_from": "",
    "history": [],
    "held_out_loss": {},
    "problems": [],
    "notes": [],
    "trained_on_test": [],
    "trainable_parameters": 79360,
    "parameters": 906880,
    "steps": 60,
    "seconds": 36,
    "skipped_steps": 0,
    "rows_cut_off": 3,
    "rows_left_out": 0,
    "adapter_step": 40,
    "validation": {"best_step": 40, "best_loss": 0.0571},
    "decoding": "greedy",
}


def predictions(name: str, right: int, total: int, **more) -> list[dict]:
    return [
        {
            "set": name,
            "index": n,
            "instruction": f"What is {n} + 1 <now>? {LONG if n == 0 else ''}",
            "prompt": "",
            "output": f"The answer is {n + (n < right)}. {LONG if n == 1 else ''}",
            "gold": str(n + 1),
            "answer": float(n + (n < right)),
            "right": n < right,
            "paper_answer": None,
            "paper_right": False,
            **more,
        }
        for n in range(total)
    ]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A function: writes a report and returns its path."""
    model = load_model("pocket-llama")
    config = attach(model, "parallel")

    def written(before, after, losses=200, rows="", **facts):
        folder = tmp_path_factory.mktemp("run-" + LONG[:40])
        steps = [
            {
                "step": n + 1,
                "loss": 3 / (n + 1) + 0.1 * (n % 3),
                "learning_rate": 1e-4 * n,
                "validation_loss": 0.5 if n % 50 == 49 else None,
            }
            for n in range(losses)
        ]
        (folder / "log.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
        toml = f'model = "pocket-llama"\nadapter.note = "{LONG}"\n'
        whole = FACTS | facts
        conditions = Conditions(whole["model"], whole["data"], resolve("paper-parallel"), 1.0, rows)
        write_report(folder, model, config, toml, whole, before, after, conditions)
        return folder / "report.html"

    return written


@pytest.fixture(scope="module")
def full(report):
    """The report of a run with everything that one can have."""
    sets = published()["math-v1"].sets
    before = [p for name in sets for p in predictions(name, 2, 20)]
    after = [p for name in sets for p in predictions(name, 14, 20)]
    for prediction in after[:3]:
        prediction["leak"] = "twin"
    return report(
        before,
        after,
        data="math-v1",
        model="llama-7b",
        problems=["the loss ended above where it began " + LONG],
        notes=["accuracy fell, within what chance can do"],
    )


def test_means_by_distribution_are_those_of_one_training_set(report):
    after = [p for name in ("MultiArith", "SVAMP", "gsm8k") for p in predictions(name, 1, 2)]
    page = report([], after, data="math_10k").read_text()
    assert "MultiArith (leaks)" in page
    assert "out of distribution" in page
    page = report([], after, data="math_10k", rows="and others").read_text()
    assert "(leaks)" not in page
    assert "distribution" not in page


def test_a_report_holds_what_a_reader_asks_for(full):
    page = full.read_text()
    assert "10.0% → 70.0%" in page
    assert "<b>[mlp]</b>" in page
    assert page.count('class="answer right"><small>with adapter') == 5
    assert page.count('class="answer wrong"><small>with adapter') == 5
    assert page.count("<small>base</small>") == page.count("<small>with adapter</small>") == 10
    assert "What is 0 + 1 &lt;now&gt;?" in page
    for name in published()["math-v1"].sets:
        text = SOURCES[name].problems.replace("&", "&amp;")
        assert f"<dt>{name}</dt><dd>{text}</dd>" in page
    assert "Not comparable: llama-7b Parallel of Table 1 of arXiv 2304.01933v1" in page
    assert "here MultiArith 20 of 120" in page
    assert "Problem: the loss ended above where it began" in page
    assert "3 training rows cut off; the adapter is that of step 40" in page
    assert "rows left out" not in page  # there were none
    settings = page.index("<details><summary>Settings")
    assert settings < page.index("adapter.note") < page.index("</details>", settings)
    assert "PyTorch" in page
    assert "--config" in page


def test_a_note_stands_only_where_its_column_does(full, report):
    after = predictions("addsub", 3, 4)
    page = report([], after).read_text()
    assert "clean part" in full.read_text()
    assert "clean part" not in page.lower()
    assert '<th class="n">base</th>' not in page
    assert "<small>base</small>" not in page
    assert "Beside the published figures" not in page
    assert "75.0%" in page
    assert (
        "Accuracy"
        not in report([], [], held_out_loss={"before": 3.0, "after": 2.0, "rows": 3}).read_text()
    )


def test_a_table_explains_the_readers_and_columns_that_it_has(tmp_path):
    table = published()["math-v1"]
    scores = {name: Score(n // 2, n) for name, n in zip(table.sets, table.problems, strict=True)}
    entry = Entry("llama-7b", "parallel", 0, scores, scores, 5, 10, (2.0, 1.0))
    row = PublishedRow("Parallel", table.rows_of("llama-7b")[0].figures, comparable=True)
    entry = replace(entry, published=(row,))
    pages = []
    for entries in ([replace(entry, published=())], [entry, replace(entry, seed=1)]):
        write_table(tmp_path, entries, table)
        pages.append((tmp_path / "table.html").read_text())
    for words in ("difference:", "mean of seeds:"):
        assert [words in page for page in pages] == [False, True]
    assert all("held-out loss:" not in page for page in pages)
    assert all("paper: the same answers" in page for page in pages)


def test_a_report_asks_nothing_of_the_network(full):
    assert not re.findall(r"https?:|url\(|<script|<link|<img|@import", full.read_text())


def test_the_loss_is_drawn_raw_smoothed_and_on_validation_rows():
    assert smooth([1.0, 2.0, 6.0], 1) == [1.5, 3.0, 4.0]
    steps = [{"step": n, "loss": 1.0 + n % 2, "learning_rate": 1e-3} for n in range(1, 61)]
    assert "validation" not in loss_chart(steps)
    steps[29]["validation_loss"] = 1.25
    chart = loss_chart(steps)
    drawn = {
        css: [tuple(map(float, point.split())) for point in path[1:].split("L")]
        for css, path in re.findall(r'<path class="(raw|smooth|checked)" d="([^"]+)"', chart)
    }
    assert [len(drawn[css]) for css in ("raw", "smooth", "checked")] == [60, 60, 1]
    spread = {css: max(y for _, y in p) - min(y for _, y in p) for css, p in drawn.items()}
    assert spread["raw"] > 2 * spread["smooth"]
    assert "mean of 5 steps" in chart
    assert ticks(0.04, 1.3, True) == [0.05, 0.1, 0.2, 0.5, 1.0]
    assert ticks(1.0, 2.0, False) == [1.0, 1.5, 2.0]
    assert "no step" in loss_chart([{"step": 1, "loss": None, "learning_rate": 0}]).lower()


def test_every_test_set_is_explained():
    explained = {name.lower() for name, source in SOURCES.items() if source.problems}
    assert {name.removesuffix("-unseen") for name in KINDS} == explained
    assert explanation("multiarith-unseen", "wordproblems").endswith("training did not have")
    assert "generated" in explanation("gsm8k", "wordproblems")
    assert "generated" not in explanation("gsm8k", "math-v1")


def test_one_table_prints_the_same_cells_in_every_form():
    table = Table(("set", "a"), [[Cell("x"), Cell("5.0%", "[1.0, 9.0] of 4", bar=0.05)]])
    assert table.to_text() == ["set  a", "x    5.0% [1.0, 9.0] of 4"]
    assert table.to_markdown() == "| set | a |\n| --- | --- |\n| x | 5.0% [1.0, 9.0] of 4 |\n"
    assert table.to_csv() == "set,a\nx,5.0%\n"
    assert "5.0% <small>[1.0, 9.0]<span> of 4</span></small>" in table.to_html()


# ---------------------------------------------------------------- in a browser
PROBE = """<script>addEventListener("load", () => {
  const outside = [...document.querySelectorAll("body *")].filter(e =>
    !e.closest(".scroll, pre, svg") && e.getBoundingClientRect().right > innerWidth + 1);
  const answers = [...document.querySelectorAll(".pair")][0]?.children ?? [];
  parent.document.documentElement.dataset.probe = JSON.stringify({
    window: innerWidth,
    page: document.documentElement.scrollWidth,
    outside: outside.slice(0, 5).map(e => e.tagName + "." + e.className),
    back: getComputedStyle(document.body).backgroundColor,
    columns: new Set([...answers].map(e => Math.round(e.getBoundingClientRect().left))).size})
})</script></body>"""


def look_at(page, width: int, dark: bool, tmp_path) -> dict:
    """The layout of a page in a frame of this width: a browser's window has a least one."""
    frame = html.escape(page.read_text().replace("</body>", PROBE))
    probed = tmp_path / "probed.html"
    probed.write_text(f'<iframe srcdoc="{frame}" width="{width}" height="2000" frameborder="0">')
    done = subprocess.run(
        [
            CHROMIUM,
            *("--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"),
            *("--enable-logging=stderr", "--hide-scrollbars", "--window-size=1400,2000"),
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            f"file://{probed}",
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    errors = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not errors, errors
    found = re.search(r'data-probe="([^"]+)"', done.stdout)
    assert found, done.stderr[-2000:]
    return json.loads(html.unescape(found[1]))


@pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed")
@pytest.mark.parametrize(("width", "dark"), [(400, True), (1280, False)])
def test_a_page_fits_its_window_in_both_colour_schemes(full, tmp_path, width, dark):
    seen = look_at(full, width, dark, tmp_path)
    assert seen["window"] == width
    assert seen["page"] <= width
    assert not seen["outside"]
    assert (sum(map(int, re.findall(r"\d+", seen["back"])[:3])) < 150) is dark
    assert seen["columns"] == (1 if width == 400 else 2)  # answers side by side, or stacked
    if width == 400:
        scores = {"gsm8k": Score(5, 10)}
        entry = Entry("llama-7b", "lora", 0, scores, scores, 5, 10, (2.0, 1.0))
        write_table(tmp_path, [entry, replace(entry, adapter="series")], None)
        assert look_at(tmp_path / "table.html", width, dark, tmp_path)["page"] <= width

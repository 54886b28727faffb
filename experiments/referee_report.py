"""referee.md and referee.html: which methods differ, and how the ranking depends on the setup."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from eval.table import Cell, Table
from experiments.axes import value_text
from experiments.compare import difference_cell, p_text, verdict_cells
from experiments.page import page, paragraph
from experiments.trials import ENOUGH, PairVerdict, Ranking, Verdict
from files.writing import write_text

TITLE = "Which methods differ"


def write_report(folder: Path, verdict: Verdict) -> None:
    """Write folder/referee.md and referee.html."""
    markdown, html = [f"# {TITLE}\n"], []
    for title, intro, table, notes in sections(verdict):
        markdown += [f"## {title}\n", f"{intro}\n", table.to_markdown()]
        markdown += ["\n".join(f"- {note}" for note in notes) + "\n"] * bool(notes)
        html += [f"<h2>{title}</h2>", paragraph(intro), table.to_html()]
        html += [paragraph(note, small=True) for note in notes]
    write_text(folder / "referee.md", "\n".join(markdown))
    write_text(folder / "referee.html", page(TITLE, "\n".join(html), wide=True))


def sections(verdict: Verdict) -> list[tuple[str, str, Table, list[str]]]:
    """(title, sentence, table, notes) of each section."""
    main, others = verdict.main, verdict.rankings[1:]
    return [
        ("Ranking", budget_text(verdict), ranking_table(verdict), edge_notes(verdict)),
        (
            "Pairs",
            f"The first is the better one; {noise_text(verdict)} p is Holm's over the "
            f"{len(main.pairs)} pairs; below 0.05 they differ.",
            pair_table(main.pairs),
            [],
        ),
        (
            "How the ranking changes",
            "Accuracy in percent and, in brackets, the rank.",
            change_table(verdict),
            [change_text(main, other) for other in others] + leak_notes(verdict),
        ),
        (
            "Rates",
            "Loss on held-out training rows, mean of the seeds, by which the rate is chosen; after "
            "it the accuracy on the tests, which chooses nothing. The chosen one is marked *.",
            rate_table(verdict),
            [],
        ),
    ]


def summary_lines(verdict: Verdict) -> list[str]:
    """The verdict for the terminal: the ranking, and a sentence on every pair."""
    lines = ranking_table(verdict).to_text()
    return [*lines, "", *map(pair_text, verdict.main.pairs), noise_text(verdict)]


def budget_text(verdict: Verdict) -> str:
    rates = next(iter(verdict.trials.jobs.values()))
    job = next(verdict.trials.all_jobs())
    listed = ", ".join(map(value_text, sorted(rates)))
    return (
        f"{job.model} on {job.settings.data}, {verdict.problems} test problems. Every method had "
        f"the rates {listed} and {verdict.seeds} seed{'s' * (verdict.seeds > 1)}; the rate was "
        f"chosen on {job.settings.train.validation_rows} held-out training rows, not on the tests."
    )


def noise_text(verdict: Verdict) -> str:
    if verdict.seeds >= ENOUGH:
        return "the noise of problems and of seeds is in the intervals."
    return (
        f"the seeds' noise is not in the intervals, which takes {ENOUGH} seeds: the verdict is on "
        "these trained models, not on the methods."
    )


def ranking_table(verdict: Verdict) -> Table:
    main, trials, rows = verdict.main, verdict.trials, []
    for method in main.order:
        jobs = trials.tuned()[method]
        results = [trials.results[job.folder] for job in jobs]
        seeds = main.seeds[method]
        spread = f"[{100 * min(seeds):.1f}, {100 * max(seeds):.1f}]"
        memory = max(one.peak_memory_bytes for one in results)
        cells = [
            Cell(f"{100 * main.accuracy(method):.1f}%", spread),
            value_text(trials.rate(method)),
            f"{results[0].trainable_parameters:,}",
            f"{fmean(one.seconds for one in results):.0f}",
            f"{memory / 1e6:,.0f} MB",
        ]
        rows.append([method, *cells])
    heads = ("method", "accuracy [lowest, highest seed]", "rate", "parameters", "seconds", "memory")
    return Table(heads, rows)


def edge_notes(verdict: Verdict) -> list[str]:
    """Methods whose rate is the lowest or highest tried."""
    notes, trials = [], verdict.trials
    for method, rates in trials.jobs.items():
        rate = trials.rate(method)
        if rate in (min(rates), max(rates)):
            end = "lowest" if rate == min(rates) else "highest"
            notes.append(
                f"{method}: {value_text(rate)} is the {end} rate tried; it may gain from others."
            )
    return notes


def pair_table(pairs: Sequence[PairVerdict]) -> Table:
    rows = [
        [pair.first, pair.second, difference_cell(pair.difference), *verdict_cells(pair)]
        for pair in pairs
    ]
    heads = ("first", "second", "difference in points [95%]", "p", "p (Holm)", "verdict")
    return Table(heads, rows, names=2)


def pair_text(pair: PairVerdict) -> str:
    """ "dora - lora: +0.4 [-1.2, +2.0] points, p 1: not told apart"."""
    end = "they differ" if pair.differ else "not told apart"
    difference = difference_cell(pair.difference)
    return f"{pair.first} - {pair.second}: {difference} points, p {p_text(pair.p_holm)}: {end}"


def change_table(verdict: Verdict) -> Table:
    rows = []
    for method in verdict.main.order:
        cells = []
        for ranking in verdict.rankings:
            rank = ranking.order.index(method) + 1
            cells.append(Cell(f"{100 * ranking.accuracy(method):.1f}", f"({rank})"))
        rows.append([method, *cells])
    return Table(("method", *(ranking.title for ranking in verdict.rankings)), rows)


def change_text(main: Ranking, other: Ranking) -> str:
    """How many pairs differ under another way of measuring, and whose verdict is another."""
    changed = []
    for pair in main.pairs:
        now = other.pair(pair.first, pair.second)
        turned = now.differ and pair.differ and now.first != pair.first
        if turned or now.differ != pair.differ:
            was, end = ("differ" if p.differ else "not told apart" for p in (pair, now))
            end = f"{now.first} is the better one" if turned else end
            changed.append(f"{pair.first} and {pair.second} ({was}: {end})")
    count = sum(pair.differ for pair in other.pairs)
    text = f"{other.title}: {count} of {len(other.pairs)} pairs differ"
    count = sum(pair.differ for pair in main.pairs)
    text += f" ({count} with {main.title})"
    return f"{text}; other verdicts: {', '.join(changed)}." if changed else f"{text}; none changed."


def leak_notes(verdict: Verdict) -> list[str]:
    if verdict.leaked:
        return [f"{verdict.leaked} of {verdict.problems} problems are in the training rows."]
    return ["without leaked problems: no test problem is in the training rows, nothing changes."]


def rate_table(verdict: Verdict) -> Table:
    """A row for each method, a column for each rate."""
    trials = verdict.trials
    rates = sorted(next(iter(trials.jobs.values())))
    rows = []
    for method in verdict.main.order:
        cells = []
        for rate in rates:
            right = fmean(trials.right(job).mean() for job in trials.jobs[method][rate])
            chosen = " *" * (rate == trials.rate(method))
            cells.append(Cell(f"{trials.loss(method, rate):.4f}{chosen}", f"{100 * right:.1f}%"))
        rows.append([method, *cells])
    return Table(("method", *map(value_text, rates)), rows)

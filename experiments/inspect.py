"""Predictions one by one: the wrong ones, those of one set, those that another run has wrong."""

from collections.abc import Sequence
from pathlib import Path

from eval.score import Score, read_predictions
from experiments.history import history_text
from experiments.results import loss_text, read_result
from files.errors import UserError, unknown

FILE = "predictions.jsonl"


def predictions_in(path: Path) -> list[dict]:
    """The predictions of a run's or an evaluation's folder, or of a file. Raises UserError."""
    if not path.exists():
        raise UserError(f"{path} does not exist: give the folder of a run or of an evaluation")
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        unfinished = ": it is not finished" * file.with_name(f"{FILE}.part").is_file()
        raise UserError(f"{path} holds no {FILE}{unfinished}")
    return read_predictions(file)


def without_predictions(path: Path) -> bool:
    """Whether this is the folder of a complete run or evaluation whose data has no test set."""
    file = path / FILE
    empty = not file.exists() or (file.is_file() and not file.stat().st_size)
    return empty and (path / "result.json").is_file() and not read_result(path).strict


def run_lines(path: Path) -> list[str]:
    """From a run's result.json: held-out loss, problems, notes, and what the adapter was trained on
    before; or that it cannot be read."""
    if not (path / "result.json").is_file():
        return []
    try:
        result = read_result(path)
    except UserError as error:
        return [f"note: {error}"]
    loss = loss_text(result.held_out_loss)
    return [
        *([f"held-out loss per token: {loss}"] if loss else []),
        *(f"PROBLEM: {problem}" for problem in result.problems),
        *(f"note: {note}" for note in result.notes),
        *(f"trained before on {history_text(run)}" for run in result.history),
    ]


def select(
    predictions: list[dict],
    *,
    sets: Sequence[str] = (),
    right: bool | None = None,
    mode: str = "strict",
    beats: list[dict] | None = None,
    readers_differ: bool = False,
    cut: bool = False,
    leaked: bool = False,
) -> list[dict]:
    """The predictions that fulfil every condition given.

    sets: of these test sets, in any case. right: right or wrong by the reader `mode`. beats: right
    here and wrong in these predictions. readers_differ: read differently by the two readers. cut:
    out of tokens. leaked: seen in training. Raises UserError for an unknown set and for runs that
    do not compare.
    """
    known = list(dict.fromkeys(p["set"] for p in predictions))
    wanted = {name.lower() for name in sets}
    for name in sets:
        if name.lower() not in map(str.lower, known):
            raise unknown("test set", name, known)
    key = "right" if mode == "strict" else "paper_right"
    others = {place(p): p for p in beats or []}
    if beats is not None and not any(place(p) in others for p in predictions):
        raise UserError("the two runs have no problem in common: they do not compare")

    def is_better(prediction: dict) -> bool:
        other = others.get(place(prediction))
        if other is not None and other["instruction"] != prediction["instruction"]:
            raise UserError(
                f"{prediction['set']} {prediction['index']} is another problem in the two runs: "
                "they do not compare"
            )
        return other is not None and prediction[key] and not other[key]

    return [
        p
        for p in predictions
        if (not sets or p["set"].lower() in wanted)
        and (right is None or p[key] is right)
        and (beats is None or is_better(p))
        and (not readers_differ or p["answer"] != p["paper_answer"])
        and (not cut or p.get("cut", False))
        and (not leaked or "leak" in p)
    ]


def place(prediction: dict) -> tuple:
    """What identifies a problem's answer in two runs."""
    return prediction["set"], prediction["index"], prediction.get("seed")


def block(prediction: dict, other: dict | None = None) -> str:
    """A prediction as a few lines of text; other: that of another run for the same problem."""
    p = prediction
    head = f"{p['set']} {p['index']}"
    head += f", seed {p['seed']}" if "seed" in p else ""
    head += f", in training: {p['leak']}" if "leak" in p else ""
    verdict = f"{word(p['right'])}: {p['answer']}, gold {p['gold']}"
    if p["paper_answer"] != p["answer"]:
        verdict += f"; the paper's reader: {p['paper_answer']}, {word(p['paper_right'])}"
    verdict += "; out of tokens" if p.get("cut") else ""
    verdict += "; the prompt is longer than the model's positions" if p.get("too_long") else ""
    lines = [f"--- {head}   {verdict}", p["instruction"], f"=> {p['output'].strip()}"]
    if "likelihoods" in p:
        options = (f"{label} {value:.2f}" for label, value in p["likelihoods"].items())
        lines.append("   " + "  ".join(options))
    if other is not None:
        lines.append(f"   other: {other['output'].strip()}")
    return "\n".join(lines)


def word(right: bool) -> str:
    return "right" if right else "wrong"


def summary(chosen: list[dict], predictions: list[dict], sets: Sequence[str] = ()) -> str:
    """How many of the predictions (of these sets) were chosen, with the interval of that share."""
    wanted = {name.lower() for name in sets}
    total = sum(not sets or p["set"].lower() in wanted for p in predictions)
    share = str(Score(len(chosen), total).cell()).partition(" of ")[0]
    return f"{len(chosen)} of {total} predictions ({share})"

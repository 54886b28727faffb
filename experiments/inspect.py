"""Predictions looked at one by one: those that are wrong, those of one set, those that one run has right and another wrong."""

from pathlib import Path

from eval.score import Score, read_predictions
from experiments.text import history_text, loss_text
from files.errors import UserError, unknown
from files.reading import read_json

FILE = "predictions.jsonl"


def predictions_in(path: Path) -> list[dict]:
    """The predictions of a run's or an evaluation's folder, or of a file. Raises UserError."""
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        unfinished = file.with_name(f"{FILE}.part").is_file()
        raise UserError(f"{path} holds no {FILE}" + (": it is not finished" if unfinished else ""))
    return read_predictions(file)


def without_predictions(path: Path) -> bool:
    """Whether this is the folder of a complete run or evaluation whose data has no test set."""
    if not (path / "result.json").is_file():
        return False
    file = path / FILE
    return not file.is_file() or not file.stat().st_size


def run_lines(path: Path) -> list[str]:
    """What a run's folder says of it beside its predictions: its held-out loss, what went wrong,
    and what its adapter was trained on before, where it was trained further."""
    try:
        facts = read_json(path / "result.json") if (path / "result.json").is_file() else {}
    except UserError:
        return []
    texts = {
        key: [one for one in listed(facts, key) if isinstance(one, str)]
        for key in ("problems", "notes")
    }
    lines = (
        [f"held-out loss per token: {text}"]
        if (text := loss_text(facts.get("held_out_loss")))
        else []
    )
    lines += [f"PROBLEM: {one}" for one in texts["problems"]] + [
        f"note: {one}" for one in texts["notes"]
    ]
    return lines + [
        f"trained before on {history_text(one)}"
        for one in listed(facts, "history")
        if isinstance(one, dict)
    ]


def listed(facts: dict, key: str) -> list:
    value = facts.get(key)
    return value if isinstance(value, list) else []


def chosen(
    predictions: list[dict],
    *,
    sets: list[str] = (),
    right: bool | None = None,
    mode: str = "strict",
    beats: list[dict] | None = None,
    readers_differ: bool = False,
    cut: bool = False,
    leaked: bool = False,
) -> list[dict]:
    """The predictions that fit all that is asked: of these sets (in any case), right or wrong as `mode` reads, right here and wrong in `beats`,
    read differently by the two readers, out of tokens, seen in training. Raises UserError for an unknown set and for runs that do not compare."""
    known = list(dict.fromkeys(one["set"] for one in predictions))
    for name in sets:
        if name.lower() not in map(str.lower, known):
            raise unknown("test set", name, known)
    key = "right" if mode == "strict" else "paper_right"
    others = None if beats is None else {place(one): one for one in beats}
    found = []
    for one in predictions:
        fits = not sets or one["set"].lower() in [name.lower() for name in sets]
        fits = fits and (right is None or one[key] is right)
        if fits and others is not None:
            other = others.get(place(one))
            if other is not None and other["instruction"] != one["instruction"]:
                raise UserError(
                    f"{one['set']} {one['index']} is another problem in the two runs: they do not compare"
                )
            fits = other is not None and one[key] and not other[key]
        fits = (
            fits
            and (not readers_differ or one["answer"] != one["paper_answer"])
            and (not cut or one.get("cut", False))
            and (not leaked or "leak" in one)
        )
        if fits:
            found.append(one)
    if others is not None and not any(place(one) in others for one in predictions):
        raise UserError("the two runs have no problem in common: they do not compare")
    return found


def place(prediction: dict) -> tuple:
    return prediction["set"], prediction["index"], prediction.get("seed")


def block(one: dict, other: dict | None = None) -> str:
    """A prediction as some lines of text."""
    head = (
        f"{one['set']} {one['index']}"
        + (f", seed {one['seed']}" if "seed" in one else "")
        + (f", in training: {one['leak']}" if "leak" in one else "")
    )
    verdict = f"{'right' if one['right'] else 'wrong'}: {one['answer']}, gold {one['gold']}"
    if one["paper_answer"] != one["answer"]:
        verdict += f"; the paper's reader: {one['paper_answer']}, {'right' if one['paper_right'] else 'wrong'}"
    if one.get("cut"):
        verdict += "; out of tokens"
    if one.get("too_long"):
        verdict += "; the prompt is longer than the model's positions"
    lines = [f"--- {head}   {verdict}", one["instruction"], f"=> {one['output'].strip()}"]
    if "likelihoods" in one:
        lines.append(
            "   " + "  ".join(f"{label} {value:.2f}" for label, value in one["likelihoods"].items())
        )
    if other is not None:
        lines.append(f"   other: {other['output'].strip()}")
    return "\n".join(lines)


def summary(found: list[dict], predictions: list[dict], sets: list[str] = ()) -> str:
    """How many of the predictions (of these sets) were chosen, with the interval of that share."""
    predictions = [
        one
        for one in predictions
        if not sets or one["set"].lower() in [name.lower() for name in sets]
    ]
    return f"{len(found)} of {len(predictions)} predictions ({str(Score(len(found), len(predictions))).partition(' of ')[0].strip()})"

"""What a run says at its end: its scores, one sentence on them, and the next three commands."""

from pathlib import Path
from typing import TYPE_CHECKING

from cli.options import command_line

if TYPE_CHECKING:  # importing them imports torch
    from experiments.run import Result
    from train.settings import Settings

QUESTION = "Emma baked 12 pies and ate 4. Each box holds 2. How many boxes are there?"


def print_result(result: "Result", settings: "Settings") -> None:
    """Scores, published figures, held-out loss, and what went wrong."""
    from experiments.comparable import conditions_of
    from experiments.results import loss_text, score_lines

    before, about = (
        ("before", "the adapter was not measured before")
        if settings.continue_from
        else ("base", "the base was not measured")
    )
    if result.after:
        ours = conditions_of(settings)
        lines = score_lines(result.before, result.after, "with adapter", before, ours)
        print("\n" + "\n".join(lines))
        if not result.before:
            print(f"({about}; --set eval.before=true does)")
    elif not result.loss:
        print("nothing was measured: the data has no test set; --tests NAME,NAME chooses some")
    if result.loss:
        print(f"held-out loss per token: {loss_text(result.loss)}")
    for line in result.verdict.lines:
        print(line)


def closing_lines(result: "Result", settings: "Settings", folder: Path) -> list[str]:
    """One sentence on what was shown, and the next three commands."""
    from eval.score import mean_score, scores

    if result.after:
        after = scores(result.after)
        sets = f"{len(after)} test set{'s' * (len(after) > 1)}"
        now = f"{100 * mean_score(after)[0]:.1f}%"
        shown = f"With the adapter the mean accuracy on {sets} is {now}."
        if result.before:
            was = f"{100 * mean_score(scores(result.before))[0]:.1f}%"
            shown = f"Training took the mean accuracy on {sets} from {was} to {now}."
    elif result.loss:
        was, now = result.loss["before"], result.loss["after"]
        shown = f"Training took the held-out loss per token from {was:.4f} to {now:.4f}."
    else:
        shown = "The adapter is trained; what it gained was not measured."
    question = QUESTION if settings.data == "wordproblems" else "YOUR QUESTION"
    look = (command_line("inspect", folder), "what was measured")
    if result.after:
        look = (command_line("inspect", folder, "--wrong"), "read the wrong answers")
    commands = [
        look,
        (command_line("generate", folder, "--instruction", question), "ask it something"),
        (command_line("evaluate", folder), "measure it again, also on other --tests"),
    ]
    return ["", shown, "next:", *(f"  {command}  # {why}" for command, why in commands)]

"""Whether a run has something to show for it: what went wrong, in words, and the exit status.

docs/training.md gives the rule to users.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, variance

from eval.score import Score

PART = 10  # steps at either end of a run whose losses are compared, or half of a shorter run
ENOUGH = 10  # steps from which on a rise can be told from the differences between batches
FLOOR = 0.02  # nats a token: a rise below this is none
ERRORS = 4.0  # standard errors that a rise has to exceed


@dataclass(frozen=True)
class Verdict:
    """What went wrong, what else is to be said, and the status: 1 where there is nothing to show."""

    problems: list[str]
    notes: list[str]
    status: int

    @property
    def lines(self) -> list[str]:
        return [f"PROBLEM: {one}" for one in self.problems] + [f"note: {one}" for one in self.notes]


NO_VERDICT = Verdict([], [], 0)


def verdict(
    entries: Sequence[dict],
    adapter_step: int,
    before: dict[str, Score],
    after: dict[str, Score],
    held_out: dict | None = None,
) -> Verdict:
    """Of a finished run: `entries` of its log, the step whose adapter is kept, the accuracies by
    test set, where they were measured, and {before, after} of the loss on held-out rows."""
    problems, notes = [], []
    skipped = sum(bool(one["skipped"]) for one in entries)
    used = [one for one in entries if not one["skipped"] and one["loss"] is not None]
    untrained = bool(entries) and skipped == len(entries)
    if untrained:
        problems.append(
            f"all {skipped} steps were skipped, as their gradients were not finite: nothing was trained; lower train.learning_rate, "
            "or compute in another --dtype"
        )
    elif skipped:
        notes.append(
            f"{skipped} of {len(entries)} steps were skipped, as their gradients were not finite"
        )
    rise = rise_of([one["loss"] for one in used if one["step"] <= adapter_step])
    if rise:
        problems.append(f"the loss ended above where it began: {rise}; lower train.learning_rate")
    elif later := rise_of([one["loss"] for one in used]):
        notes.append(f"the loss rose behind step {adapter_step}, whose adapter was kept: {later}")
    worse_held_out = (
        bool(held_out) and not held_out["after"] <= held_out["before"] + FLOOR
    )  # NaN is worse
    if worse_held_out:
        problems.append(
            f"the loss on held-out rows rose from {held_out['before']:.4f} to {held_out['after']:.4f}: fewer steps, a lower "
            "train.learning_rate, or train.validation_rows to keep the best of them"
        )
    both = {name: (before[name], score) for name, score in after.items() if name in before}
    better = any(fell_clearly(now, was) for was, now in both.values())
    if len(both) > 1:
        both["all together"] = tuple(map(together, zip(*both.values(), strict=True)))
    clear = {name: pair for name, pair in both.items() if fell_clearly(*pair)}
    noise = {
        name: (was, now)
        for name, (was, now) in both.items()
        if now.accuracy < was.accuracy and name not in clear
    }
    if clear:
        problems.append(f"accuracy fell: {changes(clear)}")
    if noise:
        notes.append(f"accuracy fell, within what chance can do: {changes(noise)}")
    worse = bool(both) and list(both)[-1] in clear  # all problems together, or the one set
    return Verdict(
        problems, notes, int(untrained or bool(rise) or worse_held_out or (worse and not better))
    )


def fell_clearly(was: Score, now: Score) -> bool:
    """Whether the 95 % interval of the second lies below that of the first."""
    return now.interval[1] < was.interval[0]


def together(found: Sequence[Score]) -> Score:
    """The score of several sets as of one."""
    return Score(
        sum(one.right for one in found),
        sum(one.total for one in found),
        sum(one.problems for one in found),
    )


def rise_of(losses: Sequence[float]) -> str:
    """How far the loss of a run ended above where it began, in words; "" where it did not.

    It began at the mean of the first steps, or at the very first one: a learning rate that is far too
    high spoils the others. A rise counts where the differences between batches do not explain it;
    of fewer than ten steps where the loss more than doubled, by more than 1.
    """
    part = min(PART, len(losses) // 2)
    if part == 0:
        return ""
    first, last = losses[:part], losses[-part:]
    end = fmean(last)
    if len(losses) < ENOUGH:
        risen = end - losses[0] > max(1.0, losses[0])
        return f"{losses[0]:.3f} in the first step, {of_last(end, part)}" if risen else ""
    error = ((variance(first) + variance(last)) / part) ** 0.5
    if end - fmean(first) > max(FLOOR, ERRORS * error):
        return f"{fmean(first):.3f} in the first {part} steps, {of_last(end, part)}"
    if end - losses[0] > max(FLOOR, ERRORS * variance(last) ** 0.5) and end > 1.1 * losses[0]:
        return f"{losses[0]:.3f} in the first step, {of_last(end, part)}"
    return ""


def of_last(end: float, part: int) -> str:
    return f"{end:.3f} in the last {part}" if part > 1 else f"{end:.3f} in the last"


def changes(pairs: dict[str, tuple[Score, Score]]) -> str:
    return ", ".join(
        f"{name} {100 * was.accuracy:.1f} to {100 * now.accuracy:.1f} %"
        for name, (was, now) in pairs.items()
    )

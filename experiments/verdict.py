"""Whether a run has something to show for it: what went wrong, and the exit status.

docs/training.md gives the rule to users.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, variance

from eval.score import Score
from experiments.curves import missing_steps

PART = 10  # steps at either end of a run whose losses are compared, or half of a shorter run
ENOUGH = 10  # steps from which on a rise can be told from the differences between batches
FLOOR = 0.02  # nats a token: a rise below this is none
ERRORS = 4.0  # standard errors that a rise has to exceed


@dataclass(frozen=True)
class Verdict:
    """What went wrong, further notes, and the status: 1 where there is nothing to show."""

    problems: list[str]
    notes: list[str]
    status: int

    @property
    def lines(self) -> list[str]:
        problems = [f"PROBLEM: {problem}" for problem in self.problems]
        return problems + [f"note: {note}" for note in self.notes]


NO_VERDICT = Verdict([], [], 0)


def verdict(
    entries: Sequence[dict],
    adapter_step: int,
    before: dict[str, Score],
    after: dict[str, Score],
    held_out: dict | None = None,
    steps: int = 0,
) -> Verdict:
    """The verdict on a finished run of so many steps.

    entries: of its log; adapter_step: the step whose adapter is kept; before, after: accuracy by
    test set, where measured; held_out: {before, after} of the loss on held-out rows.
    """
    missing = missing_steps(entries, steps)
    problems, notes = [], [f"{missing}: its curves lack them"] if missing else []
    skipped = sum(entry.get("skipped", False) for entry in entries)
    used = [entry for entry in entries if not entry.get("skipped") and entry["loss"] is not None]
    untrained = bool(entries) and skipped == len(entries)
    if untrained:
        problems.append(
            f"all {skipped} steps were skipped, as their gradients were not finite: nothing was "
            "trained; lower train.learning_rate, or compute in another --dtype"
        )
    elif skipped:
        notes.append(
            f"{skipped} of {len(entries)} steps were skipped, as their gradients were not finite"
        )
    rise = rise_of([entry["loss"] for entry in used if entry["step"] <= adapter_step])
    if rise:
        problems.append(f"the loss ended above where it began: {rise}; lower train.learning_rate")
    elif later := rise_of([entry["loss"] for entry in used]):
        notes.append(f"the loss rose after step {adapter_step}, whose adapter was kept: {later}")
    # NaN is worse
    worse_loss = bool(held_out) and not held_out["after"] <= held_out["before"] + FLOOR
    if worse_loss:
        problems.append(
            f"the loss on held-out rows rose from {held_out['before']:.4f} to "
            f"{held_out['after']:.4f}: fewer steps, a lower train.learning_rate, or "
            "train.validation_rows to keep the best of them"
        )
    pairs = {name: (before[name], score) for name, score in after.items() if name in before}
    better = any(fell_clearly(now, was) for was, now in pairs.values())
    if len(pairs) > 1:
        pairs["all together"] = tuple(map(together, zip(*pairs.values(), strict=True)))
    fell = {name: pair for name, pair in pairs.items() if pair[1].accuracy < pair[0].accuracy}
    clear = {name: pair for name, pair in fell.items() if fell_clearly(*pair)}
    noise = {name: pair for name, pair in fell.items() if name not in clear}
    if clear:
        problems.append(f"accuracy fell: {changes(clear)}")
    if noise:
        notes.append(f"accuracy fell, within what chance can do: {changes(noise)}")
    worse = bool(pairs) and list(pairs)[-1] in clear  # all problems together, or the only set
    failed = untrained or bool(rise) or worse_loss or (worse and not better)
    return Verdict(problems, notes, int(failed))


def fell_clearly(was: Score, now: Score) -> bool:
    """Whether the 95% interval of the second lies below that of the first."""
    return now.interval[1] < was.interval[0]


def together(scores: Sequence[Score]) -> Score:
    """The score of several sets as of one."""
    return Score(
        sum(score.right for score in scores),
        sum(score.total for score in scores),
        sum(score.problems for score in scores),
    )


def rise_of(losses: Sequence[float]) -> str:
    """How far the loss of a run ended above where it began, in words; "" where it did not.

    It began at the mean of the first steps, or at the very first one: a learning rate that is far
    too high spoils the others. A rise counts where the differences between batches do not explain
    it; of fewer than ten steps where the loss more than doubled, by more than 1.
    """
    part = min(PART, len(losses) // 2)
    if part == 0:
        return ""
    first, last = losses[:part], losses[-part:]
    begin, end = fmean(first), fmean(last)
    ended = f"{end:.3f} in the last {part}" if part > 1 else f"{end:.3f} in the last"
    from_first_step = f"{losses[0]:.3f} in the first step, {ended}"
    if len(losses) < ENOUGH:
        return from_first_step if end - losses[0] > max(1.0, losses[0]) else ""
    error = ((variance(first) + variance(last)) / part) ** 0.5
    if end - begin > max(FLOOR, ERRORS * error):
        return f"{begin:.3f} in the first {part} steps, {ended}"
    if end - losses[0] > max(FLOOR, ERRORS * variance(last) ** 0.5) and end > 1.1 * losses[0]:
        return from_first_step
    return ""


def changes(pairs: dict[str, tuple[Score, Score]]) -> str:
    return ", ".join(
        f"{name} {100 * was.accuracy:.1f} to {100 * now.accuracy:.1f}%"
        for name, (was, now) in pairs.items()
    )

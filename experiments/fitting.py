"""What to change where a run does not fit its devices, tried out on the plan."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from experiments.layout import Planned, Target, planned, raw_config, with_adapter
from model.config import describe
from model.quantize import quantization_of
from train.plan.advice import fewer_bits, for_answers, for_training, options_for
from train.plan.dry_run import all_tensors
from train.settings import Settings


def advice(s: Settings, plan: Planned, target: Target) -> str | None:
    """Options of the command line that make the run fit; None if no change that is tried does.

    Tried in this order: recomputation, fewer rows at once; the same with weights in fewer bits;
    all that with a second card, or, of several processes, with `--shard` and with more of them.
    """

    def counted(changed: Settings, where: Target) -> Planned:
        return plan if (changed, where) == (s, target) else planned(changed, where)

    _, _, path = describe(s.model, s.revision or None)
    is_quantized = quantization_of(raw_config(s, path), path)[0]
    for where, base, more in targets_to_try(s, plan, target):
        for quantize in [base.quantize] if base.shard or is_quantized else fewer_bits(base):
            stored = replace(base, quantize=quantize)
            tensors = all_tensors(with_adapter(stored, target.kind)).values()
            static = sum(tensor.nbytes for tensor in tensors) + sum(plan.step.optimizer)
            if not base.shard and static > sum(where.room):
                continue  # too much even without activations
            if changed := first_that_fits(stored, where, counted):
                return " ".join([*options_for(s, changed), *more])
    return None


def first_that_fits(
    s: Settings, target: Target, counted: Callable[[Settings, Target], Planned]
) -> Settings | None:
    """The run with the first change for training, and then for answering, that makes it fit."""
    for changed in for_training(s, target.length):
        plan = counted(changed, target)
        if target.fits(plan.training):
            answers = for_answers(changed)
            return next((a for a in answers if target.fits(plan.answering(a, target))), None)
    return None


def targets_to_try(
    s: Settings, plan: Planned, target: Target
) -> Iterator[tuple[Target, Settings, list[str]]]:
    """(target, settings, options): the run as it is, then on more devices."""
    yield target, s, []
    if target.processes == 1 and len(target.devices) == 1 and target.kind == "cuda":
        two = replace(target, devices=["cuda:0", "cuda:1"], memory=target.memory * 2)
        yield two, s, ["and a second card like it"]
    if target.processes > 1 and not plan.model.quantize:  # quantised weights cannot be sharded
        shard, option = replace(s, shard=True), ["--shard"] * (not s.shard)
        if not s.shard:
            yield target, shard, option
        for times in (2, 4, 8):
            processes = times * target.processes
            yield (
                replace(target, processes=processes),
                shard,
                [*option, f"--processes {processes}"],
            )

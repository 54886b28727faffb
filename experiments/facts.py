"""What a run writes down: the `run` section of its adapter's file, and result.json."""

from typing import TYPE_CHECKING

from data.leakage import seen_sets
from eval.score import scores, tables
from experiments.announce import count, count_base, peak_memory
from experiments.comparable import compare, conditions_of
from experiments.history import short
from experiments.prepare import Prepared
from train.loop import Outcome

if TYPE_CHECKING:
    from experiments.run import Result


def run_section(job: Prepared, outcome: Outcome) -> dict:
    """The `run` section of the adapter's file: what it was trained on."""
    s, data = job.settings, job.data
    prompt = {"template": job.template.name, "template_text": job.template.table()}
    section = {
        "model": s.model,
        "data": s.data,
        **({} if data.is_text else prompt),
        "seed": s.seed,
        "adapter": job.preset,
        "columns": s.columns,
        "test_share": 0.0 if s.tests else s.test_share,
        "only_right": s.only_right,
        "prompt_weight": s.train.prompt_weight,
        "data_fingerprint": data.fingerprint,
        "quantize": job.model.quantize,
        "revision": s.revision,
        "steps": outcome.adapter_step,
    }
    if job.start:
        section["history"] = job.history
    if job.loaded:
        section["loaded"] = {name: short(run) for name, run in job.loaded.items()}
    return section


def facts_of(job: Prepared, outcome: Outcome, result: "Result", world: int, seconds: int) -> dict:
    """The content of result.json."""
    s = job.settings
    seen = (name for leaks in (job.leaks, *job.earlier) for name in seen_sets(leaks))
    return {
        "model": s.model,
        "quantize": job.model.quantize,
        "adapter": job.preset,
        "continued_from": s.continue_from,
        "teacher": s.teacher,
        "history": job.history,
        "data": s.data,
        "seed": s.seed,
        "processes": world,
        "adapter_step": outcome.adapter_step,
        "validation": outcome.validation,
        "steps": outcome.step,
        "skipped_steps": outcome.skipped,
        "seconds": seconds,
        "peak_memory_bytes": peak_memory(job.model),
        "rows_cut_off": job.encoded.cut,
        "rows_left_out": len(job.data.left_out) + job.encoded.refused + job.share.refused,
        "held_out_loss": {} if s.teacher else result.loss,
        "divergence": result.loss if s.teacher else {},  # from the teacher
        "trainable_parameters": count(job.trained),
        "parameters": count_base(job.model),
        "trained_on_test": list(dict.fromkeys(seen)),
        "published": [c.facts() for c in compare(conditions_of(s), scores(result.after))],
        "decoding": s.eval.decoding,
        "before": tables(result.before),
        "after": tables(result.after),
        "problems": result.verdict.problems,
        "notes": result.verdict.notes,
        "status": result.verdict.status,
    }

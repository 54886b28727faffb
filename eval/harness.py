"""EleutherAI's lm-evaluation-harness on our models: its tasks, prompts and metrics.

lm_eval is imported when a model or a task is asked for.
"""

from pathlib import Path

from data import prompts
from eval.harness_requests import Requests, decoding, harness
from files.errors import UserError, unknown
from model.language import LanguageModel
from model.tokenizer import Tokenizer

__all__ = ["decoding", "harness_model", "run_tasks"]


def harness_model(
    model: LanguageModel,
    tokenizer: Tokenizer,
    *,
    batch_size: int = 16,
    max_new_tokens: int = 256,
    template: str | prompts.Template | None = None,
):
    """The model, with the adapters that are on, as an lm_eval.api.model.LM.

    max_new_tokens applies where a task does not say. A template (or its name) makes every context
    an instruction and every continuation a response. Raises UserError without lm_eval, for an
    unknown template, and for sizes below 1.
    """
    check_positive("batch_size", batch_size)
    check_positive("max_new_tokens", max_new_tokens)
    if isinstance(template, str):
        template = prompts.template(template, tokenizer)
    kind = type("HarnessModel", (Requests, harness("api.model").TemplateLM), {})
    return kind(model, tokenizer, batch_size, max_new_tokens, template)


def run_tasks(
    model: LanguageModel,
    tokenizer: Tokenizer,
    tasks: list[str],
    *,
    include_path: str | Path | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    batch_size: int = 16,
    max_new_tokens: int = 256,
    template: str | prompts.Template | None = None,
) -> dict:
    """Evaluate on tasks of the harness, or of YAML files in include_path.

    Returns what lm_eval's simple_evaluate does; ["results"][task] has the figures. limit: the first
    problems of each task (None: all). The harness seeds Python's, numpy's and torch's generators.
    Raises UserError without lm_eval, for an unknown task, a limit below 1, and data that cannot be
    read.
    """
    lm = harness_model(
        model, tokenizer, batch_size=batch_size, max_new_tokens=max_new_tokens, template=template
    )
    if include_path is not None and not Path(include_path).is_dir():
        raise UserError(f"{include_path} is not a folder; it should hold YAML files of tasks")
    manager = harness("tasks").TaskManager(include_path=include_path)
    for task in tasks:
        if task not in manager.all_tasks:
            raise unknown("task", task, manager.all_tasks, listed="`lm-eval ls tasks` lists them")
    if not tasks:
        raise UserError("no task is given; `lm-eval ls tasks` lists them")
    if limit is not None:
        check_positive("limit", limit)
    evaluate = harness("evaluator").simple_evaluate
    from datasets.exceptions import DatasetsError  # a dependency of lm_eval

    try:
        return evaluate(
            lm, tasks=tasks, task_manager=manager, num_fewshot=num_fewshot, limit=limit,
            batch_size=batch_size, log_samples=False,
        )  # fmt: skip
    except (OSError, DatasetsError) as error:  # no network, no such file, a malformed one
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"the data of {', '.join(tasks)} cannot be read: {reason:.300}") from None


def check_positive(name: str, value: object) -> None:
    if type(value) is not int or value < 1:
        raise UserError(f"{name} should be 1 or more, not {value!r:.50}")

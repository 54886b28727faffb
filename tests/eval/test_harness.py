"""lm-evaluation-harness on our models: its own local tasks against figures computed directly, its
own model class against ours.
"""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from harness_texts import (
    pocket,  # noqa: F401
    requests,
)

from adapters import attach
from eval import harness_requests
from eval.generate import Sampling, generate
from eval.harness import decoding, harness_model, run_tasks
from eval.likelihood import log_likelihoods
from model import UserError, load_model

pytest.importorskip("lm_eval")


RULES = (
    "task: {}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {}}}}}\ntest_split: test\n"
)
CHOICE = RULES + (
    "output_type: multiple_choice\ndoc_to_text: '{{{{q}}}}'\ndoc_to_target: "
    "gold\ndoc_to_choice: choices\nmetric_list: [{{metric: acc}}]\n"
)
WRITE = (
    RULES + "output_type: generate_until\ndoc_to_text: '{{{{q}}}}'\ndoc_to_target: "
    "'{{{{a}}}}'\ntarget_delimiter: ''\n"
    "generation_kwargs: {{until: [' ', '.'], max_gen_toks: 12, do_sample: "
    "false, temperature: 0.0}}\n"
    "metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]\n"
)


def test_tasks_give_what_is_computed_directly(pocket, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    model, tokenizer = pocket
    sums = [(a, b) for a in (2, 3, 5, 8) for b in (1, 4, 6)]
    questions = [
        f"Tom has {a} apples. Tom gets {b} more apples. How many apples does Tom have now?"
        for a, b in sums
    ]
    options = [[str(a + b), str(a + b + 1), str(a)] for a, b in sums]
    pairs = []
    for question, choices in zip(questions, options, strict=True):
        before = tokenizer.encode(question)
        pairs += [
            (before, tokenizer.encode(f"{question} {choice}")[len(before) :]) for choice in choices
        ]
    logs = torch.tensor([one for one, _ in log_likelihoods(model, pairs)]).view(-1, 3)
    accuracy = (logs.argmax(dim=1) == 0).double().mean().item()
    written = []
    for question in questions:
        new = generate(
            model,
            torch.tensor([tokenizer.encode(question)]),
            max_new_tokens=12,
            stop_ids=[tokenizer.eos_id],
        )[0]
        written.append(tokenizer.decode(new).partition(" ")[0].partition(".")[0])
    answers = [text if number % 3 else "something else" for number, text in enumerate(written)]
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    rows = [
        {"q": q, "choices": o, "gold": 0, "a": a}
        for q, o, a in zip(questions, options, answers, strict=True)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tasks / "choice.yaml").write_text(CHOICE.format("sums_choice", tmp_path / "rows.jsonl"))
    (tasks / "write.yaml").write_text(WRITE.format("sums_write", tmp_path / "rows.jsonl"))
    (tmp_path / "torn.jsonl").write_text('{"q": ')
    (tasks / "torn.yaml").write_text(CHOICE.format("sums_torn", tmp_path / "torn.jsonl"))
    (tasks / "gone.yaml").write_text(CHOICE.format("sums_gone", tmp_path / "gone.jsonl"))
    manager = harness_requests.harness("tasks").TaskManager(
        include_path=tasks, include_defaults=False
    )  # to index the others takes seconds
    monkeypatch.setattr(
        harness_requests.harness("tasks"), "TaskManager", lambda include_path: manager
    )
    found = run_tasks(
        model, tokenizer, ["sums_choice", "sums_write"], include_path=tasks, batch_size=5
    )["results"]
    assert 0 < accuracy < 1
    assert found["sums_choice"]["acc,none"] == pytest.approx(accuracy)
    assert found["sums_write"]["exact_match,none"] == pytest.approx(8 / 12)
    few = run_tasks(model, tokenizer, ["sums_write"], include_path=tasks, limit=2)
    assert few["results"]["sums_write"]["exact_match,none"] == 0.5
    assert few["n-samples"]["sums_write"]["effective"] == 2
    with pytest.raises(UserError, match="did you mean 'sums_choice'"):
        run_tasks(model, tokenizer, ["sums_choise"], include_path=tasks)
    for bad in ("sums_gone", "sums_torn"):
        with pytest.raises(UserError, match=f"the data of {bad} cannot be read"):
            run_tasks(model, tokenizer, [bad], include_path=tasks)
    with pytest.raises(UserError, match="no task is given"):
        run_tasks(model, tokenizer, [])
    with pytest.raises(UserError, match="limit should be 1 or more"):
        run_tasks(model, tokenizer, ["sums_write"], include_path=tasks, limit=0)
    with pytest.raises(UserError, match="is not a folder"):
        run_tasks(model, tokenizer, ["sums_choice"], include_path=tmp_path / "nowhere")


@pytest.mark.slow
def test_the_tasks_that_come_with_the_harness_are_known(pocket):
    with pytest.raises(UserError, match="did you mean 'arc_easy'"):
        run_tasks(*pocket, ["arc_eazy"])


def test_settings_of_a_task_are_kept_or_refused():
    assert decoding({}, 7) == ((), 7, None)
    assert decoding(
        {"until": "\n", "do_sample": False, "temperature": 1, "max_gen_toks": 3}, 7
    ) == (("\n",), 3, None)
    assert decoding({"until": ["a", ""], "temperature": 0.5, "max_new_tokens": 3}, 7) == (
        ("a",),
        3,
        Sampling(0.5),
    )
    assert decoding({"do_sample": True, "top_p": 0.9, "num_beams": 1}, 7) == (
        (),
        7,
        Sampling(top_p=0.9),
    )
    for said, settings in {
        "repetition_penalty": {"repetition_penalty": 1.2},
        "temperature should be": {"do_sample": True, "temperature": 0.0},
        "no meaning without": {"do_sample": False, "temperature": 0.7},
        "{'top_p': 0.9} have no meaning": {"top_p": 0.9},
        "num_beams = 4": {"num_beams": 4},
        "max_gen_toks": {"max_gen_toks": 0},
        "one max_gen_toks": {"max_gen_toks": 5, "max_new_tokens": 6},
    }.items():
        with pytest.raises(UserError, match=said):
            decoding(settings, 7)


def test_what_the_model_cannot_answer_says_so(pocket, monkeypatch):
    model, tokenizer = pocket
    lm = harness_model(model, tokenizer)
    with pytest.raises(UserError, match="leaves no room for a prompt"):
        lm.generate_until(
            requests(("Tom", {}))
        )  # 256 tokens unless the task says another number, all that the model has
    for name in ("batch_size", "max_new_tokens"):
        with pytest.raises(UserError, match=f"{name} should be 1 or more"):
            harness_model(model, tokenizer, **{name: 0})
    with pytest.raises(UserError, match="empty continuation"):
        lm.loglikelihood(requests(("", "")))
    with pytest.raises(UserError, match="room for 256"):
        lm.loglikelihood(requests(("Tom", " has" * 300)))
    with pytest.warns(UserWarning, match="lost their beginning"):
        lm.generate_until(requests(("Tom has " * 300, {"max_gen_toks": 2})))
    nameless = SimpleNamespace(
        bos_id=None, eos_id=None, size=tokenizer.size, encode=tokenizer.encode
    )
    with pytest.raises(UserError, match="neither a BOS nor an EOS"):
        harness_model(model, nameless).loglikelihood(requests(("", "Tom")))
    attached = load_model("pocket-llama")
    attach(attached, "prefix")
    assert harness_model(attached, tokenizer).max_length == 256 - 30
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    with pytest.raises(UserError, match="pip install lm-eval"):
        harness_model(model, tokenizer)

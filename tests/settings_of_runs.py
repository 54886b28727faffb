"""The fields of Settings and Eval, each with what its value must give."""

import json
import tomllib
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from in_command import command
from obeyed import lines_of, losses, rows_of, watched
from settings_of_training import WHOLE, four, loss_by_hand, row
from training_runs import same, state

from adapters import attach, load_adapter, named_parameters
from adapters.config import resolve
from data.batches import encode_prompt
from data.prompts import template
from eval import predict
from eval.generate import Sampling, generate
from eval.likelihood import log_likelihoods
from eval.predict import own_seed
from experiments import base
from model import graphs, load_model, load_tokenizer
from model.onednn import is_usable


# ---------------------------------------------------------------- eval
def answers_by_hand(problems, name="pocket-llama", **how) -> list[str]:
    """The answers to one prompt after another."""
    model, tokenizer = load_model(name, torch.float32), load_tokenizer(name)
    seeds = how.pop("seeds", [None])
    outputs = []
    for one in problems:
        _, ids = encode_prompt(tokenizer, one, template("alpaca", tokenizer))
        for seed in seeds:
            drawn = {}
            if seed is not None:
                job = {"seed": seed, "set": "sums", "index": one["index"]}
                drawn = {"seeds": [own_seed(job)]}
            (new,) = generate(
                model, torch.tensor([ids]), stop_ids=[tokenizer.eos_id],
                vocab_size=tokenizer.size, **how, **drawn,
            )  # fmt: skip
            outputs.append(tokenizer.decode(new))
    return outputs


ODD = ("Why?", "Zebras and 9 boxes of")  # what the model is unsure of
DECODING = {  # field -> (settings, what `generate` is to be given)
    "max_new_tokens": ({"max_new_tokens": 5}, {}),
    "beams": ({"beams": 3, "max_new_tokens": 12}, {}),
    "temperature": ({"temperature": 1.7}, {"sampling": Sampling(1.7), "seeds": [0]}),
    "top_k": ({"temperature": 3.0, "top_k": 2}, {"sampling": Sampling(3.0, 2), "seeds": [0]}),
    "top_p": (
        {"temperature": 3.0, "top_p": 0.3},
        {"sampling": Sampling(3.0, top_p=0.3), "seeds": [0]},
    ),
    "seeds": ({"temperature": 2.0, "seeds": [5, 3]}, {"sampling": Sampling(2.0), "seeds": [5, 3]}),
}


@row(*(f"eval.{name}" for name in DECODING), each=True)
def answers_are_made_so(here):
    name = here.name.removeprefix("eval.")
    settings, how = DECODING[name]
    settings = {"max_new_tokens": 6} | settings
    sets = [word for key, value in settings.items() for word in ("--set", f"eval.{key}={value}")]
    path = here.path / "sums.json"
    path.write_text(json.dumps([{"instruction": t, "output": "", "answer": "1"} for t in ODD]))
    words = ("--data", "none", "--tests", path, *sets)
    command("evaluate", *words, "--out", here.path / "e")
    found = lines_of(here.path / "e" / "predictions.jsonl")
    problems = {one["index"]: one for one in found}.values()
    asked = [
        {"instruction": one["instruction"], "input": "", "index": one["index"]} for one in problems
    ]
    how = {"beams": settings.get("beams", 1), "max_new_tokens": settings["max_new_tokens"], **how}
    expected = answers_by_hand(asked, **how)
    assert [one["output"] for one in found] == expected
    without = {key: value for key, value in settings.items() if key != name or key == "temperature"}
    if name in ("top_k", "top_p"):
        how["sampling"] = Sampling(without["temperature"])
    elif name == "seeds":
        how["seeds"] = [0]
    else:
        how = {"max_new_tokens": 4 if name == "max_new_tokens" else settings["max_new_tokens"]}
    assert answers_by_hand(asked, **how) != expected, "this value shows nothing"


@row("eval.decode_memory")
def weights_are_packed(here):
    here.monkeypatch.setattr("model.onednn.FLOAT32_FROM", 1)
    packs, gigabyte = is_usable(torch.float32), 10**9  # without the functions nothing is packed
    for how, free, expected in (
        ("packed", 0, packs), ("plain", gigabyte, False), ("auto", 0, False),
        ("auto", gigabyte, packs),
    ):  # fmt: skip
        here.monkeypatch.setattr("model.packed.free_memory", lambda device, free=free: free)
        with watched(here.monkeypatch) as seen:
            words = ("--set", f"eval.decode_memory={how}", "--set", "eval.max_new_tokens=2")
            command(
                "evaluate", "--data", "none", "--tests", here.sums, "--items", 1, *words,
                "--out", here.path / f"{how}{free}",
            )  # fmt: skip
        assert (seen[0][0].lm_head.packed is not None) is expected, (how, free)


@row("eval.items", "eval.batch_size")
def problems_at_once(here):
    words = "--set eval.items=5 --set eval.batch_size=2 --set eval.max_new_tokens=1".split()
    with watched(here.monkeypatch) as seen:
        command(
            "evaluate",
            "--data",
            here.sums,
            "--set",
            "test_share=0.5",
            *words,
            "--out",
            here.path / "e",
        )
    found = lines_of(here.path / "e" / "predictions.jsonl")
    assert [one["index"] for one in found] == [0, 1, 2, 3, 4]
    assert [rows for _, (rows, _) in seen] == [2, 2, 1]


@row("eval.graphs")
def the_decoding_step_is_captured(here):
    """What is captured is tests/model/test_graphs.py's."""
    made = []

    def capture(step):
        result = step()
        made.append(result.shape)
        return lambda: result.copy_(step()), result

    here.monkeypatch.setitem(graphs.CAPTURES, "cpu", lambda: capture)  # as of a GPU
    plain = here.evaluate("--set", "eval.graphs=false", out="plain")
    assert not made
    assert here.evaluate() == plain
    assert made


@row("eval.compile")
def blocks_are_compiled_for_answers(here):
    on = []

    @contextmanager
    def compiled(model, answers):
        assert answers
        on.append("begin")
        yield
        on.append("end")

    here.monkeypatch.setattr(base, "check_compiler", lambda *found: on.append(found))
    here.monkeypatch.setattr(predict, "compiled", compiled)
    plain = here.evaluate(out="plain")
    assert not on
    assert here.evaluate("--set", "eval.compile=true") == plain
    assert on[-2:] == ["begin", "end"]
    assert set(on[:-2]) == {(torch.device("cpu"), "eval.compile")}


@row("eval.before")
def the_base_is_measured_before(here):
    folder = here.train(
        "--set", "eval.before=true", "--set", "train.learning_rate=0.5", steps=2, status=None
    )
    base = here.evaluate("--items", 1)
    found = lines_of(folder / "predictions-base.jsonl")
    assert [one["output"] for one in found] == [one["output"] for one in base]
    assert not (here.train(out="without") / "predictions-base.jsonl").exists()


CHOICES = [
    {
        "instruction": f"Is {n} more than 4? Answer format: yes/no",
        "output": f"the correct answer is {'yes' if n > 4 else 'no'}",
        "answer": "yes" if n > 4 else "no",
    }
    for n in range(1, 9)
]


@row("eval.scoring")
def the_likeliest_option(here):
    path = here.path / "choices.json"
    path.write_text(json.dumps(CHOICES))
    command(
        "evaluate", "--data", path, "--set", "eval.scoring=likelihood", "--out", here.path / "e"
    )
    found = lines_of(here.path / "e" / "predictions.jsonl")
    assert found
    model, tokenizer = load_model("pocket-llama", torch.float32), load_tokenizer("pocket-llama")
    form = template("alpaca", tokenizer)
    for one in found:
        asked = {"instruction": one["instruction"], "input": ""}
        _, before = encode_prompt(tokenizer, asked, form)
        likelihoods = {}
        for option in ("yes", "no"):
            answer = f"the correct answer is {option}"
            whole = tokenizer.encode(form.whole(asked | {"output": answer}), bos=True)
            ((likelihoods[option], _),) = log_likelihoods(
                model, [(whole[: len(before)], whole[len(before) :])]
            )
        assert one["likelihoods"] == pytest.approx(likelihoods, abs=1e-3)
        assert one["output"] == max(likelihoods, key=likelihoods.get)


# ---------------------------------------------------------------- the run itself
@row("model")
def the_model(here):
    with watched(here.monkeypatch) as seen:
        here.evaluate("--set", "model=pocket-opt")
    assert {model.config.model_type for model, _ in seen} == {"opt"}
    assert sum(p.numel() for p in seen[0][0].parameters()) == sum(
        p.numel() for p in load_model("pocket-opt").parameters()
    )


@row("dtype")
def the_dtype(here):
    for name in ("float32", "bfloat16"):
        with watched(here.monkeypatch) as seen:
            here.evaluate("--set", f"dtype={name}", "--items", 1, "--max-new-tokens", 1, out=name)
        assert seen[0][0].dtype == seen[0][0].lm_head.weight.dtype == getattr(torch, name)


@row("quantize")
def the_base_in_few_bits(here):
    for name in ("int8", "nf4"):
        with watched(here.monkeypatch) as seen:
            here.evaluate("--set", f"quantize={name}", out=name)
        ids = torch.tensor([[5, 6, 7, 8]])
        expected = load_model("pocket-llama", quantize=name, dtype=torch.float32)
        with torch.no_grad():
            plain = load_model("pocket-llama", torch.float32)(ids)
            torch.testing.assert_close(seen[0][0](ids), expected(ids), rtol=1e-5, atol=1e-3)
            assert (expected(ids) - plain).abs().max() > 0.05


@row("device", "layers_per_device")
def layers_over_devices(here):
    words = ("--set", "device=cpu,cpu", "--set", "layers_per_device=[1,3]")
    with watched(here.monkeypatch) as seen:
        folder = here.train(*words)
    stages = seen[-1][0].stages
    assert [(str(one.device), one.first, one.end) for one in stages] == [
        ("cpu", 0, 1),
        ("cpu", 1, 4),
    ]
    assert tomllib.loads((folder / "run.toml").read_text())["device"] == "cpu,cpu"
    here.train("--set", "device=cuda:7", status=1, out="no")
    assert "cuda:7" in here.told


@row("threads")
def threads_of_a_computation(here):
    before = torch.get_num_threads()
    try:
        here.evaluate("--set", "threads=3")
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@row("seed")
def the_seed_draws_the_adapter_and_the_rows(here):
    started = {}
    for seed in (3, 4):
        folder = here.still("--set", f"seed={seed}", out=str(seed))
        model = load_model("pocket-llama", torch.float32)
        table = tomllib.loads((folder / "run.toml").read_text())["adapter"]
        torch.manual_seed(seed)
        attach(model, resolve(**table))
        expected = {name: one.clone() for name, one in named_parameters(model).items()}
        saved = load_model("pocket-llama", torch.float32)
        load_adapter(saved, folder / "adapter")
        for name, one in named_parameters(saved).items():
            torch.testing.assert_close(one, expected[name], rtol=0, atol=1e-6)
        started[seed] = losses(folder)
    assert started[3] != started[4]  # other rows in the first step


@row("adapter")
def the_adapter(here):
    folder = here.still("--set", "adapter.preset=lora", "--set", "adapter.r=3", "--adapter", "lora")
    model = load_model("pocket-llama", torch.float32)
    load_adapter(model, folder / "adapter")
    assert {one.shape[0] for name, one in named_parameters(model).items() if "lora_A" in name} == {
        3
    }


def strange_adapter(here) -> Path:
    """A saved adapter that changes the answers."""
    folder = here.train("--set", "train.learning_rate=0.3", steps=3, out="strange", status=None)
    return folder / "adapter"


@row("continue_from")
def an_adapter_is_trained_further(here):
    first = strange_adapter(here)
    folder = here.still("--continue", first, "--model", "pocket-llama", out="further")
    models = [load_model("pocket-llama", torch.float32) for _ in range(2)]
    for model, where in zip(models, (first, folder / "adapter"), strict=True):
        load_adapter(model, where)
    assert same(state(models[0]), state(models[1]))
    assert tomllib.loads((folder / "run.toml").read_text())["continue_from"] == str(first)


@row("load")
def an_adapter_below_the_trained_one(here):
    first = strange_adapter(here)
    with_it = here.evaluate("--adapter", first, "--items", 1, "--set", "test_share=0.1")
    folder = here.still("--set", f"load.math={first}", out="above")  # parallel starts at the base
    found = lines_of(folder / "predictions.jsonl")
    assert [one["output"] for one in found] == [one["output"] for one in with_it]
    plain = here.evaluate("--items", 1, out="plain")
    assert [one["output"] for one in found] != [one["output"] for one in plain]


@row("teacher")
def an_adapter_to_learn_from(here):
    """KL(teacher || base) of the first step: 0 where they are the same."""
    found = {}
    for name, folder in (("same", here.still(out="a")), ("other", strange_adapter(here).parent)):
        run = here.still("--set", f"teacher={folder / 'adapter'}", out=f"of-{name}")
        (found[name],) = losses(run)
    assert abs(found["same"]) < 1e-5
    assert found["other"] > 0.01


# ---------------------------------------------------------------- data
@row("data", "test_share")
def the_rows(here):
    folder = here.train("--set", "test_share=0.25", "--items", 0)
    assert "30 rows to train on, tests sums (10)" in here.told
    found = lines_of(folder / "predictions.jsonl")
    asked = {one["instruction"] for one in rows_of(here.sums)}
    assert len(found) == 10
    assert {one["instruction"] for one in found} < asked


@row("tests")
def the_sets_to_measure_on(here):
    path = here.path / "other.json"
    path.write_text(json.dumps([one | {"instruction": "Why?"} for one in rows_of(here.sums)[:3]]))
    folder = here.train("--set", f'tests=["{path}"]', "--items", 0)
    found = lines_of(folder / "predictions.jsonl")
    assert [(one["set"], one["instruction"]) for one in found] == [("other", "Why?")] * 3
    assert "40 rows to train on" in here.told  # nothing is held out then


@row("columns")
def columns_of_other_names(here):
    path = here.path / "other.json"
    path.write_text(
        json.dumps(
            [{"q": one["instruction"], "a": one["output"]} for one in rows_of(here.sums)[:4]]
        )
    )
    words = ("--set", "columns.instruction=q", "--set", "columns.output=a", *WHOLE)
    folder = here.still(*words, data=path)
    assert losses(folder)[0] == pytest.approx(loss_by_hand(rows_of(four(here))), rel=1e-3)


@row("only_right")
def rows_that_reach_the_answer(here):
    rows = rows_of(here.sums)
    for one in rows[:7]:
        one["answer"] = "1000"
    path = here.path / "some.json"
    path.write_text(json.dumps(rows))
    here.train("--set", "only_right=true", *WHOLE, data=path)
    assert "33 of 40 rows reach the right answer" in here.told
    here.train(*WHOLE, data=path, out="all")
    assert "40 rows to train on" in here.told


@row("train_on_test")
def training_on_the_test_set(here):
    words = ("--set", f'tests=["{here.sums}"]')
    here.train(*words, status=1, out="no")
    assert "--train-on-test" in here.told
    folder = here.train(*words, "--set", "train_on_test=true")
    assert json.loads((folder / "result.json").read_text())["trained_on_test"] == ["sums"]


@row("strict_rows")
def rows_that_cannot_be_used(here):
    path = here.path / "bad.json"
    path.write_text(json.dumps([*rows_of(here.sums)[:6], {"instruction": ["x"], "output": "x"}]))
    here.train(*WHOLE, data=path)
    assert "6 rows to train on" in here.told
    here.train(*WHOLE, "--set", "strict_rows=true", data=path, status=1, out="no")
    here.evaluate("--set", "strict_rows=true", "--set", "test_share=0.5", data=path, status=1)


@row("template")
def the_prompt(here):
    folder = here.still("--set", "template=plain", *WHOLE, data=four(here))
    expected = loss_by_hand(rows_of(four(here)), form="plain")
    assert losses(folder)[0] == pytest.approx(expected, rel=1e-3)
    assert tomllib.loads((folder / "run.toml").read_text())["template"] == "plain"


@row("revision")
def the_commit_of_a_repository(here):
    here.train("--set", "revision=v7", "--set", f"model={here.tiny}", status=1)
    assert "only repositories of the hub have revisions" in here.told


@row("data_dir")
def where_the_papers_data_is(here):
    file = here.path / "mine" / "dataset" / "SVAMP" / "test.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(rows_of(here.sums)[:3]))
    words = ("--set", "data=none", "--set", 'tests=["SVAMP"]', "--items", 0)
    command("evaluate", *words, "--set", f"data_dir={here.path / 'mine'}", "--out", here.path / "e")
    found = lines_of(here.path / "e" / "predictions.jsonl")
    assert [one["instruction"] for one in found] == [
        one["instruction"] for one in rows_of(here.sums)[:3]
    ]


@row("shard")
def processes_hold_the_base_together(here):
    here.train("--set", "shard=true", status=1)  # several processes: tests/train/test_parallel.py
    assert "start with torchrun" in here.told

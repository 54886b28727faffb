"""Every field of Settings, Train and Eval is obeyed: a row sets it and compares what it gives.

A field without a row fails. Most rows train or measure for a fraction of a second and compare with
the same computation written out by hand: plain AdamW, or `generate` on one prompt after another.
"""

import json
import math
import tomllib
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from in_command import command
from obeyed import Here, Rows, lines_of, losses, rows_of, watched
from test_training import S, examples, model_with, run, same, state

from adapters import attach, load_adapter, named_parameters
from adapters.config import resolve
from data.batches import encode_prompt, encode_row, epoch_order
from data.prompts import template
from eval.generate import Sampling, generate
from eval.likelihood import log_likelihoods
from eval.score import own_seed
from model import load_model, load_tokenizer
from train import loop
from train.settings import Eval, Settings, Train

ROWS = Rows()
row = ROWS.row


def settings_fields(cls=Settings, prefix: str = "") -> list[str]:
    """Settings -> "seed", "train.epochs" ..."""
    names = []
    for one in fields(cls):
        inner = {"train": Train, "eval": Eval}.get(one.name) if cls is Settings else None
        names += settings_fields(inner, f"{one.name}.") if inner else [prefix + one.name]
    return names


def test_every_field_has_a_row():
    nested = {name for name, value in vars(Settings()).items() if is_dataclass(value)}
    assert nested - {"adapter"} == {"train", "eval"}, "a new table of settings: enumerate it too"
    assert set(ROWS) == set(settings_fields())


# ---------------------------------------------------------------- train: the optimizer, by hand
def rate_by_hand(s: Train, step: int, total: int) -> float:
    warm = min(s.warmup_steps, total // 2)
    if step < warm:
        return s.learning_rate * (step + 1) / warm
    done = (step - warm) / (total - warm)
    falls = {"linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2, "constant": None}[
        s.schedule
    ]
    if falls is None:
        return s.learning_rate
    low = s.final_learning_rate * s.learning_rate
    return low + (s.learning_rate - low) * falls


def trained_by_hand(folder: Path, s: Train, rows) -> tuple[list[dict], list[torch.Tensor]]:
    """Losses, rates, norms and weights of AdamW on whole batches, one row after another."""
    model = model_with(folder)
    parameters = list(named_parameters(model).values())
    first, second = s.betas
    moments = [(torch.zeros_like(one), torch.zeros_like(one)) for one in parameters]
    per_epoch = math.ceil(len(rows) / s.batch_size)
    total, entries = s.max_steps or per_epoch * s.epochs, []
    for step in range(total):
        epoch, batch = divmod(step, per_epoch)
        lengths = [len(one) for one in rows]
        chosen = epoch_order(lengths, s.batch_size, 1, epoch, s.group_by_length)[batch]
        loss = 0.0
        for one in (rows[number] for number in chosen):
            ids, weights = torch.tensor([one.ids]), torch.tensor(one.weights[1:])
            each = F.cross_entropy(model(ids)[0, :-1], ids[0, 1:], reduction="none")
            loss = loss + (each * weights).sum()
        loss = loss / sum(sum(rows[number].weights[1:]) for number in chosen)
        gradients = torch.autograd.grad(loss, parameters)
        norm = math.sqrt(sum(float((one**2).sum()) for one in gradients))
        rate = rate_by_hand(s, step, total)
        with torch.no_grad():
            for one, gradient, (m, v) in zip(parameters, gradients, moments, strict=True):
                gradient = gradient * min(1.0, s.clip / (norm + 1e-6))
                m.lerp_(gradient, 1 - first)
                v.lerp_(gradient**2, 1 - second)
                m_hat, v_hat = m / (1 - first ** (step + 1)), v / (1 - second ** (step + 1))
                one.mul_(1 - rate * s.weight_decay).sub_(rate * m_hat / (v_hat.sqrt() + 1e-8))
        entries.append({"loss": loss.item(), "learning_rate": rate, "gradient_norm": norm})
    return entries, parameters


CHANGES = {
    "epochs": {"epochs": 2, "max_steps": 0, "batch_size": 8},
    "max_steps": {"max_steps": 5},
    "batch_size": {"batch_size": 5},
    "micro_batch_size": {"micro_batch_size": 1},
    "learning_rate": {"learning_rate": 0.05},
    "warmup_steps": {"warmup_steps": 4},
    "schedule": {"schedule": "cosine"},
    "final_learning_rate": {"final_learning_rate": 0.5, "max_steps": 4},
    "betas": {"betas": (0.6, 0.8)},
    "weight_decay": {"weight_decay": 0.5},
    "clip": {"clip": 0.1},
}


@row(*(f"train.{name}" for name in CHANGES), each=True)
def the_optimizer(here):
    name = here.name.removeprefix("train.")
    s = replace(S, **CHANGES[name])
    model, plain = model_with(here.tiny), model_with(here.tiny)
    with watched(here.monkeypatch) as seen:
        _, entries = run(model, here.path, s)
    expected, weights = trained_by_hand(here.tiny, s, examples())
    assert len(entries) == len(expected)
    for ours, theirs in zip(entries, expected, strict=True):
        for key, value in theirs.items():
            assert ours[key] == pytest.approx(value, rel=2e-3), key
    for ours, theirs in zip(state(model), weights, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=2e-4)
    assert max(rows for _, (rows, _) in seen) == s.micro_batch_size
    if name != "micro_batch_size":
        run(plain, here.path)
        assert not same(state(model), state(plain)), "this value shows nothing"


@row("train.group_by_length")
def batches_of_near_equal_lengths(here):
    rows = examples()
    s = replace(S, max_steps=0, epochs=1, batch_size=4, micro_batch_size=4, group_by_length=True)
    with watched(here.monkeypatch) as seen:
        run(model_with(here.tiny), here.path, s)
    longest = sorted(length for _, (_, length) in seen)
    lengths = sorted(len(row) for row in rows)
    assert longest == [max(lengths[i : i + 4]) for i in range(0, 20, 4)]
    with watched(here.monkeypatch) as seen:
        run(model_with(here.tiny), here.path, replace(s, group_by_length=False))
    assert sorted(length for _, (_, length) in seen) != longest


@row("train.checkpointing")
def blocks_are_computed_again(here):
    import model.language

    calls, checkpoint = [], model.language.checkpoint
    here.monkeypatch.setattr(
        model.language,
        "checkpoint",
        lambda block, *a, **k: calls.append(block) or checkpoint(block, *a, **k),
    )
    plain = model_with(here.tiny)
    run(plain, here.path, replace(S, max_steps=1, micro_batch_size=6))
    assert not calls
    for value, numbers in (("block", [0, 1, 2]), ("every 2", [0, 2]), ("every 3", [0])):
        again = model_with(here.tiny)
        run(again, here.path, replace(S, max_steps=1, micro_batch_size=6, checkpointing=value))
        assert [list(again.blocks).index(block) for block in calls] == numbers, value
        for a, b in zip(state(plain), state(again), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
        calls.clear()


@row("train.offload")
def what_is_kept_is_offloaded(here):
    with_hooks = []

    @contextmanager
    def offloaded(model):
        with_hooks.append(model)
        yield

    here.monkeypatch.setattr(loop, "offloaded", offloaded)
    run(model_with(here.tiny), here.path, replace(S, max_steps=2))
    assert not with_hooks
    run(model_with(here.tiny), here.path, replace(S, max_steps=2, offload=True))
    assert len(with_hooks) == 2
    here.train("--set", "train.offload=true", status=1)  # the run is on the CPU already
    assert "train.offload" in here.told


@row("train.save_every", "train.keep")
def checkpoints_are_kept(here):
    written = []
    true_save = loop.State.save
    here.monkeypatch.setattr(
        loop.State,
        "save",
        lambda self, *a, **k: written.append(self.step) or true_save(self, *a, **k),
    )
    run(model_with(here.tiny), here.path, replace(S, save_every=3, keep=2))
    assert written == [3, 6, 8]
    left = sorted(path.name for path in here.path.glob("checkpoint-*.pt"))
    assert left == ["checkpoint-000006.pt", "checkpoint-000008.pt"]


@row("train.validate_every", "train.best", "train.patience")
def validation(here):
    s = replace(S, max_steps=12, validation_rows=4, validate_every=2, save_every=5)
    found = []

    def train(values, **changes):
        rest = list(values)
        here.monkeypatch.setattr(loop, "mean_loss", lambda *arguments: rest.pop(0))
        outcome, entries = run(
            model_with(here.tiny), here.path, replace(s, **changes), held_out=examples(24)[20:]
        )
        found[:] = [one["step"] for one in entries if "validation_loss" in one]
        return outcome

    assert train([3.0, 1.0, 2.0, 2.0, 2.0, 2.0]).adapter_step == 4
    assert found == [2, 4, 6, 8, 10, 12]
    assert train([3.0, 1.0, 2.0, 2.0, 2.0, 2.0], best=False).adapter_step == 12
    assert train([3.0, 1.0, 2.0, 2.0, 2.0, 2.0], patience=2).step == 8  # two after the best one
    train([3.0, 1.0, 2.0], validate_every=0)
    assert found == [5, 10, 12]  # as often as checkpoints are saved


# ---------------------------------------------------------------- train: a whole run
def loss_by_hand(rows: list[dict], prompt_weight=0.0, cutoff=256, form="alpaca") -> float:
    """The loss of the pocket model on all rows at once, from its logits."""
    model, tokenizer = load_model("pocket-llama", torch.float32), load_tokenizer("pocket-llama")
    total = weight = 0.0
    for one in rows:
        ids = tokenizer.encode(template(form, tokenizer).whole(one), bos=True)
        ids.append(tokenizer.eos_id)
        _, asked = encode_prompt(tokenizer, one, template(form, tokenizer))
        weights = torch.tensor([prompt_weight] * len(asked) + [1.0] * (len(ids) - len(asked)))
        ids, weights = torch.tensor([ids[:cutoff]]), weights[:cutoff]
        with torch.no_grad():
            each = F.cross_entropy(model(ids)[0, :-1], ids[0, 1:], reduction="none")
        total += float((each * weights[1:]).sum())
        weight += float(weights[1:].sum())
    return total / weight


def four(here, name="four.json", **changes) -> Path:
    """Four rows, all of which are in the first step."""
    path = here.path / name
    path.write_text(json.dumps([one | changes for one in rows_of(here.sums)[:4]]))
    return path


WHOLE = ("--set", "test_share=0")


@row("train.prompt_weight")
def prompts_count_as_much_as_they_weigh(here):
    path = four(here)
    for weight in (0.0, 0.25):
        folder = here.still(
            *WHOLE, "--set", f"train.prompt_weight={weight}", data=path, out=f"{weight}"
        )
        assert losses(folder)[0] == pytest.approx(loss_by_hand(rows_of(path), weight), rel=1e-3)


@row("train.cutoff")
def rows_are_cut_off(here):
    path = four(here)
    tokenizer = load_tokenizer("pocket-llama")
    whole = [
        encode_row(tokenizer, one, template("alpaca", tokenizer), cutoff=999)[0]
        for one in rows_of(path)
    ]
    cutoff = max(map(len, whole)) - 1
    with watched(here.monkeypatch) as seen:
        folder = here.still(*WHOLE, "--set", f"train.cutoff={cutoff}", data=path)
    assert max(length for _, (_, length) in seen) == cutoff
    result = json.loads((folder / "result.json").read_text())
    assert result["rows_cut_off"] == sum(len(one) > cutoff for one in whole)
    expected = loss_by_hand(rows_of(path), cutoff=cutoff)
    assert losses(folder)[0] == pytest.approx(expected, rel=1e-3)


@row("train.validation_rows")
def so_many_rows_validate(here):
    folder = here.still(*WHOLE, "--set", "train.validation_rows=39", "--set", "train.save_every=1")
    (entry,) = lines_of(folder / "log.jsonl")
    rows = rows_of(here.sums)
    left = [one for one in rows if entry["loss"] == pytest.approx(loss_by_hand([one]), rel=1e-3)]
    assert len(left) == 1  # one row is left to train on
    rest = [one for one in rows if one is not left[0]]
    assert entry["validation_loss"] == pytest.approx(loss_by_hand(rest), rel=1e-3)


@row("train.tracker")
def a_run_is_drawn_elsewhere(here):
    import sys
    import types

    drawn = []

    class Writer:
        def __init__(self, where, purge_step):
            drawn.append(Path(where))

        def add_scalar(self, name, value, step):
            drawn.append((name, step))

        def flush(self):
            pass

        close = flush

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    here.monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    folder = here.still("--set", "train.tracker=tensorboard")
    assert folder in [drawn[0], *drawn[0].parents]
    assert ("train/loss", 1) in [one for one in drawn if isinstance(one, tuple)]
    here.train("--set", "train.tracker=wanda", status=1, out="no")
    assert "train.tracker" in here.told


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
            assert torch.equal(seen[0][0](ids), expected(ids))
            assert not torch.equal(expected(ids), load_model("pocket-llama", torch.float32)(ids))


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
    here.train("--set", "shard=true", status=1)  # several processes: tests/test_parallel.py
    assert "start with torchrun" in here.told


@pytest.mark.parametrize("name", ROWS.cases())
def test_setting(name, request, tmp_path, monkeypatch):
    ROWS.prove(name, Here(tmp_path, monkeypatch, request, name))

"""The options of plans, pictures, data, tables and measurements, each with what it must give."""

import json
from contextlib import contextmanager
from pathlib import Path

import pytest
import reasoning_logs as logs
import torch
from in_command import command
from obeyed import watched
from options_given import as_settings, options_of, plan, row, rows_for, settings_in
from plans import of_layers
from processes import ROOT

from adapters import load_adapter
from experiments.distil import Distilled, Learner
from experiments.jobs import Launcher
from model import load_model
from train.checkpoint import State

# ---------------------------------------------------------------- plan and show


@row(
    *rows_for(
        "plan",
        options="--model --device --dtype --quantize --adapter --recipe --config --set --memory "
        "--processes --length --labelled --rows --flops --measure --json --data",
    )
)
def facts_of_a_plan(here):
    facts = plan(here, *"--dtype bfloat16 --quantize nf4 --adapter lora --length 40".split())
    assert [facts[key] for key in ("dtype", "quantize", "adapter", "length")] == [
        "bfloat16", "nf4", "lora", 40,
    ]  # fmt: skip
    assert plan(here, "--model", "pocket-opt")["parameters"] == sum(
        one.numel() for one in load_model("pocket-opt").parameters()
    )
    config, recipe = here.path / "c.toml", here.path / "r.toml"
    config.write_text('model = "pocket-gptj"\n[train]\nbatch_size = 5\n')
    recipe.write_text("[train]\nmicro_batch_size = 3\nbatch_size = 9\n")
    facts = plan(here, "--config", config, "--recipe", recipe, "--set", "eval.batch_size=7")
    assert (facts["model"], facts["batch_size"]) == ("pocket-gptj", 5)
    assert (facts["micro_batch_size"], facts["answers_at_once"]) == (3, 7)

    of_layers(1, here.monkeypatch, "llama-7b")
    of_v1 = plan(here, "--model", "llama-7b", "--adapter", "paper-lora", "--data", "math-v1")
    assert {one["row"] for one in of_v1["published"]} >= {
        "llama-7b LoRA of Table 1 of arXiv 2304.01933v1"
    }
    assert not plan(here, "--model", "llama-7b", "--data", "wordproblems")["published"]

    small = ("--length", 64, "--set", "train.batch_size=8", "--set", "train.micro_batch_size=2")
    whole, half = plan(here, *small), plan(here, *small, "--labelled", 0.5)
    assert (whole["labelled"], half["labelled"]) == (1.0, 0.5)
    saved = (
        whole["devices"][0]["kept_by_forward_bytes"] - half["devices"][0]["kept_by_forward_bytes"]
    )
    vocabulary = load_model("pocket-llama").config.vocab_size
    assert saved >= 4 * 2 * 31 * vocabulary  # logits of half the labels: float32, two rows of 64

    timed = plan(
        here,
        *small,
        "--rows",
        100,
        *"--flops 1G --set train.epochs=2 --set train.max_steps=0".split(),
    )
    assert timed["steps"] == 2 * 13
    assert timed["flops_per_second"] == 1e9
    assert timed["seconds"] == pytest.approx(26 * timed["flops_per_step"] / 1e9)
    four = plan(here, *small, "--flops", "1G", "--processes", 4)
    assert (four["processes"], timed["processes"]) == (4, 1)
    assert four["seconds_per_step"] == pytest.approx(timed["seconds_per_step"] / 4)
    measured = plan(here, *small, "--device", "cpu", "--measure")
    assert measured["seconds_per_step"] == pytest.approx(
        measured["flops_per_step"] / measured["flops_per_second"]
    )
    two = plan(here, *small, "--device", "cuda:0,cuda:1", "--memory", "24GB,12GB")
    assert [one["device"] for one in two["devices"]] == ["cuda:0", "cuda:1"]
    assert [one["memory_bytes"] for one in two["devices"]] == [24e9, 12e9]
    assert two["fits"]
    assert plan(here, "--memory", "556MB", status=1)["fits"] is False
    with pytest.raises(ValueError, match="Expecting"):
        json.loads(command("plan", "--model", "pocket-llama"))


@row(*rows_for("show", options="--model --adapter --config --set"))
def blocks_that_are_drawn(here):
    assert "906,880" in command("show", "--model", "pocket-llama")
    config = here.path / "c.toml"
    config.write_text('model = "pocket-llama"\n[adapter]\npreset = "lora"\nr = 3\n')
    facts = plan(here, "--adapter", "lora", "--set", "adapter.r=5")
    told = command("show", "--adapter", "lora", "--set", "adapter.r=5")
    assert f"{facts['trainable_parameters']:,} trained parameters" in told
    facts = plan(here, "--config", config)
    told = command("show", "--model", "pocket-llama", "--config", config)
    assert f"{facts['trainable_parameters']:,} trained parameters" in told


# ---------------------------------------------------------------- inspect
ANSWERS = [  # set, index, right, paper_right, cut, leak
    ("a", 0, True, True, False, False),
    ("a", 1, False, True, True, False),
    ("b", 0, False, False, False, True),
    ("b", 1, True, False, True, True),
]


def predictions(path: Path, rows=ANSWERS) -> Path:
    path.write_text(
        "".join(
            json.dumps(
                {
                    "set": name, "index": index, "instruction": f"{name}{index}", "prompt": "p",
                    "output": "o", "gold": "1", "answer": float(right), "right": right,
                    "paper_answer": float(paper), "paper_right": paper, "cut": cut,
                }
                | ({"leak": "twin"} if leak else {})
            )
            + "\n"
            for name, index, right, paper, cut, leak in rows
        )
    )  # fmt: skip
    return path


@row(*(name for name in options_of("inspect") if name != "inspect --debug"))
def answers_that_are_shown(here):
    path = predictions(here.path / "one.jsonl")
    other = predictions(
        here.path / "two.jsonl", [(n, i, not right, *rest) for n, i, right, *rest in ANSWERS]
    )

    def shown(*words):
        told = command("inspect", path, *words, "--json")
        return [json.loads(line)["instruction"] for line in told.splitlines()]

    assert shown() == ["a0", "a1", "b0", "b1"]
    for words, expected in {
        "--wrong": "a1 b0",
        "--right": "a0 b1",
        "--right --reader paper": "a0 a1",
        "--set b": "b0 b1",
        f"--beats {other}": "a0 b1",
        "--readers-differ": "a1 b1",
        "--cut": "a1 b1",
        "--leaked": "b0 b1",
        "--limit 3": "a0 a1 b0",
        "--wrong --limit 1": "a1",
    }.items():
        assert shown(*words.split()) == expected.split(), words
    many = predictions(path, [("a", n, True, True, False, False) for n in range(14)])
    assert len(shown()) == 10
    assert len(shown("--limit", 0)) == 14
    assert "a13" in command("inspect", many, "--limit", 0)  # for people, not as JSON


# ---------------------------------------------------------------- data
@row(*(name for name in options_of("data") if name != "data --debug"))
def data_that_is_shown(here):
    assert "wordproblems" in command("data", "list")
    path = here.path / "mine.json"
    path.write_text(json.dumps([{"q": f"q{n}", "a": f"a{n}"} for n in range(20)]))
    words = ("data", "show", path, "--columns", "instruction=q,output=a")
    assert command(*words).count('"instruction"') == 2
    told = command(*words, "--rows", 5)
    assert told.count('"instruction"') == 5
    assert '"q0"' in told or "q1" in told
    path.write_text(
        json.dumps([{"instruction": "q", "output": "a"}, {"instruction": [], "output": "a"}])
    )
    command("data", "check", path)
    command("data", "check", path, "--strict-rows", status=1)
    told = command("data", "check", "gsm8k", "--data-dir", here.path / "none", status=1)
    assert str(here.path / "none") in told
    log = here.path / "a.log"
    log.write_text(
        logs.HEAD + logs.one("a?", "So it goes.", "5", "5") + logs.one("b?", "So.", "7", "8")
    )
    for words, expected in (((), ["a?"]), (("--keep-wrong",), ["a?", "b?"])):
        out = here.path / f"rows{len(expected)}.json"
        command("data", "from-log", log, *words, "--out", out)
        assert [row["instruction"] for row in json.loads(out.read_text())] == expected


# ---------------------------------------------------------------- models, quantize, harness
@row(
    *rows_for(
        "quantize", options="--model --device --dtype --to --out --text --tokens --shard-size"
    )
)
def quantized(here):
    text = here.path / "text.txt"
    text.write_text("Tom has 3 pens. Amy gives Tom 4 more. " * 40)
    ids = torch.tensor([[5, 6, 7, 8]])
    told = command(
        *("quantize --model pocket-opt --device cpu --dtype float32 --to nf4 "
"--text").split(), text, "--tokens", 37, "--shard-size", "0.0003", "--out", here.path / "q",
    )  # fmt: skip
    assert "on 36 tokens" in told  # the first of 37 is not predicted
    assert str(text) in told
    assert len(list((here.path / "q").glob("*.safetensors"))) > 2
    expected = load_model("pocket-opt", torch.float32, quantize="nf4")
    found = load_model(str(here.path / "q"))
    assert found.dtype == torch.float32
    assert torch.equal(found(ids), expected(ids))
    told = command("quantize", "--to", "int8", "--tokens", 0, "--out", here.path / "none")
    assert "perplexity" not in told


@row(
    *(
        name
        for name in options_of("harness")
        if name.split()[1] not in ("--debug", "--shard", "--revision")
    )
)
def what_the_harness_is_asked(here):
    asked = {}

    def run_tasks(model, tokenizer, tasks, **more):
        asked.update(more, model=model, tasks=tasks)
        return {"results": {"mine": {"acc,none": 0.5}}}

    here.monkeypatch.setattr("eval.harness.run_tasks", run_tasks)
    told = command(
        "harness", here.run, "--tasks", "one,two", "--include-path", here.path, "--items", 3,
        "--num-fewshot", 2, "--template", "plain", "--batch-size", 5, "--max-new-tokens", 7,
        "--out", here.path / "all.json", "--device", "cpu", "--dtype", "float32",
        "--decode-memory", "plain",
    )  # fmt: skip
    assert "0.5" in told
    assert json.loads((here.path / "all.json").read_text())["results"]["mine"]
    assert asked["tasks"] == ["one", "two"]
    expected = {"include_path": str(here.path), "limit": 3, "num_fewshot": 2, "template": "plain"}
    for key, value in (expected | {"batch_size": 5, "max_new_tokens": 7}).items():
        assert str(asked[key]) == str(value), key
    assert asked["model"].decode_memory == "plain"
    ids, model = torch.tensor([[5, 6, 7]]), load_model("pocket-llama", torch.float32)
    load_adapter(model, here.run / "adapter")
    torch.testing.assert_close(asked["model"](ids), model(ids))
    words = ("harness", "--tasks", "one", "--model", "pocket-llama", "--adapter", here.lora)
    command(*words, "--adapter", here.copy_of(here.lora), "--average", "--quantize", "int8")
    assert asked["model"].quantize == "int8"
    plain = load_model("pocket-llama", torch.float32, quantize="int8")
    load_adapter(plain, here.lora)
    torch.testing.assert_close(asked["model"](ids), plain(ids), rtol=1e-3, atol=1e-3)


# ---------------------------------------------------------------- table, benchmark, pretrain
@row(*(name for name in options_of("table") if name != "table --debug"))
def grids(here):
    running = []

    def run_jobs(jobs, launcher, *more):
        running.append(launcher.at_once)
        return jobs

    here.monkeypatch.setattr("experiments.jobs.run_jobs", run_jobs)
    recipe = here.path / "r.toml"
    recipe.write_text("[train]\nbatch_size = 3\n")

    def jobs(*words, out):
        command("table", *words, "--out", here.path / out, status=1)  # all of them failed
        return {path.stem: settings_in(path) for path in (here.path / out).glob("*.toml")}

    found = jobs(
        "--models", "pocket-llama,pocket-opt", "--adapters", "lora", "--seeds", "4,5", "--data",
        here.sums, "--recipe", recipe, "--set", "train.clip=0.5", "--jobs", 2, out="a",
    )  # fmt: skip
    assert running == [2]
    assert {(one["model"], one["seed"]) for name, one in found.items() if "base" not in name} == {
        (model, seed) for model in ("pocket-llama", "pocket-opt") for seed in (4, 5)
    }
    for one in found.values():
        as_settings(one, {"data": str(here.sums), "train.clip": 0.5, "train.batch_size": 3})
    grid = here.path / "grid.toml"
    grid.write_text('models = ["pocket-gptj"]\nadapters = ["series"]\ndata = "wordproblems"\n')
    assert {one["model"] for one in jobs(grid, out="b").values()} == {"pocket-gptj"}
    found = jobs("--pocket", "--adapters", "ia3", out="c")
    assert {one["model"] for one in found.values()} == {
        "pocket-llama", "pocket-bloom", "pocket-opt", "pocket-gptj",
    }  # fmt: skip
    launches(here, lambda: [*("table", grid), "--out", here.path / "e"], running)
    told = command("table", "--data-dir", here.path / "no", "--out", here.path / "d", status=1)
    assert str(here.path / "no") in told


def launches(here, words, running) -> None:
    """--list, --launch, --engine and --address; tests/experiments/test_launch.py runs them."""
    lines = command(*words(), "--list").splitlines()
    configs = sorted(str(path) for path in (here.path / "e").glob("*.toml"))
    assert sorted(line.split("--config ")[1].split()[0] for line in lines) == configs
    given = []

    @contextmanager
    def launcher(*values):
        given.append(values)
        yield Launcher(at_once=9)

    with here.monkeypatch.context() as patch:
        patch.setattr("experiments.launch.launcher", launcher)
        command(*words(), "--launch", "srun {}", status=1)
        command(*words(), "--engine", "ray", "--address", "auto", "--jobs", 4, status=1)
    assert given == [(None, "srun {}", "", ""), (4, "", "ray", "auto")]
    assert running[-2:] == [9, 9]


@row(*(name for name in options_of("referee") if name != "referee --debug"))
def methods_with_equal_budgets(here):
    running = []
    here.monkeypatch.setattr(
        "experiments.jobs.run_jobs",
        lambda jobs, launcher, *more: running.append(launcher.at_once) or jobs,
    )

    def jobs(*words, out):
        command("referee", *words, "--out", here.path / out, status=1)  # all of them failed
        return {path.stem: settings_in(path) for path in (here.path / out).glob("*.toml")}

    found = jobs(
        "referee", "--pocket", "--adapters", "ia3,lora", "--seeds", "4,5", "--jobs", 2,
        "--set", "train.clip=0.5", out="a",
    )  # fmt: skip
    assert running == [2]
    assert {(one["adapter"]["preset"], one["seed"]) for one in found.values()} == {
        (method, seed) for method in ("ia3", "lora") for seed in (4, 5)
    }
    for one in found.values():
        as_settings(one, {"model": "pocket-llama", "train.clip": 0.5})
        assert one["train"]["learning_rate"] in (0.003, 0.01, 0.03, 0.1)
    assert len(found) == 2 * 2 * 4
    words = "referee referee --pocket --adapters ia3,lora --seeds 4 --out".split()
    launches(here, lambda: [*words, here.path / "e"], running)
    told = command("referee", "referee", "--data-dir", here.path / "no", status=1)
    assert str(here.path / "no") in told


@row(*(name for name in options_of("distil") if name != "distil --debug"))
def an_adapter_distilled(here):
    """tests/experiments/test_distil.py trains; here the settings of its run."""
    asked = []

    def settings(*words):
        told = command("distil", *words, status=130)
        assert f"distil --resume {asked[-1][1]}" in told
        return asked[-1][0].to_dict(), *asked[-1][1:]

    def stopped(settings, folder, resume):
        asked.append((settings, folder, resume))
        nobody = Learner(0, [], "")
        return Distilled([], {}, {}, nobody, nobody, signal=2)

    here.monkeypatch.setattr("experiments.distil.distil", stopped)
    run = here.copy_of(here.run)
    found, folder, resume = settings(run)
    assert (folder, resume) == (Path(f"{run}-to-lora"), False)
    as_settings(found, {"teacher": str(run / "adapter"), "train.learning_rate": 0.2})
    assert found["adapter"]["preset"] == "lora"
    assert found["adapter"]["r"] == 16  # of the recipe for pocket models
    found, folder, _ = settings(
        run, "--to", "dora", "--r", 3, "--sites", "k,o", "--device", "cpu", "--set",
        "train.clip=0.5", "--out", here.path / "out",
    )  # fmt: skip
    as_settings(found, {"adapter.preset": "dora", "adapter.r": 3, "adapter.sites": ["k", "o"]})
    as_settings(found, {"device": "cpu", "train.clip": 0.5})
    assert folder == here.path / "out"
    other = here.path / "other"
    other.mkdir()
    (other / "run.toml").write_bytes((run / "run.toml").read_bytes())
    assert settings("--resume", other)[1:] == (other, True)


@row(*(name for name in options_of("compare") if name != "compare --debug"))
def runs_compared(here):
    first = predictions(here.path / "one.jsonl")
    second = predictions(
        here.path / "two.jsonl",
        [(n, i, right, not paper, *rest) for n, i, right, paper, *rest in ANSWERS],
    )

    def compared(*words):
        return json.loads(command("compare", first, second, "--json", *words))["pairs"][0]

    assert compared()["only"] == [0, 0]
    assert compared("--reader", "paper")["only"] == [2, 2]
    assert compared("--reader", "paper", "--clean")["only"] == [2, 0]
    assert command("compare", first, second, "--markdown").startswith("## All problems")


@row(*rows_for("benchmark", options="--only --out --smoke --data-dir --minutes"))
def what_is_measured_of_a_table(here):
    given = {}
    here.monkeypatch.setattr("benchmarks.table.table_lines", lambda **v: given.update(v) or [])
    command(*"benchmark --model pocket-opt --only fp32 --out x --smoke --data-dir y".split())
    assert given == {
        "model": "pocket-opt", "data_dir": "y", "only": "fp32", "out": "x", "repeats": 3,
        "smoke": True,
    }  # fmt: skip
    here.monkeypatch.setattr("benchmarks.gpu.gpu_lines", lambda **v: given.update(v) or [])
    command(
        *"benchmark --case gpu --minutes 3 --out z".split()
    )  # tests/benchmarks/test_benchmark.py runs it
    assert {key: given[key] for key in ("minutes", "out")} == {"minutes": 3, "out": "z"}


@row(*rows_for("benchmark", options="--case --model --repeats --quantize --adapter --tokens "
               "--rows --checkpointing --device --dtype --processes"))  # fmt: skip
def what_is_measured_of_a_step(here):
    with watched(here.monkeypatch) as seen:
        told = command(
            *("benchmark --case step --model pocket-opt --quantize int8 --adapter "
"series --tokens").split(), 16, "--rows", 2, "--checkpointing", "every 2",
*"--device cpu --dtype float32 --repeats".split(), 2,
        )  # fmt: skip
    assert "int8, series, 2 x 16 tokens, checkpointing every 2, on cpu" in told
    real = [(model, shape) for model, shape in seen if not next(model.parameters()).is_meta]
    assert {shape for _, shape in real} == {(2, 16)}
    assert len(real) == 2 + 2  # two to warm up, and the two that count
    model = real[0][0]
    assert (model.config.model_type, model.dtype, model.quantize) == ("opt", torch.float32, "int8")
    assert {adapter.config.kind for site in model.modules()
            for adapter in getattr(site, "adapters", {}).values()} == {"bottleneck"}  # fmt: skip
    assert seen.checkpointing[-1] == 2
    given = {}
    here.monkeypatch.setattr(
        "benchmarks.plan_check.plan_lines", lambda **values: given.update(values) or []
    )
    words = "--case plan --model pocket-opt --tokens 8 --processes 2"
    command("benchmark", *words.split())
    assert given == {"model": "pocket-opt", "tokens": 8, "processes": 2}


@row(*rows_for("pretrain", options="--recipe --family --seed --max-steps --out --resume"))
def models_from_scratch(here):
    recipe = here.path / "mine.toml"
    source = ROOT / "train" / "recipes" / "pocket.toml"
    text = source.read_text().replace("save_every = 500", "save_every = 1")
    recipe.write_text(text.replace("batch_size = 32", "batch_size = 4"))
    sizes = []
    for seed in (1, 2):
        out = here.path / str(seed)
        told = command(
            "pretrain", "--recipe", recipe, "--family", "gptj", "--seed", seed, "--max-steps", 1,
            "--out", out,
        )  # fmt: skip
        assert "1 steps" in told
        assert json.loads((out / "config.json").read_text())["model_type"] == "gptj"
        sizes.append(load_model(str(out))(torch.tensor([[5, 6]])).sum().item())
    assert sizes[0] != sizes[1]

    whole, cut = here.path / "whole", here.path / "cut"
    command("pretrain", "--recipe", recipe, "--max-steps", 3, "--out", whole)
    save = State.save

    def killed_after_two(state, *what, **more):
        save(state, *what, **more)
        if state.step == 2:
            raise KeyboardInterrupt

    with here.monkeypatch.context() as patched:
        patched.setattr(State, "save", killed_after_two)
        with pytest.raises(KeyboardInterrupt):
            command("pretrain", "--recipe", recipe, "--max-steps", 3, "--out", cut)
    assert sorted(path.name for path in cut.iterdir()) == ["checkpoint-000002.pt", "pretrain.json"]
    assert "continuing from" in command("pretrain", "--resume", cut)
    assert {path.name: path.read_bytes() for path in whole.iterdir()} == {
        path.name: path.read_bytes() for path in cut.iterdir()
    }

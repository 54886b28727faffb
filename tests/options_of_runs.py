"""The options of what trains, measures, generates and writes adapters."""

import io
import json
import shutil
from contextlib import nullcontext, redirect_stdout
from pathlib import Path

import pytest
import torch
from in_command import COMMANDS, command, main, mentions
from obeyed import lines_of, losses, rows_of, watched
from options_given import (
    as_settings,
    plan,
    quick,
    row,
    rows_for,
    settings_in,
    source_words,
    words_of,
)
from paper_folder import write_paper_folder

from adapters import load_adapter, named_parameters
from adapters.attach import adapters_named
from cli import __version__
from data.batches import encode_prompt
from data.prompts import template
from eval import predict
from eval.generate import Sampling, generate
from experiments import base
from model import load_model, load_tokenizer
from train import loop


# ---------------------------------------------------------------- every command
@row("train --version")
def version(here):
    with pytest.raises(SystemExit) as end, redirect_stdout(io.StringIO()) as printed:
        main(["--version"])
    assert end.value.code == 0
    assert printed.getvalue() == f"llm-adapters {__version__}\n"


@row(*(f"{name} --debug" for name in COMMANDS), each=True)
def debug(here):
    from files.errors import UserError

    name = here.name.split()[0]
    wrong = {
        "data": ["shaw"], "inspect": ["/nowhere"], "models": None, "show": ["--model", "x-y"],
        "compare": ["/nowhere", "/other"], "referee": ["/nowhere.toml"], "distil": ["/nowhere"],
    }  # fmt: skip
    words = wrong.get(name, ["--model", "pocket-lama"])
    if name in ("merge", "export"):
        words = [*words, "--out", here.path / "out"]
    elif name == "combine":
        words = ["/nowhere=1", *words, "--out", here.path / "out"]
    elif name == "quantize":
        words = [*words, "--to", "int8", "--out", here.path / "out"]
    elif name == "harness":
        words = [*words, "--tasks", "x"]
    elif name == "generate":
        words = [*words, "--prompt-ids", "5"]
    elif name == "table":
        words = ["--pocket", "--adapters", "lara"]
    elif name == "benchmark":
        words = ["--case", "speed"]
    elif name == "pretrain":
        words = ["--family", "bert", "--out", here.path / "out"]
    if words is None:  # nothing can be wrong
        assert "pocket-llama" in command(name, "--debug")
        return
    assert "run.py: " in command(name, *words, status=1)
    with pytest.raises(UserError):
        command(name, *words, "--debug")


# ---------------------------------------------------------------- train
SETTINGS_OF_TRAIN = {  # option -> (value, setting, what it is then)
    "--model": ("pocket-opt", "model", "pocket-opt"),
    "--device": ("cpu,cpu", "layers_per_device", [2, 2]),
    "--dtype": ("float32", "dtype", "float32"),
    "--quantize": ("int8", "quantize", "int8"),
    "--adapter": ("lora", "adapter.kind", "lora"),
    "--columns": ("instruction=q,output=a,answer=n", "columns.output", "a"),
    "--strict-rows": (True, "strict_rows", True),
    "--only-right": (True, "only_right", True),
    "--train-on-test": (True, "train_on_test", True),
    "--template": ("plain", "template", "plain"),
    "--seed": (7, "seed", 7),
    "--max-steps": (1, "train.max_steps", 1),
    "--keep": (3, "train.keep", 3),
    "--items": (2, "eval.items", 2),
    "--set": ("train.clip=0.5", "train.clip", 0.5),
}


@row(
    *(f"train {name}" for name in SETTINGS_OF_TRAIN), "train --data", "train --tests", "train --out"
)
def settings_of_train(here):
    rows = [
        {"q": one["instruction"], "a": one["output"], "n": one["answer"]}
        for one in rows_of(here.sums)
    ]
    mine, test = here.path / "mine.json", here.path / "test.json"
    mine.write_text(json.dumps(rows))
    test.write_text(json.dumps(rows[:3]))
    words = words_of({name: value for name, (value, *_) in SETTINGS_OF_TRAIN.items()})
    out = quick(
        here, *words, "--data", mine, "--tests", test,
        *"--set eval.max_new_tokens=1 --set train.micro_batch_size=2".split(),
    )  # fmt: skip
    found = settings_in(out / "run.toml")
    as_settings(found, {setting: value for _, setting, value in SETTINGS_OF_TRAIN.values()})
    as_settings(found, {"data": str(mine), "tests": [str(test)]})
    assert len(lines_of(out / "predictions.jsonl")) == 2


@row("train --dry-run")
def a_plan_and_no_run(here):
    words = "--model pocket-llama --adapter lora --set train.max_steps=7 --set seed=3".split()
    told = command("train", *words, "--data", "math_10k", "--out", here.path / "no", "--dry-run")
    assert told == command("plan", *words, "--data", "math_10k")
    assert "steps    7 at" in told
    assert not (here.path / "no").exists()


@row("train --compile", "evaluate --compile")
def blocks_are_compiled(here):
    on = []
    here.monkeypatch.setattr(base, "check_compiler", lambda *found: None)
    for module in (loop, predict):
        name = module.__name__
        compiled = lambda *a, name=name, **k: on.append(name) or nullcontext()  # noqa: E731
        here.monkeypatch.setattr(module, "compiled", compiled)
    words = ("--set", "eval.max_new_tokens=1", "--items", 1, "--max-steps", 1)
    out = quick(here, "--compile", "--data", here.sums, *words, "--set", "test_share=0.1")
    as_settings(settings_in(out / "run.toml"), {"train.compile": True, "eval.compile": True})
    assert on == ["train.loop", "eval.predict"]
    command("evaluate", out, "--compile", *words[:4], "--out", here.path / "e")
    found = settings_in(here.path / "e" / "evaluate.toml")
    as_settings(found, {"train.compile": False, "eval.compile": True})
    assert on[2:] == ["eval.predict"]


@row("train --config", "train --recipe")
def files_of_settings(here):
    recipe, config = here.path / "recipe.toml", here.path / "config.toml"
    recipe.write_text("seed = 5\n[train]\nbatch_size = 3\nmax_steps = 1\n")
    config.write_text(f'seed = 6\ndata = "{here.sums}"\n[train]\nkeep = 2\n')
    found = settings_in(quick(here, "--config", config, "--recipe", recipe) / "run.toml")
    as_settings(found, {"seed": 6, "data": str(here.sums), "train.keep": 2, "train.max_steps": 1})


@row("train --find-rate")
def the_rate_of_the_lowest_loss_is_taken(here):
    words = ("--adapter", "ia3", "--data", here.sums, "--max-steps", 1, "--find-rate")
    found = settings_in(quick(here, *words) / "run.toml")
    lines = here.told.partition("after a short run\n")[2].splitlines()
    table = [line.split() for line in lines if line[:14].strip()[:1].isdigit()]
    losses_of = {float(rate): float(loss) for rate, loss, *_ in table if "e-" in rate}
    assert len(losses_of) >= 5
    as_settings(found, {"train.learning_rate": min(losses_of, key=losses_of.get)})


@row("train --resume")
def a_run_is_continued(here):
    out = here.train(steps=2)
    whole = losses(out)
    (out / "result.json").unlink()
    lines = (out / "log.jsonl").read_text().splitlines(keepends=True)
    (out / "checkpoint-000002.pt").unlink()
    (out / "log.jsonl").write_text("".join(lines[:0]))
    told = command("train", "--resume", out)
    assert "starting from step 0" in told
    assert losses(out) == whole


@row("train --or-resume", "evaluate --or-resume")
def a_run_that_may_be_started_any_number_of_times(here):
    """tests/experiments/test_launch.py has its other cases."""
    out = here.train("--or-resume", steps=2)
    whole, stamp = losses(out), (out / "result.json").stat().st_mtime_ns
    assert "is complete" in (here.train("--or-resume", steps=2) and here.told)
    assert (out / "result.json").stat().st_mtime_ns == stamp
    (out / "result.json").unlink()
    (out / "predictions.jsonl").unlink()
    here.train("--or-resume", steps=2)
    assert losses(out) == whole
    here.train("--or-resume", steps=3, status=1)
    assert "holds results of other settings (train.max_steps)" in here.told
    answers = here.evaluate("--or-resume")
    (here.path / "e" / "result.json").unlink()
    (here.path / "e" / "predictions.jsonl").unlink()
    assert here.evaluate("--or-resume") == answers
    here.evaluate("--or-resume")
    assert "is complete" in here.told


@row("train --continue", "train --load", "plan --continue", "plan --load")
def adapters_that_are_there(here):
    words = ("--model", "pocket-llama", "--data", here.sums, "--max-steps", 1)
    found = settings_in(quick(here, "--continue", here.lora, *words) / "run.toml")
    as_settings(found, {"continue_from": str(here.lora)})
    found = settings_in(quick(here, "--load", f"math={here.lora}", *words, out="b") / "run.toml")
    as_settings(found, {"load.math": str(here.lora)})
    alone = plan(here, "--adapter", "series")
    below = plan(here, "--adapter", "series", "--load", f"math={here.lora}")
    model = load_model("pocket-llama", torch.float32)
    load_adapter(model, here.lora)
    size = sum(one.numel() for one in named_parameters(model).values())
    assert below["trainable_parameters"] == alone["trainable_parameters"] != size
    extra = [one["devices"][0]["adapter_bytes"] for one in (below, alone)]
    assert extra[0] - extra[1] == 4 * size
    further = plan(here, "--continue", here.lora)
    assert (further["adapter"], further["trainable_parameters"]) == ("lora", size)


@row(
    *rows_for(
        "train", "evaluate", "harness", "generate", "merge", "export", "combine", "plan",
        options="--shard",
    )
)  # fmt: skip
def shards_need_processes(here):
    for words in source_words(here, "--shard"):
        assert "process" in command(*words, status=1), words


@row(
    *rows_for(
        "train", "evaluate", "harness", "generate", "merge", "export", "combine", "plan", "show",
        "quantize", options="--revision",
    )
)  # fmt: skip
def folders_have_no_revision(here):
    base = Path(load_model("pocket-llama").folder)
    folder = here.path / "copy"
    shutil.copytree(base, folder)
    for words in source_words(here, "--revision", "v9", model=folder):
        assert "only repositories of the hub have revisions" in command(*words, status=1), words
    for words in (
        ("show", "--model", folder, "--revision", "v9"),
        ("quantize", "--model", folder, *"--revision v9 --to int8 --out".split(), here.path / "q"),
    ):
        assert "only repositories of the hub have revisions" in command(*words, status=1), words


@row("train --data-dir", "evaluate --data-dir", "evaluate --teacher")
def the_papers_data(here):
    for words in (
        ("train", "--data", "math-v1"),
        ("evaluate", "--data", "math-v1"),
        ("evaluate", "--teacher"),
    ):
        told = command(*words, "--data-dir", here.path / "none", status=1)
        assert str(here.path / "none" / "dataset") in told, words
    folder = write_paper_folder(here.path / "paper", 12)
    told = command("evaluate", "--teacher", "--data-dir", folder)
    assert "rationales, strict" in told
    assert "published" in told


# ---------------------------------------------------------------- evaluate
SETTINGS_OF_EVALUATE = SETTINGS_OF_TRAIN | {
    "--batch-size": (2, "eval.batch_size", 2),
    "--max-new-tokens": (1, "eval.max_new_tokens", 1),
    "--beams": (2, "eval.beams", 2),
    "--decode-memory": ("plain", "eval.decode_memory", "plain"),
    "--device": ("cpu", "device", "cpu"),
    "--set": ("test_share=0.3", "test_share", 0.3),
}
DRAWN = {
    "--temperature": (0.5, "eval.temperature", 0.5),
    "--top-k": (4, "eval.top_k", 4),
    "--top-p": (0.7, "eval.top_p", 0.7),
    "--seeds": ("4,5", "eval.seeds", [4, 5]),
}
ONLY_TRAINING = ("--adapter", "--only-right", "--train-on-test", "--seed", "--max-steps", "--keep")
for name in ONLY_TRAINING:
    del SETTINGS_OF_EVALUATE[name]


@row(
    *(f"evaluate {name}" for name in SETTINGS_OF_EVALUATE | DRAWN),
    *rows_for("evaluate", options="--data --tests --out --recipe --config --scoring"),
)
def settings_of_evaluate(here):
    rows = [
        {"q": one["instruction"], "a": one["output"], "n": one["answer"]}
        for one in rows_of(here.sums)
    ]
    mine = here.path / "mine.json"
    mine.write_text(json.dumps(rows))

    def evaluate(table, *words, out):
        options = words_of({name: value for name, (value, *_) in table.items()})
        command("evaluate", *options, *words, "--out", here.path / out)
        found = settings_in(here.path / out / "evaluate.toml")
        template = table.get("--template")
        expected = {setting: value for _, setting, value in table.values() if setting != "template"}
        as_settings(found, expected)
        if template:
            facts = json.loads((here.path / out / "evaluation.json").read_text())
            assert facts["template"] == template[0]
        return found

    found = evaluate(SETTINGS_OF_EVALUATE, "--data", mine, out="a")
    assert found["data"] == str(mine)
    short = ("--max-new-tokens", 1, "--items", 1)
    found = evaluate(DRAWN, "--data", "none", "--tests", here.sums, *short, out="b")
    assert found["tests"] == [str(here.sums)]
    recipe, config = here.path / "recipe.toml", here.path / "config.toml"
    recipe.write_text("[eval]\nitems = 1\nmax_new_tokens = 3\n")
    config.write_text(f'data = "{here.sums}"\n[eval]\nmax_new_tokens = 1\n')
    found = evaluate({}, "--config", config, "--recipe", recipe, out="c")
    as_settings(found, {"eval.items": 1, "eval.max_new_tokens": 1, "data": str(here.sums)})
    choices = here.path / "choices.json"
    text = "Is it? Answer format: yes/no"
    choices.write_text(json.dumps([{"instruction": text, "output": "yes", "answer": "yes"}]))
    words = ("--data", "none", "--tests", choices, "--scoring", "likelihood")
    assert evaluate({}, *words, out="d")["eval"]["scoring"] == "likelihood"


def outputs(here, *words, out="e") -> list[str]:
    command("evaluate", *words, "--items", 2, "--max-new-tokens", 3, "--out", here.path / out)
    return [one["output"] for one in lines_of(here.path / out / "predictions.jsonl")]


@row("evaluate run", "evaluate --adapter", "evaluate --average", "evaluate --resume")
def what_is_measured(here):
    data = ("--model", "pocket-llama", "--data", here.sums)
    with watched(here.monkeypatch) as seen:
        of_run = outputs(here, here.run, out="run")
        both = ("--adapter", here.run / "adapter", "--adapter", here.lora)
        stacked = outputs(here, *data, *both, out="stacked")
        averaged = outputs(here, *data, *both, "--average", out="averaged")
    assert of_run == outputs(here, *data, "--adapter", here.run / "adapter", out="adapter")
    assert of_run != outputs(here, *data, out="plain")
    facts = [
        json.loads((here.path / n / "evaluation.json").read_text()) for n in ("stacked", "averaged")
    ]
    assert [one["averaged"] for one in facts] == [False, True]
    assert facts[0]["adapters"] == [str(here.run / "adapter"), str(here.lora)]
    ids = torch.tensor([[5, 6, 7]])
    models = list({id(model): model for model, _ in seen}.values())
    assert not torch.allclose(models[1](ids), models[2](ids))
    (here.path / "averaged" / "result.json").unlink()
    (here.path / "averaged" / "predictions.jsonl").unlink()
    command("evaluate", "--resume", here.path / "averaged")
    again = lines_of(here.path / "averaged" / "predictions.jsonl")
    assert [one["output"] for one in again] == averaged
    assert stacked


# ---------------------------------------------------------------- generate
def by_hand(ids, model=None, tokenizer=None, **how):
    model = model or load_model("pocket-llama", torch.float32)
    tokenizer = tokenizer or load_tokenizer("pocket-llama")
    (new,) = generate(
        model, torch.tensor([ids]), vocab_size=tokenizer.size, stop_ids=[tokenizer.eos_id], **how
    )
    return new


def said(*words) -> str:
    return command("generate", *words)


DRAWS = {  # options that are given -> what `generate` is to be given
    "--beams 3": {"beams": 3},
    "--temperature 2": {"sampling": Sampling(2.0), "seeds": [0]},
    "--temperature 3 --top-k 2": {"sampling": Sampling(3.0, 2), "seeds": [0]},
    "--temperature 3 --top-p 0.4": {"sampling": Sampling(3.0, 0, 0.4), "seeds": [0]},
    "--temperature 2 --seed 5": {"sampling": Sampling(2.0), "seeds": [5]},
    "--max-new-tokens 4": {"max_new_tokens": 4},
}


@row(
    *rows_for(
        "generate",
        options="--prompt-ids --beams --temperature --top-k --top-p --seed --max-new-tokens",
    )
)
def tokens_that_are_generated(here):
    ids, different = [40, 300, 77], set()
    for options, how in DRAWS.items():
        words = options.split()
        words += [] if "--max-new-tokens" in words else ["--max-new-tokens", 9]
        expected = by_hand(ids, **({"max_new_tokens": 9} | how))
        told = said("--prompt-ids", "40,300,77", *words)
        assert told.split() == [",".join(map(str, expected))], options
        different.add(tuple(expected))
    assert len(different) == len(DRAWS)  # each shows something


@row(
    *rows_for(
        "generate",
        options="run --model --adapter --prompt --instruction --template --dtype --quantize "
        "--device --decode-memory",
    )
)
def text_that_is_generated(here):
    tokenizer, few = load_tokenizer("pocket-llama"), ("--max-new-tokens", 8)

    def text(ids, **more):
        return tokenizer.decode(by_hand(ids, max_new_tokens=8, **more), after=ids)

    assert said("--prompt", "Tom has", *few).startswith(text(tokenizer.encode("Tom has")))
    for name in ("alpaca", "plain"):
        _, ids = encode_prompt(tokenizer, {"instruction": "Why?"}, template(name, tokenizer))
        told = said("--instruction", "Why?", "--template", name, *few)
        assert told.startswith(text(ids)), name
    model = load_model("pocket-llama", torch.float32)
    load_adapter(model, here.run / "adapter")
    expected = by_hand([5, 6, 7], model=model, max_new_tokens=8)
    ids = ("--prompt-ids", "5,6,7", *few)
    for words in ((here.run,), ("--adapter", here.run / "adapter")):
        assert said(*words, *ids).split() == [",".join(map(str, expected))]
    with watched(here.monkeypatch) as seen:
        said(
            *"--model pocket-gptj --dtype bfloat16 --quantize nf4".split(),
            *ids[:2],
            "--max-new-tokens",
            1,
        )
        words = ("--device", "cpu,cpu", "--decode-memory", "plain")
        said(*words, *ids[:2], "--max-new-tokens", 1)
    (first, _), (second, _) = seen
    assert (first.decode_memory, second.decode_memory) == ("auto", "plain")
    assert (first.config.model_type, first.dtype, first.quantize) == ("gptj", torch.bfloat16, "nf4")
    assert [str(stage.device) for stage in second.stages] == ["cpu", "cpu"]


# ---------------------------------------------------------------- merge, export, combine
@row(
    *rows_for(
        "merge",
        options="run --model --adapter --average --out --shard-size --dtype --device --quantize",
    )
)
def merged(here):
    ids = torch.tensor([[5, 6, 7, 8]])

    def merge(*words, out, status=0):
        here.told = command("merge", *words, "--out", here.path / out, status=status)
        return here.path / out

    folder = merge(here.made / "lora-run", "--shard-size", "0.0005", "--dtype", "float32", out="a")
    assert len(list(folder.glob("*.safetensors"))) > 3
    assert max(path.stat().st_size for path in folder.glob("*.safetensors")) < 600_000
    model = load_model("pocket-llama", torch.float32)
    load_adapter(model, here.lora)
    plain = load_model(str(folder))
    assert plain.dtype == torch.float32
    torch.testing.assert_close(plain(ids), model(ids), rtol=1e-3, atol=1e-3)
    words = ("--model", "pocket-llama", "--device", "cpu", "--dtype", "float32")
    twice = ("--adapter", here.lora, "--adapter", here.copy_of(here.lora))
    folder = merge(*words, *twice, "--average", out="b")  # of two that are the same
    torch.testing.assert_close(load_model(str(folder))(ids), model(ids), rtol=1e-3, atol=1e-3)
    folder = merge(*words, *twice, out="c")
    assert not torch.allclose(load_model(str(folder))(ids), model(ids), atol=0.1)
    folder = merge(*words, "--adapter", here.lora, "--quantize", "int8", out="d")
    rounded = load_model("pocket-llama", torch.float32, quantize="int8")
    load_adapter(rounded, here.lora)
    found = load_model(str(folder))(ids)
    torch.testing.assert_close(found, rounded(ids), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(found, model(ids), rtol=1e-3, atol=1e-3)
    merge("--model", "pocket-opt", "--adapter", here.lora, out="e", status=1)


@row(
    *rows_for(
        "export",
        options="run --model --adapter --for --gguf --format --plain --out --shard-size --dtype "
        "--device --quantize",
    )
)
def exported(here):
    from safetensors.torch import load_file

    def export(*words, out):
        command("export", *words, "--out", here.path / out)
        return {path.name for path in (here.path / out).iterdir()}, here.path / out

    files, folder = export(here.made / "lora-run", out="a")
    assert {"adapter_config.json", "adapter_model.safetensors"} <= files
    assert json.loads((folder / "adapter_config.json").read_text())["peft_type"] == "LORA"
    words = ("--model", "pocket-llama", "--adapter", here.run / "adapter", "--device", "cpu")
    files, folder = export(*words, "--dtype", "float32", "--format", "paper", out="b")
    assert any("adapter_down" in name for name in of_file(folder))
    files, folder = export(*words, "--format", "native", "--quantize", "int8", out="c")
    assert json.loads((folder / "adapter_config.json").read_text())
    one, other = (
        load_file(f / "adapter_model.safetensors") for f in (folder, here.run / "adapter")
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    config = json.loads((here.path / "a" / "adapter_config.json").read_text())
    assert (config["lora_alpha"], config["r"]) == (5, 16)
    _, folder = export(here.made / "lora-run", "--plain", out="d")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["lora_alpha"] == config["r"]
    files, folder = export(
        here.run, "--for", "transformers", "--shard-size", 0.001, "--dtype", "bfloat16", out="e"
    )
    assert {"modeling_adapter.py", "model.safetensors.index.json"} <= files
    shards = [load_file(path) for path in folder.glob("model-*.safetensors")]
    assert len(shards) > 1
    assert all(tensor.dtype == torch.bfloat16 for shard in shards for tensor in shard.values())
    assert any("adapter_parts" in name for shard in shards for name in shard)
    for number, (gguf, written) in enumerate({
        "merged": {"model-F16.gguf"}, "lora": {"lora-F32.gguf"},
        "both": {"model-F16.gguf", "lora-F32.gguf"},
    }.items()):  # fmt: skip
        words = ("--for", "llama.cpp", "--gguf", gguf)
        files, _ = export(here.made / "lora-run", *words, out=f"g{number}")
        assert files == written | {"README.md"}
    words = ("--for", "ollama", "--gguf", "both", "--dtype", "bfloat16")
    files, folder = export(here.made / "lora-run", *words, out="o")
    assert files == {"model-BF16.gguf", "lora-BF16.gguf", "Modelfile", "README.md"}
    modelfile = (folder / "Modelfile").read_text()
    assert modelfile.startswith("FROM ./model-BF16.gguf\nADAPTER ./lora-BF16.gguf\nTEMPLATE ")
    assert "### Instruction:\n{{ .Prompt }}\n\n### Response:\n{{ .Response }}<eos>" in modelfile


@row("export --push", "export --private")
def pushed(here):
    """On a hub of this machine: tests/experiments/test_pushing.py."""
    file = "experiments/test_pushing.py::test_"
    mentions(f"{file}the_hub_has_the_files_of_the_folder", '"--push", "me/mine"', "hub.uploaded ==")
    mentions(f"{file}private_is_private_or_nothing_is_uploaded", '"--private"', "hub.private[")


def of_file(folder: Path) -> list[str]:
    names = []
    for path in folder.iterdir():
        if path.suffix == ".bin":
            names += torch.load(path, weights_only=True)
    return names


@row(
    *rows_for(
        "combine",
        options="parts --model --how --rank --density --seed --out --dtype --device --quantize",
    )
)
def combined(here):
    ids = torch.tensor([[5, 6, 7, 8]])
    common = ("--model", "pocket-llama", "--device", "cpu", "--dtype", "float32")
    for number, (how, weights) in enumerate(
        {"outputs": (0.5, 0.25), "weights": (0.5, 0.25)}.items()
    ):
        parts = [f"{here.lora}={weight}" for weight in weights]
        out = here.path / str(number)
        command("combine", *parts, *common, "--how", how, "--out", out)
        found, model = (load_model("pocket-llama", torch.float32) for _ in range(2))
        load_adapter(found, out)
        load_adapter(model, here.lora)
        for name, one in named_parameters(model).items():  # B alone by 0.75, or A and B
            if how == "weights" or "lora_B" in name:
                one.data *= 0.75
        torch.testing.assert_close(found(ids), model(ids), rtol=1e-3, atol=1e-3)
    model = load_model("pocket-llama", torch.float32)
    load_adapter(model, here.lora)
    total = sum(parameter.numel() for parameter in named_parameters(model).values())
    parts = [f"{here.lora}=1"]
    for how, option, value, share in (
        ("svd", "--rank", 2, None), ("ties", "--density", 0.25, 0.25), ("dare", "--seed", 5, 0.5),
    ):  # fmt: skip
        command("combine", *parts, *common, "--how", how, option, value, "--out", here.path / how)
        found = load_model("pocket-llama", torch.float32)
        load_adapter(found, here.path / how)
        values = named_parameters(found)
        if how == "svd":
            assert {min(one.shape) for one in values.values()} == {2}
        else:
            kept = sum(int(one.count_nonzero()) for one in values.values())
            assert kept == pytest.approx(share * total, rel=0.05)
    command("combine", *parts, *common, "--how", "dare", "--seed", 6, "--out", here.path / "six")
    load_adapter(model, here.path / "six", "six")
    assert not torch.equal(
        *(
            next(iter(adapters_named(one, name).values())).lora_A
            for one, name in ((found, "default"), (model, "six"))
        )
    )
    with watched(here.monkeypatch):
        command("combine", *parts, *common, "--quantize", "int8", "--out", here.path / "q")
    assert (here.path / "q" / "adapter_model.safetensors").is_file()

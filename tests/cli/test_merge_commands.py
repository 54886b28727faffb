"""The commands merge and export."""

import json

import pytest
import torch
from merged import (
    apart,
    seeded,  # noqa: F401
)
from methods import IDS, randomise

import run
from adapters import Average, attach, load_adapter, save_adapter, use
from model import load_model


# ---------------------------------------------------------------- the command line
@pytest.fixture
def command(capsys):
    """Runs a command; returns its status and what it printed."""

    def act(*arguments) -> tuple[int, str]:
        status = run.main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return status, said.out + said.err

    return act


@pytest.fixture(params=["llama", "bloom", "opt", "gptj"])
def trained(tmp_path, request):
    """(name of a pocket model, folder of a LoRA for it)."""
    model = load_model(f"pocket-{request.param}")
    attach(model, "lora", r=3)
    randomise(model, 0.05)
    save_adapter(model, tmp_path / "adapter", run={"template": "plain"})
    return f"pocket-{request.param}", tmp_path / "adapter"


def test_merge_on_the_command_line(trained, command, tmp_path):
    name, adapter = trained
    status, said = command(
        "merge",
        "--model",
        name,
        "--adapter",
        adapter,
        "--out",
        tmp_path / "merged",
        "--shard-size",
        "0.0005",
    )
    assert status == 0, said
    assert "largest logit difference 0" in said
    assert "on a prompt of" in said
    assert "float16" in said
    assert f"--model {tmp_path / 'merged'}" in said
    model = load_model(name, dtype=torch.float32)
    load_adapter(model, adapter)
    merged = load_model(str(tmp_path / "merged"))
    assert merged.dtype == torch.float16
    assert apart(load_model(str(tmp_path / "merged"), dtype=torch.float32)(IDS), model(IDS)) < 5e-3
    base = load_model(name).folder
    files = {path.name for path in (tmp_path / "merged").iterdir()}
    for file in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        assert (tmp_path / "merged" / file).read_bytes() == (base / file).read_bytes(), file
    assert "model.safetensors.index.json" in files
    generated = [
        command(
            "generate",
            *source,
            "--instruction",
            "Emma has 3 pies and eats 1. How many are left?",
            "--dtype",
            "float32",
        )[1]
        for source in (("--model", name, "--adapter", adapter), ("--model", tmp_path / "merged"))
    ]
    prompts = [
        command(
            "generate",
            *source,
            "--prompt",
            "Emma has 3 pies.",
            *"--dtype float32 --max-new-tokens 8".split(),
        )[1]
        for source in (("--model", name, "--adapter", adapter), ("--model", tmp_path / "merged"))
    ]
    assert prompts[0].splitlines()[0] == prompts[1].splitlines()[0]  # then: pocket models are toys
    assert generated[0]


def test_float32_on_the_command_line_and_the_difference_it_measures(command, tmp_path):
    model = load_model("pocket-llama", dtype=torch.float32)
    attach(model, "lora", r=3)
    randomise(model)
    save_adapter(model, tmp_path / "adapter")
    status, said = command(
        *"merge --model pocket-llama --adapter".split(),
        tmp_path / "adapter",
        "--out",
        tmp_path / "merged",
        "--dtype",
        "float32",
    )
    assert status == 0, said
    largest = float(said.partition("largest logit difference ")[2].split()[0])
    deviation = float(said.rpartition("standard deviation of the logits ")[2].split()[0])
    assert 0 < largest < 1e-4 * deviation
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["torch_dtype"] == "float32"
    assert apart(load_model(str(tmp_path / "merged"))(IDS), model(IDS)) < 1e-4


def test_a_model_without_a_tokenizer_is_probed_with_random_ids(folder, command, tmp_path):
    model = load_model(str(folder))
    attach(model, "ia3")
    randomise(model)
    save_adapter(model, tmp_path / "adapter")
    status, said = command(
        "merge", "--model", folder, "--adapter", tmp_path / "adapter", "--out", tmp_path / "merged"
    )
    assert status == 0, said
    assert "32 random token ids" in said


def test_several_adapters_stacked_and_averaged(command, tmp_path):
    model = load_model("pocket-llama", dtype=torch.float32)
    for name in ("one", "two"):
        attach(model, "lora", r=3, name=name)
    randomise(model)
    for name in ("one", "two"):
        save_adapter(model, tmp_path / name, name=name)
    both = (
        "--model",
        "pocket-llama",
        "--adapter",
        tmp_path / "one",
        "--adapter",
        tmp_path / "two",
        "--dtype",
        "float32",
    )
    for entries, more in ((["one", "two"], ()), ([Average("one", "two")], ("--average",))):
        use(model, entries)
        out = tmp_path / f"merged{len(entries)}"
        status, said = command("merge", *both, "--out", out, *more)
        assert status == 0, said
        assert apart(load_model(str(out))(IDS), model(IDS)) < 1e-4


@pytest.mark.filterwarnings("ignore")  # of the base's name
@pytest.mark.parametrize("format", ["native", "paper", "peft", "peft --plain"])
def test_export_on_the_command_line(trained, command, tmp_path, format):
    name, adapter = trained
    status, said = command(
        "export",
        "--model",
        name,
        "--adapter",
        adapter,
        "--out",
        tmp_path / "out",
        "--format",
        *format.split(),
    )
    assert status == 0, said
    assert "adapter_config.json (" in said
    models = [load_model(name), load_model(name)]
    for model, folder in zip(models, (adapter, tmp_path / "out"), strict=True):
        again = load_adapter(model, folder)
    torch.testing.assert_close(
        models[0](IDS), models[1](IDS), rtol=0, atol=0 if format != "peft --plain" else 0.05
    )
    if format == "native":
        assert again == {"template": "plain"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("merge", "--model", "pocket-llama"), "no adapter is given"),
        (("merge", "--adapter", "{lora}", "--shard-size", "0"), "--shard-size 0.0"),
        (("merge", "--adapter", "{lora}", "--out", "{full}"), "is not empty"),
        (
            ("merge", "--adapter", "{bent}"),
            "'default' (bottleneck) at model.layers.0.attn_site cannot be merged",
        ),
        (("merge", "--adapter", "{lora}", "--model", "pocket-opt"), "made for a llama model"),
        (("merge", "--adapter", "{lora}", "--average"), "--average takes two"),
        (("merge", "{full}"), "holds no run.toml"),
        (("export", "--model", "pocket-llama"), "no adapter is given"),
        (("export", "--adapter", "{lora}", "--format", "papr"), "did you mean 'paper'"),
        (
            ("export", "--adapter", "{lora}", "--format", "paper", "--plain"),
            "--plain is for --format peft",
        ),
        (("export", "--adapter", "{bent}", "--format", "paper"), "single Linears"),
        (("export", "--adapter", "{lora}", "--adapter", "{bent}"), "one adapter at a time"),
        (("export", "--adapter", "{lora}", "--out", "{full}"), "is not empty"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_mistakes_on_the_command_line_are_one_line_and_nothing_is_written(
    command, tmp_path, arguments, said
):
    model = load_model("pocket-llama")
    attach(model, "lora", r=2, name="lora")
    attach(model, "parallel", size=2, name="bent")
    for name in ("lora", "bent"):
        save_adapter(model, tmp_path / name, name=name)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    arguments = [
        argument.format(**{name: tmp_path / name for name in ("lora", "bent", "full")})
        for argument in arguments
    ]
    status, printed = command(
        *arguments, *(() if "--out" in arguments else ("--out", tmp_path / "out"))
    )
    assert status == 1
    assert said in printed
    assert printed.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine"]

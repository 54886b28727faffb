"""What llama.cpp and Ollama get, from the command line; what is refused; llama.cpp's own tokens."""

import os
import sys

import pytest
import torch
from gguf_reader import LlamaCpp, needs_llama_cpp
from in_command import command

from adapters import attach, load_adapter, save_adapter
from data.chat_template import render_one
from data.prompts import TEMPLATES, Template, prompt
from experiments.exporting_gguf import jinja, modelfile
from files.errors import UserError
from model import load_model, load_tokenizer

FOLDER = os.environ.get("SMOLLM2", "")  # as tests/model/test_smollm2.py
SMOLLM2 = pytest.param(
    FOLDER, marks=pytest.mark.skipif(not FOLDER, reason="SMOLLM2 names no folder"), id="smollm2"
)
HISTORY = [
    {"role": "system", "content": "Be brief."}, {"role": "user", "content": " What is 1? "},
    {"role": "assistant", "content": 'It is "one".'},
]  # fmt: skip


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_chat_template_gives_the_prompt_of_the_training(name):
    text, row = jinja(TEMPLATES[name]), {"instruction": "And 2?"}
    asked = {"role": "user", "content": "And 2?"}
    for before in ([], HISTORY[1:], HISTORY):
        made = render_one(text, "plain", [*before, asked], True, {})
        assert made == TEMPLATES[name].prompt(row | {"history": before})


def test_a_chat_template_is_the_models_own_and_asks_one_question_of_ollama():
    text = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>"
    chat, tokenizer = Template("chat", text, chat=True), load_tokenizer("pocket-llama")
    assert jinja(chat) == text
    asked = '"""<|user|>{{ .Prompt }}<|assistant|>{{ .Response }}<eos>"""'
    expected = f"FROM ./m.gguf\nADAPTER ./l.gguf\nTEMPLATE {asked}\n"
    assert modelfile("m.gguf", "l.gguf", chat, tokenizer) == expected
    assert "ADAPTER" not in modelfile("m.gguf", "", chat, tokenizer)
    with pytest.raises(UserError, match="cannot hold a prompt"):
        modelfile("m.gguf", "", Template("mine", '"""{instruction}"""'), tokenizer)


def saved(folder, name: str, adapter: str, **more):
    """A saved adapter of a model, with changed answers."""
    model = load_model(name, torch.float32)
    attach(model, adapter)
    for path, parameter in model.named_parameters():
        if "lora_B" in path:
            torch.manual_seed(1)
            parameter.data.normal_(std=0.05)
    save_adapter(model, folder, **more)
    return folder


def export(name, adapter, out, *words, status=0) -> str:
    base = ("--model", name, "--adapter", adapter)
    return command("export", *base, "--for", "llama.cpp", "--out", out, *words, status=status)


@pytest.mark.parametrize(
    ("family", "adapter", "words", "why"),
    [
        ("opt", "lora", (), "llama.cpp has no opt models: use export --for transformers"),
        ("gptj", "lora", ("--gguf", "lora"), "llama.cpp has no gptj models"),
        ("llama", "parallel", (), "cannot be merged: .*try export --for transformers"),
        ("llama", "ia3", ("--gguf", "lora"), "takes LoRA only, not ia3"),
        ("bloom", "dora", ("--gguf", "both"), "takes LoRA only, not dora .*use --gguf merged"),
        ("llama", "lora", ("--gguf", "all"), "unknown --gguf 'all'"),
        ("llama", "lora", ("--for", "ollama", "--gguf", "lora"), "Ollama needs the base"),
        ("llama", "lora", ("--for", "peft", "--gguf", "lora"), "--gguf is for --for llama.cpp"),
    ],
)
def test_what_cannot_be_exported_is_refused_and_nothing_is_written(
    family, adapter, words, why, tmp_path
):
    name = f"pocket-{family}"
    said = export(name, saved(tmp_path / "a", name, adapter), tmp_path / "o", *words, status=1)
    assert pytest.RaisesExc(UserError, match=why).matches(UserError(said)), said
    assert len(said.strip().splitlines()) == 1
    assert not (tmp_path / "o").exists()


def test_without_the_package_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    said = export(
        "pocket-llama", saved(tmp_path / "a", "pocket-llama", "lora"), tmp_path / "o", status=1
    )
    assert "GGUF files need the package gguf: pip install 'llm-adapters[gguf]'" in said
    assert not (tmp_path / "o").exists()


@needs_llama_cpp
@pytest.mark.parametrize("name", ["pocket-llama", "pocket-bloom", SMOLLM2])
@torch.no_grad()
def test_llama_cpp_gives_the_same_tokens(name, tmp_path):
    adapter = saved(tmp_path / "a", name, "lora")
    for gguf in ("merged", "both"):
        export(name, adapter, tmp_path / gguf, "--gguf", gguf, "--dtype", "float32")
    model, tokenizer = load_model(name, torch.float32), load_tokenizer(name)
    load_adapter(model, adapter)
    lora = tmp_path / "both" / "lora-F32.gguf"
    runs = [LlamaCpp(tmp_path / "merged" / "model-F32.gguf"),
            LlamaCpp(tmp_path / "both" / "model-F32.gguf", lora)]  # fmt: skip
    for question in ("Tom has 3 pens. Amy gives Tom 8 more. How many has Tom?", "Hello  there\n"):
        ids = tokenizer.encode(prompt("alpaca", question))
        ours = list(ids)
        for _ in range(24):
            ours.append(int(model(torch.tensor([ours]))[0, -1].argmax()))
        for llama in runs:
            assert llama.ids(prompt("alpaca", question)) == ids
            assert llama.greedy(ids, 24) == ours[len(ids) :]


def test_the_prompt_of_the_adapters_file_goes_along(tmp_path):
    adapter = saved(tmp_path / "a", "pocket-llama", "lora", run={"template": "paper-v1"})
    export("pocket-llama", adapter, tmp_path / "o", "--for", "ollama")
    assert "  # noqa: E501" in (tmp_path / "o" / "Modelfile").read_text()
    assert b"  # noqa: E501" in (tmp_path / "o" / "model-F16.gguf").read_bytes()

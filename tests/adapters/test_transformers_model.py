"""Folders with an adapter in them: the same logits and answers in transformers."""

import json
import re
import sys
from itertools import cycle
from pathlib import Path

import pytest
import torch
from families import TINY, batch, difference
from in_command import command
from methods import attach_small, randomise

from adapters import Average, attach, save_adapter, use
from adapters.formats.transformers_model import export_with_adapters
from eval.generate import generate
from files.errors import UserError
from model import load_model, load_tokenizer

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
MIXED = [  # of each kind of part one; what no folder has is merged
    ("unipelt",),  # prefix, LoRA and bottleneck, each with a gate
    ("mad-x", "invertible", "bottleneck at the input", "parallel"),  # all read before one writes
    ("prompt", "prefix", "dora", "parallel"),
    ("bitfit", "lora everywhere", "learned-parallel"),
    ("loreft", "prompt", "loreft"),
]


@pytest.fixture(autouse=True)
def modules_of_its_own(monkeypatch, tmp_path_factory):
    """transformers copies the code of a folder; here to another place than the user's."""
    place = tmp_path_factory.mktemp("modules")
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(place))
    monkeypatch.syspath_prepend(place)
    yield
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]


def loaded(folder: Path):
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, dtype=torch.float32
    ).eval()


@torch.no_grad()
def check(model, folder: Path) -> None:
    model.eval()
    ids, mask = batch("left")
    use_all, expected = model.adapters_on[0], model(ids, mask)
    use(model, [])
    assert difference(model(ids, mask), expected, mask) > 0.05  # or the test would see nothing
    use(model, use_all)
    answers = generate(model, ids, mask, 5)
    export_with_adapters(model, folder)
    theirs = loaded(folder)
    assert difference(theirs(ids, attention_mask=mask).logits, expected, mask) < 1e-4
    generated = theirs.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=5, min_new_tokens=5, do_sample=False,
        eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    assert generated[:, ids.shape[1] :].tolist() == answers


@pytest.mark.parametrize(
    ("any_family", "methods"),
    zip(cycle(TINY), MIXED + MIXED[-1:] + MIXED[:-1]),
    ids=lambda value: value if isinstance(value, str) else "+".join(value),
)
def test_the_same_logits_and_answers(any_tiny, tmp_path, methods):
    for number, method in enumerate(methods):
        form = {"form": "direft"} if number and method == "loreft" else {}
        attach_small(any_tiny, method, as_name=f"n{number}", **form)
    randomise(any_tiny, 0.1)
    check(any_tiny, tmp_path / "out")


def test_a_fusion_with_its_members(tiny, tmp_path):
    for name, method in (("a", "parallel"), ("b", "series")):
        attach_small(tiny, method, as_name=name)
    attach(tiny, "fusion", name="both", of=["a", "b"])
    randomise(tiny, 0.1)
    check(tiny, tmp_path / "out")


def test_training_it_in_transformers_sees_no_label_at_the_prompt(tiny, tmp_path):
    attach_small(tiny, "prompt", as_name="p")
    randomise(tiny, 0.1)
    ids, _ = batch("plain")
    with torch.no_grad():
        logits = tiny.eval()(ids)[:, :-1].flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten())
    export_with_adapters(tiny, tmp_path / "out")
    labels = ids.clone()
    labels[:, 0] = -100  # else the last virtual token has it as its next
    loss = loaded(tmp_path / "out")(ids, labels=labels).loss
    assert loss.item() == pytest.approx(expected.item())


@torch.no_grad()
def test_token_by_token_without_a_mask(tiny, tmp_path):
    for method in ("prefix", "prompt"):
        attach_small(tiny, method, as_name=method)
    randomise(tiny, 0.1)
    ids, _ = batch("plain")
    expected = tiny.eval()(ids)
    export_with_adapters(tiny, tmp_path / "out")
    theirs = loaded(tmp_path / "out")
    output, found = theirs(ids[:, :3], use_cache=True), []
    for column in range(3, ids.shape[1]):
        found.append(output.logits[:, -1])
        output = theirs(ids[:, column : column + 1], past_key_values=output.past_key_values)
    torch.testing.assert_close(torch.stack(found, dim=1), expected[:, 2:-1], rtol=1e-4, atol=1e-4)


def test_without_trust_nothing_is_loaded(tiny, tmp_path):
    """Not the base model in silence."""
    attach_small(tiny, "parallel", as_name="p")
    export_with_adapters(tiny, tmp_path / "out")
    with pytest.raises(ValueError, match=r"trust_remote_code|custom code"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=False)
    with pytest.raises(UserError, match="llm_adapters_llama"):
        load_model(str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("methods", "says"),
    [
        (("ia3", "parallel at down"), "an adapter that scales the input has no form"),
        (("prefix in one layer",), "a prefix in some of the layers has no form"),
        (("average",), "averaged or by row have no form"),
        (("parallel at q", "dora"), r"q_proj: DoRA changes the length"),
    ],
)
def test_what_has_no_form(tiny, tmp_path, methods, says):
    for number, method in enumerate(methods):
        name = f"n{number}"
        if method == "parallel at down":
            attach(tiny, "parallel", name=name, size=3, sites=["down"])
        elif method == "parallel at q":
            attach(tiny, "parallel", name=name, size=3, sites=["q"])
        elif method == "prefix in one layer":
            attach(tiny, "prefix", name=name, length=2, layers="last 1")
        elif method == "average":
            for other in "ab":
                attach_small(tiny, "parallel", as_name=other)
            use(tiny, [Average("a", "b")])
        else:
            attach_small(tiny, method, as_name=name)
    with pytest.raises(UserError, match=says):
        export_with_adapters(tiny, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command(tmp_path):
    model = load_model("pocket-llama", torch.float32)
    attach(model, "parallel", size=4)
    randomise(model, 0.1)
    save_adapter(model, tmp_path / "parallel")
    common = ("--model", "pocket-llama", "--dtype", "float32")
    words = (*common, "--adapter", tmp_path / "parallel", "--out", tmp_path / "out")
    told = command("export", *words, "--for", "transformers", "--shard-size", 0.001)
    assert "trust_remote_code=True" in told
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        found = loaded(tmp_path / "out")(ids).logits
        torch.testing.assert_close(found, model(ids), rtol=1e-4, atol=1e-4)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=True)
    text = "Tom has 3 pens."
    assert tokenizer(text).input_ids == load_tokenizer("pocket-llama").encode(text)
    text = (tmp_path / "out" / "config.json").read_text()
    assert str(tmp_path) not in text  # no path of this machine
    assert json.loads(text)["architectures"] == ["ModelWithAdapter"]
    words = (*common, "--adapter", tmp_path / "parallel", "--out", tmp_path / "v")
    assert "vLLM takes LoRA only" in command("export", *words, "--for", "vllm", status=1)
    assert "transformers, peft, vllm" in command("export", *words, "--for", "tgi", status=1)
    wrong = command("export", *words, "--for", "vllm", "--plain", status=1)
    assert "leave out --format and --plain" in wrong


@pytest.mark.parametrize(
    ("family", "changes", "says"),
    [
        ("llama", {"r": 12, "alpha": 24.0}, "--max-lora-rank 16 --lora-modules"),
        ("opt", {"r": 8}, "--max-lora-rank 8 --lora-modules"),
        ("bloom", {"r": 8}, "vLLM has no LoRA for bloom: merge it"),
        ("llama", {"r": 600}, "takes ranks up to 512, this adapter has 600"),
        ("llama", {"r": 4, "sites": ["head"]}, "vLLM has no place for .*lm_head"),
    ],
)
def test_what_vllm_serves(tmp_path, family, changes, says):
    model = load_model(f"pocket-{family}", torch.float32)
    attach(model, "lora", **changes)
    randomise(model, 0.1)
    save_adapter(model, tmp_path / "mine")
    told = command(
        "export", "--model", f"pocket-{family}", "--adapter", tmp_path / "mine", "--for", "vllm",
        "--out", tmp_path / "out", status=0 if "modules" in says else 1,
    )  # fmt: skip
    assert re.search(says, told)
    if "modules" in says:
        config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
        assert config["lora_alpha"] == config["r"] == changes["r"]  # the scale is in B

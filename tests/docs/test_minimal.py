"""minimal.py computes what the project computes, and trains."""

import random

import pytest
import torch
from tokenizers import Tokenizer

import minimal
from adapters import attach
from model import load_model, load_tokenizer
from train.loss import summed_loss

SITES = ["q", "k", "v", "up"]
PRESETS = {
    "parallel": ("parallel", {"size": 16, "sites": SITES}),
    "series": ("series", {"size": 16, "sites": SITES}),
    "lora": ("lora", {"r": 16, "alpha": 16.0, "dropout": 0.0, "sites": SITES}),
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(minimal.FOLDER / "tokenizer.json"))


@pytest.fixture
def rows(tokenizer) -> tuple[torch.Tensor, torch.Tensor]:
    rng = random.Random(3)
    return minimal.batch(tokenizer, [minimal.problem(rng) for _ in range(5)])


def project_model() -> torch.nn.Module:
    return load_model("pocket-llama", dtype=torch.float32)


def with_adapters(method: str) -> tuple[torch.nn.Module, torch.nn.Module, dict[str, str]]:
    """Both models with equal random adapters, and minimal's parameter names -> the project's."""
    ours, project = minimal.load(), project_model()
    minimal.attach(ours, method)
    preset, options = PRESETS[method]
    attach(project, preset, name="x", **options)
    names = {
        name: "model." + name.replace(".adapter.", ".adapters.x.")
        for name, parameter in ours.named_parameters()
        if parameter.requires_grad
    }
    theirs = {n: p for n, p in project.named_parameters() if p.requires_grad}
    assert set(names.values()) == set(theirs)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, other in names.items():
            values = 0.1 * torch.randn(theirs[other].shape, generator=generator)
            ours.get_parameter(name).copy_(values)
            theirs[other].copy_(values)
    return ours, project, names


def same(ours: torch.Tensor, project: torch.Tensor) -> None:
    """Equal to 5e-6 of the largest value: the project's sums have another order."""
    assert ours.shape == project.shape
    assert (ours - project).abs().max() <= 5e-6 * project.abs().max()


def test_the_base_has_the_logits_of_the_project(rows):
    ids, _ = rows
    same(minimal.load()(ids), project_model()(ids))


@pytest.mark.parametrize("method", PRESETS)
def test_logits_loss_and_gradients_are_those_of_the_project(rows, method):
    ids, labels = rows
    ours, project, names = with_adapters(method)
    logits = ours(ids)
    same(logits, project(ids))
    assert (logits - minimal.load()(ids)).abs().max() > 0.1  # the adapter does something
    labelled = (labels != -100).float()
    loss = summed_loss(project, ids, labelled) / labelled[:, 1:].sum()
    own = minimal.loss_of(ours, ids, labels)
    same(own, loss)
    own.backward()
    loss.backward()
    for name, other in names.items():
        gradient = project.get_parameter(other).grad
        assert gradient.abs().max() > 0
        same(ours.get_parameter(name).grad, gradient)


@pytest.mark.parametrize("method", PRESETS)
def test_a_new_adapter_starts_at_the_base(rows, method):
    model = minimal.load()
    base = model(rows[0])
    parameters = minimal.attach(model, method)
    assert torch.equal(model(rows[0]), base)
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert trained == {id(p) for p in parameters}


def test_the_scale_of_lora_is_alpha_over_r():
    assert minimal.LoRA(minimal.Linear(8, 8), r=4, alpha=16.0).scale == 4.0


def test_the_prompt_and_the_end_token_are_those_of_the_project(tokenizer):
    from data.prompts import prompt

    project = load_tokenizer("pocket-llama")
    assert minimal.PROMPT.format("{x}") == prompt("alpaca", "{x}")
    assert (project.eos_id, project.pad_id) == (minimal.EOS, minimal.PAD)
    assert tokenizer.encode(minimal.PROMPT).ids == project.encode(minimal.PROMPT)


@pytest.mark.parametrize(
    "method",
    ["parallel", *(pytest.param(one, marks=pytest.mark.slow) for one in ("series", "lora"))],
)
def test_it_trains(capsys, method):
    minimal.main(method, steps=30, count=4)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    losses = [float(line[-1]) for line in lines if line[:1] == ["step"]]
    assert losses[-1] < 0.1 * losses[0]
    right = {line[0]: int(line[1]) for line in lines if line[:1] in (["before:"], ["after:"])}
    assert right["before:"] == 0
    assert right["after:"] >= 1


def test_no_test_problem_is_trained_on(monkeypatch):
    """Also where the problems drawn for training are those of the tests."""
    seen, encode = [], minimal.batch
    test = minimal.problem(random.Random(1000))
    drawn = iter([test] * 2 + [minimal.problem(random.Random(5)), test] * 100)
    monkeypatch.setattr(minimal, "problem", lambda rng: next(drawn))
    monkeypatch.setattr(minimal, "answer", lambda *_: "")
    monkeypatch.setattr(minimal, "batch", lambda t, rows: seen.extend(rows) or encode(t, rows))
    minimal.main(steps=2, count=2)
    assert len(seen) == 16
    assert test not in seen


def test_an_unknown_method_is_refused_in_one_line():
    with pytest.raises(
        SystemExit, match=r"^method 'x' is unknown: choose from parallel, series, lora$"
    ):
        minimal.main("x")

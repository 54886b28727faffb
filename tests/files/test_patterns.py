"""Patterns that would take for ever are refused."""

import time

import pytest

from adapters import attach
from files import patterns
from files.bounded import REST, Budget
from files.errors import UserError
from model import load_model

NAME = "model.layers.0.self_attn.q_proj"


# ---------------------------------------------------------------- patterns
@pytest.mark.parametrize("pattern", ["(a|a)*b", "((.*)*)*#", r"(\w+\.?)+!", "(.|.)*(.|.)*x{2}"])
def test_a_pattern_that_backtracks_for_ever(monkeypatch, pattern):
    monkeypatch.setattr(patterns, "SECONDS", 0.2)
    text = "a" * 60 if pattern.startswith("(a") else f"{NAME}.{NAME}"
    with pytest.raises(UserError, match=r"the pattern .* takes longer than 0.2 s"):
        patterns.match(pattern, text)


def test_patterns_that_take_long_together(monkeypatch):
    """Here, and in the child; what comes after the refusal is another file's."""
    for budget in (patterns.ASKING, patterns.BUDGET):
        monkeypatch.setattr(budget, "spent", 6.0)
        monkeypatch.setattr(budget, "last", time.monotonic())
    with pytest.raises(UserError, match="longer than 6 s"):
        patterns.match_in_child(["(a|a)*b", "", "", "a" * 10])
    with pytest.raises(UserError, match="longer than 4 s"):
        patterns.match("(a|a)+c", "b")
    assert patterns.match("(a|a)+c", "b") is None


def test_a_budget_begins_anew_after_a_rest(monkeypatch):
    budget = Budget(1.0)
    budget.spent = 5.0
    budget.last -= 2 * REST
    with budget.piece("a text"):
        pass
    assert budget.spent < 1


def test_patterns_fit_as_in_python():
    assert patterns.match("q_proj", f"{NAME}", r"(?:.*\.)?(?:", ")") == {}
    assert patterns.match(r".*\.(q|v)_proj", NAME) == {}
    assert patterns.match(r".*\.(?P<n>\d+)\..*", NAME) == {"n": "0"}
    assert patterns.match(r".*k_proj", NAME) is None
    with pytest.raises(UserError, match=r"'\(' is not a regular expression \(missing \)"):
        patterns.match("(", NAME)


def test_an_adapters_pattern_is_bounded(monkeypatch):
    monkeypatch.setattr(patterns, "SECONDS", 0.2)
    model = load_model("pocket-llama")
    with pytest.raises(UserError, match="takes longer than"):
        attach(model, "lora", overrides={"(([a-z_.0-9])+)+#": {"r": 4}})

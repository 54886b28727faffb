"""The Python interface: these names, with these arguments, from here on."""

import inspect

import pytest

import adapters
import model
from adapters import attach, load_adapter, merge, parameters, save_adapter, use
from data.split import paper_split
from eval.answers import read_answer
from eval.generate import generate
from model import llama, load_model, load_tokenizer

SIGNATURES = {
    load_model: "name dtype device quantize devices revision layers_per_device",
    load_tokenizer: "name revision",
    llama.Model.forward: "self ids mask positions",
    attach: "model preset name",
    load_adapter: "model folder name",
    save_adapter: "model folder name format",
    use: "model names",
    merge: "model",
    parameters: "model",
    generate: "model ids mask max_new_tokens beams stop_ids",
    read_answer: "text dataset mode",
    paper_split: "folder",
}


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda function: function.__qualname__)
def test_signatures(function):
    """The first arguments are these, in this order; later ones have defaults; all are typed and
    described.
    """
    given = inspect.signature(function).parameters
    names = SIGNATURES[function].split()
    assert list(given)[: len(names)] == names
    for name in list(given)[len(names) :]:
        assert (
            given[name].default is not inspect.Parameter.empty
            or given[name].kind is inspect.Parameter.VAR_KEYWORD
        )
    for name, parameter in given.items():
        if name != "self" and parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            assert parameter.annotation is not inspect.Parameter.empty, name
    assert inspect.signature(function).return_annotation is not inspect.Parameter.empty
    assert function.__doc__


def test_defaults():
    assert inspect.signature(generate).parameters["max_new_tokens"].default == 12
    assert inspect.signature(read_answer).parameters["mode"].default == "strict"
    assert inspect.signature(save_adapter).parameters["format"].default == "native"


def test_exports():
    assert set(model.__all__) >= {"load_model", "load_tokenizer"}
    assert set(adapters.__all__) >= {
        "attach",
        "load_adapter",
        "save_adapter",
        "use",
        "merge",
        "parameters",
    }


def test_the_tokenizer_has_its_special_ids():
    tokenizer = load_tokenizer("pocket-llama")
    for name in ("bos_id", "eos_id", "pad_id"):
        assert hasattr(tokenizer, name)

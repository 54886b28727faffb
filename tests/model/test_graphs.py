"""The decoding step as a graph: what is captured once gives the tokens of plain passes.

On a CPU `recorded` stands for a CUDA graph. It keeps the operations of a pass with the tensors that
they read and write, and repeats them there without Python: a number that was baked in, or an input
that is not written into its place, gives other tokens. What CUDA does not capture, it refuses.
"""

import warnings

import pytest
import torch
from conftest import write_checkpoint
from methods import attach_small, randomise
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from adapters import Rows, attach, use
from eval.engine import Engine, Request
from eval.sampling import Sampling
from experiments.layout import with_adapter
from model import graphs, load_model
from model.devices import split
from model.registry import REGISTRY
from train.plan.footprint import kernels_of
from train.settings import settings

WAITS = ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "masked_select")


WAITS += ("lift_fresh",)  # torch.tensor(list): a copy from the CPU


class Recorder(TorchDispatchMode):
    """Notes the operations within its block; raises for those that wait for values."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        name = op._schema.name.removeprefix("aten::")
        masks = [x for x in tree_leaves(args[1:]) if getattr(x, "dtype", None) == torch.bool]
        if name in WAITS or (name in ("index", "index_put_") and masks):
            raise RuntimeError(f"{name} is not permitted when stream is capturing")
        out = op(*args, **(kwargs or {}))
        self.calls.append((op, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        for op, args, kwargs, out in self.calls:
            again = op(*args, **kwargs)
            for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@pytest.fixture
def captures(monkeypatch) -> list:
    """Every capture on the CPU from now on, by the operations it has."""
    made = []

    def recorded():
        def capture(step):
            with Recorder() as recorder:
                result = step()
            made.append(len(recorder.calls))
            return recorder.replay, result

        return capture

    monkeypatch.setitem(graphs.CAPTURES, "cpu", recorded)
    monkeypatch.setattr(graphs, "KEYS", 8)
    return made


REQUESTS = [
    Request([7, 8, 9, 10, 11], 14),
    Request([5, 6], 3),
    Request([12, 13, 14, 15, 16, 17, 18, 19, 20], 9, sampling=Sampling(1.5), seed=4),
    Request([30, 31, 32], 12, stop_ids=(40, 41, 42)),
    Request([50], 6, beams=2),
]


def answers(model, slots: int = 3, requests=REQUESTS) -> list[list[int]]:
    found = [[] for _ in requests]
    for event in Engine(model, slots, 32).run(requests):
        found[event.number] += event.tokens
    return found


@pytest.mark.parametrize("method", ["lora", "mam", "prompt", "dora"])
def test_a_graph_gives_the_tokens_of_plain_passes(any_tiny, captures, method):
    attach_small(any_tiny, method)
    randomise(any_tiny)
    any_tiny.eval().graphs = False
    plain = answers(any_tiny)
    assert not captures
    any_tiny.graphs = True
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert answers(any_tiny) == plain
    # of 1, 2 and 3 slots, and of 8, 16, 24 and 32 keys: not one a token
    assert 0 < len(captures) <= 12


@pytest.mark.parametrize("quantize", ["int8", "nf4"])
def test_a_graph_of_quantised_weights(folder, captures, quantize):
    model = load_model(str(folder), quantize=quantize)
    model.graphs = False
    plain = answers(model)
    model.graphs = True
    assert answers(model) == plain
    assert captures


def test_the_input_is_written_into_the_tensor_that_was_captured(tiny, captures):
    cache = tiny.new_slots(2, 20)
    cache.copy_row(0, tiny_cache(tiny, [5, 6, 7]), 0, 3)
    steps = graphs.graphs_for(tiny, cache, by_row=False)
    with torch.inference_mode():
        first = steps.step(torch.tensor([9]))
        where, one = first.data_ptr(), first.clone()
        other = steps.step(torch.tensor([10]))
        assert len(captures) == 1
        assert other.data_ptr() == where
        assert not torch.equal(other, one)
        assert torch.equal(steps.step(torch.tensor([9])), one)
        plain = tiny(torch.tensor([[5, 6, 7, 9]]))[0, -1:]
    torch.testing.assert_close(one, plain, rtol=1e-5, atol=1e-5)


def tiny_cache(model, ids: list[int]):
    cache = model.new_cache(1, len(ids))
    with torch.inference_mode():
        model.hidden(torch.tensor([ids]), cache=cache)
    return cache


def test_what_cannot_be_captured_is_computed_plainly_and_said_once(tiny, captures, monkeypatch):
    plain = answers(tiny)
    logits, captures[:] = type(tiny).logits, []

    def waits(model, hidden):
        assert hidden.isfinite().all()
        return logits(model, hidden)

    monkeypatch.setattr(type(tiny), "logits", waits)
    with pytest.warns(UserWarning, match="made without CUDA graphs: is_nonzero is not") as told:
        assert answers(tiny) == plain
    assert len(told) == 1
    assert not captures


def test_a_model_of_several_devices_or_adapters_by_row_has_no_graphs(tiny, captures):
    attach(tiny, "lora", "a")
    use(tiny, [Rows("a", None)])
    answers(tiny, 2, [Request([5, 6], 4, entry=0), Request([7], 4, entry=1)])
    use(tiny, ["a"])
    split(tiny, [torch.device("cpu")] * 2, [1, 2])
    answers(tiny)
    assert not captures


def test_a_text_beyond_the_trained_length_is_warned_of(tmp_path, captures):
    model = load_model(str(write_checkpoint(tmp_path / "t", max_position_embeddings=12)))
    with pytest.warns(UserWarning, match="a text of 13 tokens is longer than the 12"):
        answers(model)
    assert captures


class Launches(TorchDispatchMode):
    """Counts operations that compute something: no views, no allocations."""

    def __init__(self):
        super().__init__()
        self.count, self.on_cpu = 0, []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        aliases = [one.alias_info for one in op._schema.returns]
        is_view = any(alias is not None and not alias.is_write for alias in aliases)
        is_view |= any(word in op._schema.name for word in ("empty", "_unsafe_view"))
        self.count += not is_view
        out = op(*args, **(kwargs or {}))
        on_cpu = [x for x in tree_leaves(out) if getattr(x, "is_meta", True) is False]
        self.on_cpu += [op._schema.name] * len(on_cpu)
        return out


def one_token(model) -> Launches:
    """The pass that is captured, of a model without memory."""
    model.eval()
    cache = model.new_slots(2, 600)
    cache.lengths = [300, 500]
    ids = torch.zeros(2, 1, dtype=torch.long, device="meta")
    for _ in range(2):  # the first keeps what others need
        with torch.no_grad(), kernels_of("cuda"), Launches() as launches:
            cache.begin(2, 512)
            model.logits(model.hidden(ids, cache=cache)[:, -1])
    return launches


def with_layers(monkeypatch, name: str, count: int) -> None:
    """The registry's model of this name has so many layers: they are all alike."""
    key = "n_layer" if name.startswith(("bloom", "gptj")) else "num_hidden_layers"
    monkeypatch.setitem(REGISTRY[name].config, key, count)


@pytest.mark.parametrize("adapter", ["lora", "prefix", "parallel", "dora"])
@pytest.mark.parametrize("name", ["llama-3.2-1b", "bloom-560m", "opt-350m", "gptj-6b"])
def test_a_pass_over_one_token_makes_nothing_on_the_cpu(monkeypatch, name, adapter):
    """A copy from there to the card cannot be captured."""
    with_layers(monkeypatch, name, 2)
    table = {"model": name, "dtype": "bfloat16", "adapter": {"preset": adapter}}
    model = with_adapter(settings(options=table), "cuda")
    assert len(model.blocks) == 2
    assert one_token(model).on_cpu == []


@pytest.mark.parametrize(
    ("adapter", "quantize", "most"),
    [(None, "", 1700), ("lora", "", 2100), (None, "int8", 2600), (None, "nf4", 4400)],
)
def test_launches_of_a_token(monkeypatch, adapter, quantize, most):
    """Of LLaMA-7B's shape, on torch's meta device, which writes out what CUDA's norm fuses.

    Of its 32 layers each takes as many, so that two of them are counted.
    """
    table = {"model": "llama-7b", "dtype": "bfloat16", "quantize": quantize}
    table["adapter"] = {"preset": adapter or "lora"}
    counts = []
    for layers in (1, 2, 3):
        with_layers(monkeypatch, "llama-7b", layers)
        model = with_adapter(settings(options=table), "cuda")
        if adapter is None:
            use(model, [])
        counts.append(one_token(model).count)
    one, two, three = counts
    assert three - two == two - one
    launches = one + 31 * (two - one)
    print(f"{adapter or 'no adapter'} {quantize or 'bfloat16'}: {launches:,} a token")
    assert 1000 < launches <= most


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cuda_graphs_give_the_tokens_of_plain_passes(any_folder, dtype):
    model = load_model(str(any_folder), dtype, "cuda")
    attach(model, "lora")
    randomise(model)
    model.eval().graphs = False
    plain = answers(model)
    model.graphs = True
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of what could not be captured
        found = answers(model)
    if dtype == torch.float32:
        assert found == plain
    assert len(found) == len(plain)

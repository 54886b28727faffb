"""Sums of adapters by svd, TIES and DARE: by their formulas and beside PEFT's."""

import copy

import pytest
import torch
from families import batch, difference
from methods import attach_small, randomise
from peft_bases import ALL, EMBED, randomised, run_theirs, tiny_bases

from adapters import combine, load_adapter, use
from adapters.attach import adapters_named
from adapters.task_vectors import dare, keep_largest, ties, truncate
from files.errors import UserError
from model import load_model

VECTORS = [torch.tensor([4.0, -3.0, 0.5, 1.0]), torch.tensor([-1.0, -2.0, 0.25, 3.0])]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_bases(tmp_path_factory.mktemp("combine"))["llama"]


def test_ties_by_hand():
    # Of four entries the largest two are kept: [4, -3, 0, 0] and [0, -2, 0, 3]. The signs elected
    # are +, -, + and +, and only what agrees counts in the mean.
    found = ties(VECTORS, [1.0, 0.5], density=0.5)
    torch.testing.assert_close(found, torch.tensor([4.0, (-3 - 0.5 * 2) / 2, 0.0, 0.5 * 3]))


def test_dare_keeps_the_mean_and_scales_what_it_keeps():
    ones = torch.ones(200_000)
    generator = torch.Generator().manual_seed(0)
    found = dare([ones, 2 * ones], [0.5, 0.25], 0.2, generator)
    assert set(found.unique().tolist()) == {0.0, 2.5, 5.0}
    assert found.mean().item() == pytest.approx(1.0, abs=0.02)


def test_task_vectors_are_those_of_peft():
    utils = pytest.importorskip("peft.utils.merge_utils", reason="peft is not installed")
    vectors, weights = [torch.randn(7, 5) for _ in range(3)], [0.7, -0.4, 1.2]
    tensor = torch.tensor(weights)
    for density in (0.3, 0.99):
        torch.testing.assert_close(
            ties(vectors, weights, density), utils.ties(vectors, tensor, density)
        )
        torch.manual_seed(4)
        expected = utils.dare_linear(vectors, tensor, density)
        generator = torch.Generator().manual_seed(4)
        torch.testing.assert_close(dare(vectors, weights, density, generator), expected)
    assert keep_largest(vectors[0], 0.3).count_nonzero() == int(0.3 * 35)


@pytest.mark.parametrize(("inputs", "outputs", "R"), [(9, 7, 5), (4, 6, 8)])
def test_truncate_is_the_best_approximation(inputs, outputs, R):
    A, B = torch.randn(R, inputs), torch.randn(outputs, R)
    for rank in (1, 3, 20):
        a, b = truncate(A, B, rank)
        assert len(a) == min(rank, R, inputs, outputs)
        U, S, Vh = torch.linalg.svd(B @ A, full_matrices=False)
        expected = U[:, :rank] * S[:rank] @ Vh[:rank]
        torch.testing.assert_close(b @ a, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("how", "options"),
    [
        ("cat", {}),
        ("svd", {}),
        ("svd", {"rank": 2}),
        ("ties", {"density": 0.4}),
        ("dare", {"density": 1.0}),  # nothing is dropped: PEFT draws from another generator
    ],
)
def test_combined_as_peft_does(base, tmp_path, how, options):
    import peft

    path, reference = base
    weights = [0.8, -0.5]
    # One rank for sums of parameters, as PEFT asks too; several for sums of outputs.
    ranks = (3, 3) if how in ("ties", "dare") else (3, 5)
    modules = [*ALL["llama"], EMBED["llama"]]
    theirs = copy.deepcopy(reference)
    for name, rank in zip(("one", "two"), ranks, strict=True):
        config = peft.LoraConfig(r=rank, lora_alpha=6, target_modules=modules)
        if name == "one":
            theirs = peft.get_peft_model(theirs, config, name)
        else:
            theirs.add_adapter(name, config)
    randomised(p for name, p in theirs.named_parameters() if "lora_" in name)
    theirs.eval().save_pretrained(tmp_path)
    kind = {"dare": "dare_linear"}.get(how, how)
    more = {"svd_rank": options["rank"]} if "rank" in options else {}
    more |= {"density": options["density"]} if "density" in options else {}
    theirs.add_weighted_adapter(["one", "two"], weights, "sum", combination_type=kind, **more)
    theirs.set_adapter("sum")

    ours = load_model(str(path), dtype=torch.float32)
    for name in ("one", "two"):
        load_adapter(ours, tmp_path / name, name)
    combine(ours, dict(zip(("one", "two"), weights, strict=True)), "sum", how, **options)
    use(ours, ["sum"])
    ids, mask = batch("plain")
    with torch.no_grad():
        expected = run_theirs(theirs, ids, mask, False)
        assert difference(ours(ids, mask), expected, mask) < 1e-4
        use(ours, ["one"])
        assert difference(ours(ids, mask), expected, mask) > 0.1


def test_ties_of_bottlenecks_is_of_each_parameter(tiny):
    for name, seed in (("one", 0), ("two", 1)):
        torch.manual_seed(seed)
        attach_small(tiny, "parallel", as_name=name)
    randomise(tiny, 0.1)
    combine(tiny, {"one": 0.5, "two": 0.25}, "sum", "ties", density=0.6)
    one, two, total = (adapters_named(tiny, name) for name in ("one", "two", "sum"))
    for path, adapter in total.items():
        for leaf, value in adapter.state_dict().items():
            pair = [one[path].state_dict()[leaf], two[path].state_dict()[leaf]]
            torch.testing.assert_close(value, ties(pair, [0.5, 0.25], 0.6))


def test_dare_repeats_with_its_seed(tiny):
    attach_small(tiny, "lora", as_name="one")
    randomise(tiny, 0.1)
    for name, seed in (("first", 3), ("again", 3), ("other", 4)):
        combine(tiny, {"one": 1.0}, name, "dare", seed=seed)
    first, again, other = (
        torch.cat([a.lora_A.flatten() for a in adapters_named(tiny, name).values()])
        for name in ("first", "again", "other")
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("how", "options", "says"),
    [
        ("ties", {"rank": 2}, "rank 2 does not apply to 'ties': it is for svd"),
        ("outputs", {"density": 0.5}, "density 0.5 does not apply to 'outputs': it is for ties"),
        ("ties", {"seed": 1}, "seed 1 does not apply to 'ties': it is for dare"),
        ("dare", {"density": 0.0}, "density 0.0 is not a share above 0"),
        ("svd", {"rank": 0}, "rank 0 is not at least 1"),
        ("svd", {}, "bottleneck adapters are not of low rank"),
    ],
)
def test_what_is_refused(tiny, how, options, says):
    attach_small(tiny, "parallel", as_name="one")
    with pytest.raises(UserError, match=says):
        combine(tiny, {"one": 1.0}, "x", how, **options)

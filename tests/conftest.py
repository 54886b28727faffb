"""Shared by all tests: tiny random checkpoints on disk, and no network."""

import copy
import functools
import gc
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["LLM_ADAPTERS_MIRROR"] = "http://127.0.0.1:9"  # where nothing listens
os.environ["LLM_ADAPTERS_CACHE"] = (
    f"{__file__}/cache"  # no folder: no test finds what another, or the user, has fetched
)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors: more threads only wait

import processes
import pytest
import torch
from families import TINY, config_of
from methods import VARIANTS
from safetensors.torch import save

from data import sources
from experiments import pretrain
from model import load_model
from model.config import family_and_config
from train.plan import advice

gc.disable()  # until all tests are collected: what is imported stays
SHARED = {path.stem for path in Path(__file__).parent.glob("*.py")} - set(sys.modules)
pytest.register_assert_rewrite(*SHARED)  # a failed assert of theirs tells its values, too

ALL_WORD_PROBLEMS = sources.TRAIN_ROWS
sources.TRAIN_ROWS = 500  # all of them take every run of a pocket model two seconds
pretrain.TOKENIZER_LINES = 1_000  # as well
os.fsync = lambda handle: None  # a kill loses nothing without it, and no test cuts the power
advice.RATE_SIZE, advice.RATE_SECONDS = 64, 0.01  # a rate is measured at once


@functools.cache
def word_problems(data_dir: str, seed: int, rows: int) -> sources.Data:
    return sources.word_problems(data_dir, seed)


def copied_word_problems(data_dir: str, seed: int) -> sources.Data:
    """The data set "wordproblems", generated once."""
    made = word_problems(data_dir, seed, sources.TRAIN_ROWS)
    tests = {name: list(map(dict, rows)) for name, rows in made.tests.items()}
    return replace(made, train=list(map(dict, made.train)), tests=tests)


sources.EXPERIMENTS["wordproblems"] = copied_word_problems

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
    ),
]


def write_checkpoint(
    folder: Path,
    family: str = "llama",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    **changes,
) -> Path:
    """A tiny checkpoint with every weight random, norms and biases too."""
    folder.mkdir(parents=True, exist_ok=True)
    config = json.dumps(config_of(family, **changes))
    (folder / "config.json").write_text(config)
    (folder / "model.safetensors").write_bytes(random_weights(config, seed, dtype))
    return folder


@functools.lru_cache(maxsize=16)
def random_weights(config: str, seed: int, dtype: torch.dtype) -> bytes:
    module, config = family_and_config(json.loads(config), "test")
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, parameter in module.Model(config).named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        is_norm = ("norm" in name or "ln_" in name) and name.endswith("weight")
        weights[name] = ((1 + 0.3 * noise) if is_norm else 0.25 * noise).to(dtype)
    return save(weights, metadata={"format": "pt"})


def write_sums(path: Path) -> Path:
    """Forty rows to train on: a run on them begins at once."""
    path.write_text(
        json.dumps(
            [
                {
                    "instruction": f"Tom has {n} pens. Amy gives Tom {n + 3} more. "
                    "How many pens does Tom have now?",
                    "output": f"Tom has {n} + {n + 3} = {2 * n + 3} pens. "
                    f"The answer is {2 * n + 3}.",
                    "answer": str(2 * n + 3),
                }
                for n in range(40)
            ]
        )
    )
    return path


def pytest_collection_modifyitems(config, items) -> None:
    """A preset that differs by options alone (VARIANTS) is tested in one family: LLaMA."""

    def is_repeated(item) -> bool:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        family = params.get("any_family") or params.get("family", "llama")
        return params.get("method") in VARIANTS and family != "llama"

    repeated = [item for item in items if is_repeated(item)]
    if repeated:
        config.hook.pytest_deselected(items=repeated)
        items[:] = [item for item in items if not is_repeated(item)]


def pytest_collection_finish() -> None:
    """No later collection goes through the modules and the tests: they stay until the end."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item) -> None:
    """What a test draws does not depend on the tests that ran before it."""
    torch.manual_seed(0)


def pytest_sessionfinish() -> None:
    processes.stop_server()
    gc.unfreeze()  # or triton tells of leaks at the end


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_checkpoint(tmp_path / "tiny")


@pytest.fixture(params=TINY)
def any_family(request) -> str:
    return request.param


@pytest.fixture
def any_folder(tmp_path, any_family) -> Path:
    """A tiny checkpoint of each family."""
    return write_checkpoint(tmp_path / "any", any_family)


@pytest.fixture(scope="session")
def loaded(tmp_path_factory):
    """family -> a copy of its tiny model, which is loaded once."""

    @functools.cache
    def load(family: str):
        return load_model(str(write_checkpoint(tmp_path_factory.mktemp(family) / "tiny", family)))

    return lambda family: copy.deepcopy(load(family))


@pytest.fixture
def any_tiny(loaded, any_family):
    """The tiny model of each family; its folder is for reading only."""
    return loaded(any_family)


@pytest.fixture
def tiny(loaded):
    """The tiny LLaMA; its folder is for reading only."""
    return loaded("llama")

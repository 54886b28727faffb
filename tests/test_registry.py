"""Names -> folders: what is fetched from a hub, in which order, and one line for each way that
can fail.
"""

import re
import subprocess
from pathlib import Path

import processes
import pytest
import torch
from conftest import write_checkpoint
from fake_hub import Hub, serving
from test_load import as_bin, shard

from model import UserError, load_model
from model.config import describe, skeleton
from model.registry import POCKET, REGISTRY, pocket_names, resolve
from model.show import count, models_text, show_text

ROOT = Path(__file__).parent.parent


@pytest.fixture
def hub(tmp_path):
    """A hub, and ask(code) which runs Python in a new process that sees no other hub."""
    made = Hub()
    with serving(made) as address:

        def ask(code: str, **environment) -> subprocess.CompletedProcess:
            ours = {
                "HF_ENDPOINT": address,
                "HF_HOME": str(tmp_path / "cache"),
                "HF_HUB_OFFLINE": "0",
                "HF_HUB_DISABLE_XET": "1",
            }
            code = f"from model.registry import resolve\n{code}"
            return processes.finish("-c", code, environment=ours | environment)

        made.ask = ask
        yield made


def fetched(hub: Hub, code: str, **environment) -> str:
    done = hub.ask(f"print({code})", **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def failed(hub: Hub, *codes: str, **environment) -> list[str]:
    """The one line that each piece of code fails with, all in one process."""
    lines = ["from model import UserError", "import time", "time.sleep = lambda seconds: None"]
    for code in codes:
        lines += [
            "try:",
            f"    {code}",
            "except UserError as error:",
            "    print(error)",
            "else:",
            "    print('nothing')",
        ]
    done = hub.ask("\n".join(lines), **environment)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(codes), done.stdout
    return done.stdout.splitlines()


def junk(folder: Path, *names: str) -> Path:
    """Files beside a checkpoint that nobody needs."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x" * 10)
    return folder


def test_only_what_is_needed_is_fetched(hub, tmp_path):
    folder = write_checkpoint(tmp_path / "repo")
    junk(
        folder,
        "tokenizer.json",
        "README.md",
        "pytorch_model.bin",
        "tf_model.h5",
        "original/model.safetensors",
        "consolidated.safetensors",
    )
    hub.add("someone/model", folder)
    where = fetched(hub, "resolve('someone/model', need='config')")
    assert set(hub.gets) == {"config.json"}
    hub.gets.clear()
    fetched(hub, "resolve('someone/model', need='tokenizer')")
    assert set(hub.gets) <= {"config.json", "tokenizer.json"}
    hub.gets.clear()
    assert fetched(hub, "resolve('someone/model')") == where
    assert set(hub.gets) == {"model.safetensors"}
    hub.gets.clear()
    assert (
        fetched(hub, "resolve('someone/model')", HF_HUB_OFFLINE="1") == where
    )  # the cache is enough
    assert hub.gets == []
    assert torch.equal(
        load_model(where)(torch.tensor([[5, 6]])), load_model(str(folder))(torch.tensor([[5, 6]]))
    )


def test_shards_by_whatever_name_the_index_gives(hub, tmp_path):
    folder = write_checkpoint(tmp_path / "repo")
    shard(folder)
    junk(folder, "model_00009-of-00009.safetensors", "pytorch_model.bin.index.json")
    hub.add("someone/model", folder)
    where = fetched(hub, "resolve('someone/model')")
    assert sum(name.endswith(".safetensors") for name in hub.gets) == 3
    assert "model_00009-of-00009.safetensors" not in hub.gets
    (
        Path(where) / "model-00002-of-00003.safetensors"
    ).unlink()  # an interrupted download is completed
    hub.gets.clear()
    assert fetched(hub, "resolve('someone/model')") == where
    load_model(where)


def test_bin_where_there_is_no_safetensors(hub, tmp_path):
    main = as_bin(write_checkpoint(tmp_path / "main"))
    hub.add("someone/model", main)
    where = fetched(hub, "resolve('someone/model')")
    assert set(hub.gets) == {"config.json", "pytorch_model.bin"}
    assert load_model(where).fingerprint == load_model(str(main)).fingerprint


def test_every_refusal_is_one_line(hub, tmp_path):
    hub.add("someone/model", write_checkpoint(tmp_path / "repo"))
    hub.add("someone/empty", junk(tmp_path / "empty", "config.json", "README.md"))
    hub.add("someone/bare", junk(tmp_path / "bare", "model.safetensors"))
    hub.refuse |= {
        "someone/gated": (403, "GatedRepo"),
        "someone/token": (401, ""),
        "someone/broken": (500, ""),
        "someone/off": (403, "DisabledRepo"),
    }
    cases = {
        "resolve('someone/nothing')": "the hub has no repository 'someone/nothing'",
        "resolve('someone/model', 'v9')": "has no revision 'v9'",
        "resolve('someone/gated')": "is gated: accept its licence on the hub and set HF_TOKEN",
        "resolve('someone/token')": "HF_TOKEN",
        "resolve('someone/broken')": "the hub answers 500",
        "resolve('someone/empty')": "no weights that this program reads",
        "resolve('someone/bare')": "has no config.json",
        "resolve('some one/model')": "not a repository name of the hub",
    }
    for found, said in zip(failed(hub, *cases), cases.values(), strict=True):
        assert said in found
    assert "cannot be reached" in failed(hub, "resolve('someone/model')", HF_HUB_OFFLINE="1")[0]
    assert (
        "cannot be reached"
        in failed(hub, "resolve('someone/model')", HF_ENDPOINT="http://127.0.0.1:9")[0]
    )
    assert "check HF_TOKEN" in failed(hub, "resolve('someone/model')", HF_TOKEN="t\u00f6ken")[0]
    assert (
        "check HF_ENDPOINT"
        in hub.ask("resolve('someone/model')", HF_ENDPOINT="http://[").stderr.splitlines()[-1]
    )


def test_two_processes_fetch_one_intact_copy(hub, tmp_path):
    folder = write_checkpoint(
        tmp_path / "repo", hidden_size=256, intermediate_size=512, vocab_size=20_000
    )
    hub.add("someone/model", folder)
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as pool:
        places = set(pool.map(lambda _: fetched(hub, "resolve('someone/model')"), range(2)))
    assert len(places) == 1
    assert (Path(places.pop()) / "model.safetensors").read_bytes() == (
        folder / "model.safetensors"
    ).read_bytes()


def test_no_network_here_ends_in_one_line():
    with pytest.raises(UserError, match="cannot be reached") as error:
        resolve("llama-7b")
    assert "huggyllama/llama-7b" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("llama7b", "did you mean 'llama-7b'"),
        ("pocket-lama", "did you mean 'pocket-llama'"),
        ("./nowhere", "does not exist"),
        ("a/b/c", "does not exist"),
    ],
)
def test_misspelled_names(name, said):
    with pytest.raises(UserError, match=said):
        resolve(name)


def test_the_pocket_models_are_small_and_of_every_family():
    from model.config import FAMILIES

    assert set(pocket_names()) == {f"pocket-{family}" for family in FAMILIES}
    for name in pocket_names():
        assert sum(path.stat().st_size for path in resolve(name).iterdir()) <= 4 * 2**20


PUBLISHED = {  # parameters, as counted for these checkpoints elsewhere
    "llama-7b": 6_738_415_616, "llama-13b": 13_015_864_320, "llama-30b": 32_528_943_616,
    "llama-65b": 65_285_660_672, "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248, "llama-3.2-1b": 1_235_814_400, "llama-3.2-3b": 3_212_749_824,
    "tinyllama-1.1b": 1_100_048_384,
    "smollm2-135m": 134_515_008, "smollm2-360m": 361_821_120, "smollm2-1.7b": 1_711_376_384,
    "bloom-560m": 559_214_592, "bloom-1b1": 1_065_314_304,
    "bloom-1b7": 1_722_408_960, "bloom-3b": 3_002_557_440, "bloom-7b1": 7_069_016_064,
    "bloom": 176_247_271_424, "opt-125m": 125_239_296,
    "mistral-7b": 7_241_732_096, "qwen2.5-0.5b": 494_032_768, "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688, "qwen2.5-7b": 7_615_616_512, "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976, "qwen3-4b": 4_022_468_096, "qwen3-8b": 8_190_735_360,
    "opt-350m": 331_196_416, "opt-1.3b": 1_315_758_080, "opt-2.7b": 2_651_596_800,
    "opt-6.7b": 6_658_473_984, "gptj-6b": 6_050_882_784,
}  # fmt: skip


def test_parameter_counts_of_the_registry():
    for name, parameters in PUBLISHED.items():
        family, config, _ = describe(name)
        assert count(skeleton(family, config)) == parameters, name


def test_models_lists_every_name():
    text = models_text()
    assert set(pocket_names()) | set(REGISTRY) == {
        line.split()[0] for line in text.splitlines()[1:-2]
    }
    assert "6,738,415,616      13.5 GB  huggyllama/llama-7b" in text


@pytest.mark.parametrize(
    "name",
    ["llama-3.2-1b", "qwen2.5-3b", "qwen3-4b", "bloom-560m", "opt-350m", "gptj-6b", "pocket-opt"],
)
def test_show_adds_up(name):
    """Sites add up to the block, the parts to the model."""
    text = show_text(name)
    numbers = [
        int(found[1].replace(",", ""))
        for found in re.finditer(r"^  .*?([\d,]+)(?:   .* in 16 bits)?$", text, re.MULTILINE)
    ]
    family, config, _ = describe(name)
    model = skeleton(family, config)
    rows = len(model.sites)
    assert sum(numbers[:rows]) == numbers[rows] == count(model.blocks[0])
    assert sum(numbers[rows + 1 : -1]) == numbers[-1] == count(model)
    assert model.picture in text


def test_show_draws_what_a_row_has():
    """The norms of q and k of Qwen3, each of a head's size, where the rotary positions begin."""
    text = show_text("qwen3-0.6b")
    assert text.startswith("qwen3-0.6b: qwen3, 596,049,920 parameters")
    assert "[q] ─ [q_norm] ─ rotary" in text
    assert "[k] ─ [k_norm] ─ rotary" in text
    assert re.search(r"\[k_norm\] +self_attn\.k_norm +128, norm +128\n", text)
    assert "q_norm" not in show_text("qwen2.5-0.5b")
    assert "window of 4,096 keys in all layers" in show_text("mistral-7b")


def test_show_reads_a_folder_without_weights(tmp_path):
    (tmp_path / "config.json").write_text((POCKET / "bloom" / "config.json").read_text())
    assert "[qkv]" in show_text(str(tmp_path))
    with pytest.raises(UserError, match="cannot be reached"):
        show_text("someone/model")

"""Names -> folders: what is fetched from a hub, in which order, and one line for each way that can
fail.
"""

import subprocess
from pathlib import Path

import processes
import pytest
import torch
from conftest import write_checkpoint
from fake_hub import Hub, serving
from stored import as_bin, shard

from model import UserError, load_model
from model.registry import resolve


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

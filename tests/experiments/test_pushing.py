"""--push: exported folders on a hub, which is one on this machine (tests/fake_hub.py)."""

import pytest
from conftest import write_sums
from fake_hub import Hub, serving
from huggingface_hub import constants
from in_command import command


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    folder = tmp_path_factory.mktemp("a-secret-place")
    command(
        "train", "--model", "pocket-llama", "--adapter", "lora", "--max-steps", 1, "--out",
        folder / "run", "--data", write_sums(folder / "sums.json"), "--set", "eval.before=false",
        "--set", "test_share=0", "--set", "train.batch_size=2",
    )  # fmt: skip
    return folder / "run"


@pytest.fixture
def hub(monkeypatch):
    made = Hub()
    with serving(made) as address:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # large files by LFS
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        made.address = address
        yield made


def export(adapter, out, *words, status=0) -> str:
    return command("export", adapter, "--out", out, *words, status=status)


@pytest.mark.parametrize("engine", ["transformers", "peft", "vllm", "llama.cpp", "ollama"])
def test_the_hub_has_the_files_of_the_folder(engine, adapter, hub, tmp_path):
    out = tmp_path / "out"
    said = export(adapter, out, "--for", engine, "--push", "me/mine")
    assert said.splitlines()[-1] == f"pushed    {hub.address}/me/mine"
    files = {path.name: path.read_bytes() for path in out.iterdir()}
    assert hub.uploaded == {"me/mine": files}
    assert hub.tokens == {"Bearer hf_secret"}
    assert hub.private == {"me/mine": False}
    for name, content in files.items():
        assert b"a-secret-place" not in content, name
        assert str(tmp_path).encode() not in content, name
    assert hub.objects  # large files go another way


def test_private_is_private_or_nothing_is_uploaded(adapter, hub, tmp_path):
    hub.private["me/public"] = False
    words = ("--push", "me/public", "--private")
    said = export(adapter, tmp_path / "a", *words, status=1)
    assert "me/public is there and is public" in said
    assert f"to go on: hf upload OWNER/OTHER-NAME {tmp_path / 'a'} --private" in said
    assert not hub.uploaded
    export(adapter, tmp_path / "b", "--push", "me/new", "--private")
    assert hub.private["me/new"] is True
    assert hub.uploaded["me/new"]


@pytest.mark.parametrize(
    ("status", "why"), [(403, "the hub answers 403"), (500, "the hub answers 500")]
)
def test_a_failed_upload_keeps_the_folder_and_says_how_to_go_on(
    status, why, adapter, hub, tmp_path, monkeypatch
):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.refuse["me/mine"] = (status, "no")
    out = tmp_path / "two words"
    said = export(adapter, out, "--push", "me/mine", status=1)
    assert why in said
    assert said.strip().endswith(f"to go on: hf upload me/mine '{out}'")
    assert (out / "adapter_model.safetensors").is_file()
    assert not hub.uploaded


def test_what_cannot_be_pushed_is_not_exported(adapter, hub, tmp_path, monkeypatch):
    out = tmp_path / "out"
    for name in ("mine", "a/b/c", "me/mi ne", "me/.."):
        assert "is not a repository of the hub" in export(adapter, out, "--push", name, status=1)
    assert "--private is for --push" in export(adapter, out, "--private", status=1)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    said = export(adapter, out, "--push", "me/mine", status=1)
    assert (
        said.strip()
        == "run.py: --push needs a token that may write: hf auth login, or set HF_TOKEN"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "unset HF_HUB_OFFLINE" in export(adapter, out, "--push", "me/mine", status=1)
    assert not out.exists()

"""Links in a checkpoint's folder: those that leave it are not followed."""

import os

import pytest
from stored import shard

from model import UserError, load_model, load_tokenizer


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "config.json",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ],
)
def test_links_out_of_the_folder_are_not_followed(folder, tmp_path, name):
    if name == "model.safetensors.index.json":
        shard(folder)
    outside = tmp_path / "outside"
    outside.write_text(
        (folder / name).read_text() if name.endswith("json") and (folder / name).exists() else "{}"
    )
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(outside)
    with pytest.raises(UserError, match=r"is a link to .*outside the model's folder"):
        (load_tokenizer if name.startswith("tokenizer") else load_model)(str(folder))


def test_links_inside_and_those_of_the_hubs_cache_are_followed(folder, tmp_path):
    (folder / "model.safetensors").rename(folder / "weights")
    (folder / "model.safetensors").symlink_to("weights")
    load_model(str(folder))
    cache = tmp_path / "models--a--b"
    (cache / "blobs").mkdir(parents=True)
    snapshot = cache / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    for name, source in (("config.json", "config.json"), ("model.safetensors", "weights")):
        (folder / source).rename(cache / "blobs" / name)
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    load_model(str(snapshot))


def test_circles_of_links_folders_and_pipes_are_named(folder):
    path = folder / "model.safetensors"
    path.unlink()
    for make in (lambda: path.symlink_to("model.safetensors"), path.mkdir, lambda: os.mkfifo(path)):
        make()
        with pytest.raises(UserError, match=r"model\.safetensors"):
            load_model(str(folder))
        path.rmdir() if path.is_dir() else path.unlink()

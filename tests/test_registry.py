"""Names -> folders, and one line for each way a download can fail."""

import huggingface_hub
import pytest
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

from model import UserError, load_model
from model.registry import MODEL_FILES, REGISTRY, pocket_names, resolve


class Response:
    status_code, headers, request = 404, {}, None


def hub(monkeypatch, result):
    calls = []

    def snapshot_download(repo, **arguments):
        calls.append((repo, arguments))
        if isinstance(result, Exception):
            raise result
        return str(result)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return calls


def failure(kind):
    error = kind.__new__(kind)
    Exception.__init__(error, "no")
    return error


def test_a_short_name_is_fetched_from_its_repository(monkeypatch, folder):
    calls = hub(monkeypatch, folder)
    assert load_model("llama-7b").family == "llama"
    assert calls == [("huggyllama/llama-7b", {"revision": "main", "allow_patterns": MODEL_FILES})]
    resolve("someone/some-model", revision="abc")
    assert calls[-1][0] == "someone/some-model"
    assert calls[-1][1]["revision"] == "abc"


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (GatedRepoError, "HF_TOKEN"), (RepositoryNotFoundError, "no repository"),
        (LocalEntryNotFoundError, "cannot be reached"), (OSError, "cannot be reached"),
    ],
)
def test_every_failure_is_one_line(monkeypatch, kind, said):
    hub(monkeypatch, failure(kind))
    with pytest.raises(UserError, match=said) as error:
        resolve("llama-7b")
    assert "huggyllama/llama-7b" in str(error.value)
    assert "\n" not in str(error.value)


def test_no_network_here_ends_in_that_line():
    with pytest.raises(UserError, match="cannot be reached"):
        resolve("llama-7b")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("llama7b", "did you mean 'llama-7b'"), ("pocket-lama", "did you mean 'pocket-llama'"),
        ("./nowhere", "does not exist"), ("a/b/c", "does not exist"),
    ],
)
def test_misspelled_names(name, said):
    with pytest.raises(UserError, match=said):
        resolve(name)


def test_the_pocket_models_are_small():
    for name in pocket_names():
        assert sum(path.stat().st_size for path in resolve(name).iterdir()) <= 4 * 2**20


def test_every_entry_names_a_family_that_is_there():
    from model.load import FAMILIES

    assert {entry.family for entry in REGISTRY.values()} <= set(FAMILIES)

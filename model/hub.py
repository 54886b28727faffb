"""Downloads from the hub, into the cache of huggingface_hub."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from files.errors import UserError
from files.reading import shard_names

FILES = (  # of a checkpoint, besides its weights
    "config.json",
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
)


def download(repo: str, revision: str, need: str) -> Path:
    """Fetch what is needed of `repo` into the hub's cache, with a progress bar; returns the folder.

    need: "weights" (and all else), "tokenizer" (and config.json), or "config". Raises UserError.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # errors are reported once, by `hub_errors`
    with hub_errors(repo, revision):
        api = HfApi()
        info = api.model_info(repo, revision=revision, timeout=15)
        names = [file.rfilename for file in info.siblings]
        files = ["config.json"] if need == "config" else [name for name in FILES if name in names]
        if need == "weights":
            files += weights_of(api, repo, revision, names)
        if "config.json" not in names:
            raise UserError(
                f"{repo} ({revision}) has no config.json: it is not a language model that this "
                "program reads"
            )
        return Path(snapshot_download(repo, revision=revision, allow_patterns=files))


def weights_of(api, repo: str, revision: str, names: list[str]) -> list[str]:
    """The weight files, safetensors rather than torch's: one file, or an index and its shards."""
    for single in ("model.safetensors", "pytorch_model.bin"):
        index = f"{single}.index.json"
        if single in names:
            return [single]
        if index in names:
            return [index, *shard_names(Path(api.hf_hub_download(repo, index, revision=revision)))]
    raise UserError(
        f"{repo} ({revision}) has no weights that this program reads: neither model.safetensors "
        "nor pytorch_model.bin, nor an index of shards"
    )


@contextmanager
def hub_errors(
    repo: str,
    revision: str,
    instead: str = "a local folder with --model",
    there: str = " is neither a local folder nor in the cache, and",
) -> Iterator[None]:
    """Within this block, errors of huggingface_hub become one-line UserErrors.

    instead: what the user may give in place of the repository; there: where else it was looked for.
    """
    from huggingface_hub import errors as hub

    messages = {  # the first class that fits
        hub.GatedRepoError: f"{repo} is gated: accept its licence on the hub and set HF_TOKEN, or "
        f"give {instead}",
        hub.RevisionNotFoundError: f"{repo} has no revision {revision!r} on the hub",
        hub.DisabledRepoError: f"{repo} is disabled on the hub",
        hub.RepositoryNotFoundError: f"the hub has no repository {repo!r}, or HF_TOKEN may not "
        "read it: check the name and the token",
        hub.HFValidationError: f"{repo!r} is not a repository name of the hub",
    }
    try:
        yield
    except UserError:
        raise
    except (hub.HTTPError, OSError, ValueError) as error:
        message = next((text for kind, text in messages.items() if isinstance(error, kind)), "")
        response = getattr(error, "response", None) if isinstance(error, hub.HTTPError) else None
        if not message and isinstance(error, ValueError):  # of a header or an address
            message = f"{repo}: {error!r:.100}: check HF_TOKEN and HF_ENDPOINT"
        elif not message and response is not None:
            message = (
                f"the hub answers {response.status_code} for {repo}: check HF_TOKEN if it is 401 "
                f"or 403, else try again later, or give {instead}"
            )
        elif not message:
            message = (
                f"{repo}{there} the hub cannot be reached "
                f"({type(error).__name__}): check the network, unset HF_HUB_OFFLINE, or give "
                f"{instead}"
            )
        raise UserError(message) from None

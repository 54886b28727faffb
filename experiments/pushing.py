"""Put an exported folder on the hub."""

import shlex
from pathlib import Path

from files.errors import UserError
from model.hub import hub_errors


def check_push(repo: str) -> None:
    """Raise UserError, before anything is written, for a bad name, no token, or without network."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
        wrong = "" if repo.count("/") == 1 else "it should be OWNER/NAME"
    except HFValidationError as error:
        wrong = str(error).splitlines()[0]
    if wrong:
        raise UserError(f"--push {repo!r:.100} is not a repository of the hub: {wrong}")
    if constants.HF_HUB_OFFLINE:
        raise UserError("--push needs the network: unset HF_HUB_OFFLINE")
    if not get_token():
        raise UserError("--push needs a token that may write: hf auth login, or set HF_TOKEN")


def push(folder: Path, repo: str, private: bool = False) -> str:
    """Upload all files of a folder into a repository, made if it is not there; returns its address.

    private: of a new repository; one that is public is refused. Raises UserError, and leaves the
    folder as it is.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # errors are reported once, by `hub_errors`
    api = HfApi()
    to, more = repo, " --private" * private
    try:
        with hub_errors(repo, "main", "another name with --push", there=":"):
            url = api.create_repo(repo, private=private or None, exist_ok=True)
            if private and not api.repo_info(repo).private:
                to = "OWNER/OTHER-NAME"
                raise UserError(f"{repo} is there and is public")
            api.upload_folder(
                repo_id=repo, folder_path=folder, commit_message="Export of an adapter"
            )
    except UserError as error:
        raise UserError(
            f"not pushed: {error}; {folder} is whole, to go on: hf upload {to} "
            f"{shlex.quote(str(folder))}{more}"
        ) from None
    return str(url)

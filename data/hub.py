"""Data sets of the hub: JSON, JSONL, CSV and parquet files; file names tell the split."""

import json
import re
from pathlib import Path

from data.fetch import cache_folder
from data.tables import ENDINGS as FILE_ENDINGS
from files.errors import UserError
from files.writing import make_folder, write_text
from model.hub import hub_errors

ENDINGS = tuple(ending for ending in FILE_ENDINGS if ending != ".txt")  # README.txt is no data
SPLITS = {"train": "train", "test": "test"}
SPLITS |= dict.fromkeys(("validation", "valid", "val", "dev"), "validation")


def is_repository(name: str) -> bool:
    """Whether a name can be a data set of the hub: owner/name, or owner/name/configuration."""
    return (
        name.count("/") in (1, 2)
        and not name.startswith((".", "/", "~"))
        and not name.lower().endswith(ENDINGS)
    )


def hub_tables(name: str) -> dict[str, list[Path]]:
    """split -> its files, downloaded into the hub's cache. Raises UserError.

    name: owner/name or owner/name/configuration. The commit and the files are noted in our own
    cache, so that the same files are used without a network.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HTTPError
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()
    repo, configuration = "/".join(name.split("/")[:2]), "/".join(name.split("/")[2:])
    note = cache_folder() / "hub" / f"{name.replace('/', '--')}.json"

    def snapshot(commit: str, chosen: dict[str, list[str]], **options) -> dict[str, list[Path]]:
        wanted = [name for names in chosen.values() for name in names]
        options |= {"repo_type": "dataset", "revision": commit, "allow_patterns": wanted}
        folder = Path(snapshot_download(repo, **options))
        return {split: [folder / name for name in names] for split, names in chosen.items()}

    with hub_errors(repo, "main", "a file of your own with --data"):
        try:
            found = HfApi().dataset_info(repo, timeout=15)
        except (HTTPError, OSError) as error:
            answered = isinstance(error, HfHubHTTPError) and error.response is not None
            noted = None if answered else read_note(note)
            files = snapshot(*noted, local_files_only=True) if noted else {}
            if not files or not all(path.is_file() for paths in files.values() for path in paths):
                raise error from None
            return files
        names = [file.rfilename for file in found.siblings or ()]
        listed = [name for name in names if name.lower().endswith(ENDINGS)]
        chosen = choose(repo, configuration, listed)
        files = snapshot(found.sha, chosen)
    try:
        make_folder(note.parent)
        write_text(note, json.dumps([found.sha, chosen]))
    except UserError:
        pass  # only what runs without a network would have needed it
    return files


def read_note(path: Path) -> tuple[str, dict[str, list[str]]] | None:
    """(commit, split -> files) as hub_tables wrote them; None without a readable note."""
    try:
        commit, chosen = json.loads(path.read_text(encoding="utf-8"))
        texts = [commit, *(name for names in chosen.values() for name in names)]
        fits = all(isinstance(text, str) for text in texts)
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    return (commit, chosen) if fits else None


def split_of(name: str) -> tuple[str, str]:
    """(configuration, split) of a file; ("", "") for a file of no split.

    The split is a word of the file's name, else the name of its folder. The folder (the one above
    it in the second case) is the configuration.
    """
    path = Path(name)
    for split in SPLITS:
        if re.search(rf"(?<![a-z]){split}(?![a-z])", path.stem.lower()):
            return str(path.parent).removeprefix("."), SPLITS[split]
    folder = path.parent.name.lower()
    above = str(path.parent.parent).removeprefix(".")
    return (above, SPLITS[folder]) if folder in SPLITS else ("", "")


def choose(repo: str, configuration: str, listed: list[str]) -> dict[str, list[str]]:
    """split -> files of one configuration (a folder). Raises UserError for several, or none."""
    found: dict[str, dict[str, list[str]]] = {}
    for name in sorted(listed):
        folder, split = split_of(name)
        if split:
            found.setdefault(folder, {}).setdefault(split, []).append(name)
    if configuration:
        folders = configuration, f"data/{configuration}"
        found = {folder: splits for folder, splits in found.items() if folder in folders}
    if not found:
        of = f"the configuration {configuration} of {repo}" if configuration else repo
        raise UserError(
            f"{of} holds no train or test file that is read here ({', '.join(ENDINGS)}); "
            f"its files: {', '.join(sorted(listed)[:8]) or 'none'}"
        )
    if len(found) > 1 and "" not in found:  # without a folder is what you get when you name none
        names = [folder.removeprefix("data/") for folder in found]
        raise UserError(
            f"{repo} has several configurations: {', '.join(names)}; "
            f"choose one with --data {repo}/NAME"
        )
    splits = found.get("") or next(iter(found.values()))
    return {split: one_form(names) for split, names in splits.items()}


def one_form(names: list[str]) -> list[str]:
    """Of files that are there in several forms (train.json, train.parquet) those of one."""
    first = min((Path(name).suffix.lower() for name in names), key=ENDINGS.index)
    return [name for name in names if Path(name).suffix.lower() == first]

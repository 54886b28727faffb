"""Data sets of the hub: JSON, JSONL, CSV and parquet files, told apart by the split in their names."""

import re
from pathlib import Path

from data.tables import ENDINGS
from model.errors import UserError
from model.registry import hub_errors

SPLITS = ("train", "test", "validation")


def is_repository(name: str) -> bool:
    """Whether a name can be a data set of the hub: owner/name, or owner/name/configuration."""
    return name.count("/") in (1, 2) and not name.startswith((".", "/", "~")) and not name.lower().endswith(ENDINGS)


def hub_tables(name: str) -> dict[str, list[Path]]:
    """split -> its files, fetched into the hub's cache, of owner/name or owner/name/configuration. Raises UserError."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()
    repo, configuration = "/".join(name.split("/")[:2]), "/".join(name.split("/")[2:])
    with hub_errors(repo, "main", "a file of your own with --data"):
        listed = [file.rfilename for file in HfApi().dataset_info(repo, timeout=15).siblings]
        chosen = choose(repo, configuration, [name for name in listed if name.lower().endswith(ENDINGS)])
        folder = Path(snapshot_download(repo, repo_type="dataset", allow_patterns=[name for names in chosen.values() for name in names]))
    return {split: [folder / name for name in names] for split, names in chosen.items()}


def choose(repo: str, configuration: str, listed: list[str]) -> dict[str, list[str]]:
    """split -> files of one configuration (a folder). Raises UserError where there are several to choose from, or none."""
    found: dict[str, dict[str, list[str]]] = {}
    for name in sorted(listed):
        split = next((split for split in SPLITS if re.search(rf"(?<![a-z]){split}(?![a-z])", Path(name).stem.lower())), None)
        if split:
            found.setdefault(str(Path(name).parent).removeprefix("."), {}).setdefault(split, []).append(name)
    if configuration:
        found = {folder: splits for folder, splits in found.items() if folder == configuration}
    if not found:
        of = f"the configuration {configuration} of {repo}" if configuration else repo
        raise UserError(f"{of} holds no train or test file that is read here ({', '.join(ENDINGS)}); its files: {', '.join(sorted(listed)[:8]) or 'none'}")
    if len(found) > 1:
        raise UserError(f"{repo} has several configurations: {', '.join(folder or '(top)' for folder in found)}; choose one with --data {repo}/NAME")
    return next(iter(found.values()))

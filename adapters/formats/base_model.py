"""The base model that an adapter file of another program names."""

import re
import warnings
from pathlib import Path

from model.language import LanguageModel
from model.registry import POCKET


def check_base(model: LanguageModel, raw: dict, folder: Path) -> None:
    """Warn if a file of another program does not name its base, or names another one."""
    theirs, ours = raw.get("base_model_name_or_path"), base_name(model)
    if not isinstance(theirs, str) or not theirs:
        said = f"does not identify its base model: nothing shows that it was trained on {ours}"
    elif last_part(theirs) != last_part(ours):
        said = f"was trained on {theirs!r:.200}, this model is {ours!r}; such files do not "
        said += "identify their base any further"
    else:
        return
    warnings.warn(f"{folder} {said}", stacklevel=3)


def base_name(model: LanguageModel) -> str:
    """The model's hub repository, a pocket model's name, or the name of another folder.

    "" of none. Never a path: files go to other machines.
    """
    folder = str(getattr(model, "folder", None) or "")
    if folder and Path(folder).parent == POCKET:
        return f"pocket-{Path(folder).name}"
    cached = re.search(r"models--([^/\\]+)[/\\]snapshots[/\\][^/\\]+$", folder)
    return cached[1].replace("--", "/", 1) if cached else Path(folder).name


def last_part(name: str) -> str:
    """The last part of a path or a hub repository's name, in small letters.

    A folder of the hub's cache (models--ORG--NAME/snapshots/REVISION) counts as the name.
    """
    name = re.split(r"[/\\]", re.sub(r"[/\\]snapshots[/\\][^/\\]+$", "", name.rstrip("/\\")))[-1]
    if name.startswith("models--"):
        name = name.removeprefix("models--").partition("--")[2] or name
    return name.casefold()


def common(model: LanguageModel, peft_type: str) -> dict:
    """The fields of every adapter_config.json."""
    return {
        "peft_type": peft_type,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name(model),
        "inference_mode": True,
    }

"""Names people type -> where the checkpoint is: a pocket model in this package, a folder, or a repository of the hub."""

from dataclasses import dataclass
from pathlib import Path

from model.errors import UserError, unknown

POCKET = Path(__file__).parent / "pocket"


@dataclass(frozen=True)
class Entry:
    """A checkpoint of the hub: the family file that computes it ("" where only its config.json can tell) and its repository."""

    family: str
    repo: str
    revision: str = "main"


REGISTRY = {
    "llama-7b": Entry("llama", "huggyllama/llama-7b"),
    "llama-13b": Entry("llama", "huggyllama/llama-13b"),
    "llama-30b": Entry("llama", "huggyllama/llama-30b"),
    "llama-65b": Entry("llama", "huggyllama/llama-65b"),
    "llama-2-7b": Entry("llama", "NousResearch/Llama-2-7b-hf"),
    "llama-2-13b": Entry("llama", "NousResearch/Llama-2-13b-hf"),
    "llama-2-70b": Entry("llama", "NousResearch/Llama-2-70b-hf"),
    "llama-3-8b": Entry("llama", "meta-llama/Meta-Llama-3-8B"),
    "llama-3.2-1b": Entry("llama", "meta-llama/Llama-3.2-1B"),
    "llama-3.2-3b": Entry("llama", "meta-llama/Llama-3.2-3B"),
    "tinyllama-1.1b": Entry("llama", "TinyLlama/TinyLlama-1.1B-Chat-v1.0"),
    "smollm2-135m": Entry("llama", "HuggingFaceTB/SmolLM2-135M-Instruct"),
    "smollm2-360m": Entry("llama", "HuggingFaceTB/SmolLM2-360M-Instruct"),
    "smollm2-1.7b": Entry("llama", "HuggingFaceTB/SmolLM2-1.7B-Instruct"),
}

TOKENIZER_FILES = ["config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json"]
MODEL_FILES = ["*.safetensors", "*.safetensors.index.json", *TOKENIZER_FILES]


def pocket_names() -> list[str]:
    """The models that come with this package, as `pocket-<family>`."""
    return [f"pocket-{folder.name}" for folder in sorted(POCKET.iterdir()) if (folder / "config.json").is_file()]


def find(name: str) -> Path | Entry:
    """What `name` stands for, without touching the network. Raises UserError for a name that is neither known nor a folder."""
    if name.startswith("pocket-") and name in pocket_names():
        return POCKET / name.removeprefix("pocket-")
    if Path(name).is_dir():
        return Path(name)
    if name in REGISTRY:
        return REGISTRY[name]
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return Entry("", name)
    if "/" in name or "\\" in name:
        raise UserError(f"model folder {name!r} does not exist")
    raise unknown("model", name, [*pocket_names(), *REGISTRY])


def resolve(name: str, revision: str | None = None, weights: bool = True) -> Path:
    """The folder that holds the checkpoint `name`: a pocket model, a folder of yours, or a download (kept in the hub's cache).

    weights=False fetches the tokenizer's files and no others. Raises UserError for an unknown name, and when the hub cannot be reached.
    """
    found = find(name)
    if isinstance(found, Path):
        if revision:
            raise UserError(f"revision {revision!r}: {name} is a folder here, only repositories of the hub have revisions")
        return found
    return download(found.repo, revision or found.revision, weights)


def download(repo: str, revision: str, weights: bool) -> Path:
    """Fetch `repo` into the hub's cache, with a progress bar, or find it there; only the files a checkpoint needs."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=MODEL_FILES if weights else TOKENIZER_FILES))
    except GatedRepoError:
        raise UserError(f"{repo} is gated: accept its licence on the hub and set HF_TOKEN, or give a local folder with --model") from None
    except RevisionNotFoundError:
        raise UserError(f"{repo} has no revision {revision!r} on the hub") from None
    except RepositoryNotFoundError:
        raise UserError(f"the hub has no repository {repo!r} (or HF_TOKEN may not read it)") from None
    except HFValidationError as error:
        raise UserError(f"{repo!r} is no hub repository name: {error}") from None
    except (LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{repo} is no folder here and not in the local cache, and the hub cannot be reached ({type(error).__name__}): "
            "check the network, unset HF_HUB_OFFLINE, or give a local folder with --model"
        ) from None

"""Model names -> folders: pocket models, local folders, repositories of the hub."""

from dataclasses import dataclass, field
from pathlib import Path

from files.errors import UserError, unknown
from files.reading import weight_files
from model.hub import download

POCKET = Path(__file__).parent / "pocket"


@dataclass(frozen=True)
class Entry:
    """A checkpoint of the hub.

    `config` has the fields that give its shape, to count and draw it without a network; what is
    computed always follows the repository's own config.json.
    """

    repo: str
    config: dict = field(default_factory=dict)
    revision: str = "main"


def llama(
    repo: str,
    hidden: int,
    layers: int,
    heads: int,
    inner: int,
    kv: int | None = None,
    vocab: int = 32000,
    **more,
) -> Entry:
    shape = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "vocab_size": vocab,
    }
    return Entry(repo, {"model_type": "llama", **shape, "num_key_value_heads": kv or heads, **more})


def bloom(repo: str, hidden: int, layers: int, heads: int) -> Entry:
    shape = {"hidden_size": hidden, "n_layer": layers, "n_head": heads, "vocab_size": 250880}
    return Entry(f"bigscience/{repo}", {"model_type": "bloom", **shape})


def opt(repo: str, hidden: int, layers: int, heads: int, **more) -> Entry:
    shape = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "ffn_dim": 4 * hidden,
        "vocab_size": 50272,
    }
    return Entry(f"facebook/{repo}", {"model_type": "opt", **shape, **more})


def qwen(repo: str, hidden: int, layers: int, heads: int, inner: int, kv: int, **more) -> Entry:
    """Qwen2.5 unless `more` says model_type = "qwen3"."""
    more = {"model_type": "qwen2", "vocab": 151936, "rope_theta": 1000000.0, **BF16, **more}
    return llama(f"Qwen/{repo}", hidden, layers, heads, inner, kv, **more)


TIED = {"tie_word_embeddings": True}
BF16 = {"torch_dtype": "bfloat16"}  # others are stored in float16
LLAMA3 = {"vocab": 128256, "rope_theta": 500000.0, **BF16}
MISTRAL = {"model_type": "mistral", "max_position_embeddings": 32768, **BF16}
QWEN3 = {"model_type": "qwen3", "head_dim": 128, "max_position_embeddings": 40960}
GALACTICA = {"vocab_size": 50000, "activation_function": "gelu"}
BARE = {"enable_bias": False, "layer_norm_elementwise_affine": False}

REGISTRY = {  # name: repository, hidden size, blocks, heads, and what else gives the shape
    "llama-7b": llama("huggyllama/llama-7b", 4096, 32, 32, 11008),
    "llama-13b": llama("huggyllama/llama-13b", 5120, 40, 40, 13824),
    "llama-30b": llama("huggyllama/llama-30b", 6656, 60, 52, 17920),
    "llama-65b": llama("huggyllama/llama-65b", 8192, 80, 64, 22016),
    "llama-2-7b": llama("NousResearch/Llama-2-7b-hf", 4096, 32, 32, 11008),
    "llama-2-13b": llama("NousResearch/Llama-2-13b-hf", 5120, 40, 40, 13824),
    "llama-2-70b": llama("NousResearch/Llama-2-70b-hf", 8192, 80, 64, 28672, kv=8),
    "llama-3-8b": llama("meta-llama/Meta-Llama-3-8B", 4096, 32, 32, 14336, kv=8, **LLAMA3),
    "llama-3.2-1b": llama(
        "meta-llama/Llama-3.2-1B", 2048, 16, 32, 8192, kv=8, head_dim=64, **LLAMA3, **TIED
    ),
    "llama-3.2-3b": llama(
        "meta-llama/Llama-3.2-3B", 3072, 28, 24, 8192, kv=8, head_dim=128, **LLAMA3, **TIED
    ),
    "tinyllama-1.1b": llama("TinyLlama/TinyLlama-1.1B-Chat-v1.0", 2048, 22, 32, 5632, kv=4, **BF16),
    "smollm2-135m": llama(
        "HuggingFaceTB/SmolLM2-135M-Instruct", 576, 30, 9, 1536, kv=3, vocab=49152, **TIED, **BF16
    ),
    "smollm2-360m": llama(
        "HuggingFaceTB/SmolLM2-360M-Instruct", 960, 32, 15, 2560, kv=5, vocab=49152, **TIED, **BF16
    ),
    "smollm2-1.7b": llama(
        "HuggingFaceTB/SmolLM2-1.7B-Instruct", 2048, 24, 32, 8192, vocab=49152, **TIED, **BF16
    ),
    "mistral-7b": llama("mistralai/Mistral-7B-v0.1", 4096, 32, 32, 14336, kv=8, **MISTRAL),
    "qwen2.5-0.5b": qwen("Qwen2.5-0.5B", 896, 24, 14, 4864, kv=2, **TIED),
    "qwen2.5-1.5b": qwen("Qwen2.5-1.5B", 1536, 28, 12, 8960, kv=2, **TIED),
    "qwen2.5-3b": qwen("Qwen2.5-3B", 2048, 36, 16, 11008, kv=2, **TIED),
    "qwen2.5-7b": qwen("Qwen2.5-7B", 3584, 28, 28, 18944, kv=4, vocab=152064),
    "qwen3-0.6b": qwen("Qwen3-0.6B", 1024, 28, 16, 3072, kv=8, **QWEN3, **TIED),
    "qwen3-1.7b": qwen("Qwen3-1.7B", 2048, 28, 16, 6144, kv=8, **QWEN3, **TIED),
    "qwen3-4b": qwen("Qwen3-4B", 2560, 36, 32, 9728, kv=8, **QWEN3, **TIED),
    "qwen3-8b": qwen("Qwen3-8B", 4096, 36, 32, 12288, kv=8, **QWEN3),
    "bloom-560m": bloom("bloom-560m", 1024, 24, 16),
    "bloom-1b1": bloom("bloom-1b1", 1536, 24, 16),
    "bloom-1b7": bloom("bloom-1b7", 2048, 24, 16),
    "bloom-3b": bloom("bloom-3b", 2560, 30, 32),
    "bloom-7b1": bloom("bloom-7b1", 4096, 30, 32),
    "bloom": bloom("bloom", 14336, 70, 112),
    "bloomz-560m": bloom("bloomz-560m", 1024, 24, 16),
    "bloomz-1b1": bloom("bloomz-1b1", 1536, 24, 16),
    "bloomz-1b7": bloom("bloomz-1b7", 2048, 24, 16),
    "bloomz-3b": bloom("bloomz-3b", 2560, 30, 32),
    "bloomz-7b1": bloom("bloomz-7b1", 4096, 30, 32),
    "bloomz-7b1-mt": bloom("bloomz-7b1-mt", 4096, 30, 32),
    "bloomz": bloom("bloomz", 14336, 70, 112),
    "bloomz-mt": bloom("bloomz-mt", 14336, 70, 112),
    "opt-125m": opt("opt-125m", 768, 12, 12),
    "opt-350m": opt("opt-350m", 1024, 24, 16, word_embed_proj_dim=512, do_layer_norm_before=False),
    "opt-1.3b": opt("opt-1.3b", 2048, 24, 32),
    "opt-2.7b": opt("opt-2.7b", 2560, 32, 32),
    "opt-6.7b": opt("opt-6.7b", 4096, 32, 32),
    "opt-13b": opt("opt-13b", 5120, 40, 40),
    "opt-30b": opt("opt-30b", 7168, 48, 56),
    "opt-66b": opt("opt-66b", 9216, 64, 72),
    "galactica-125m": opt("galactica-125m", 768, 12, 12, **GALACTICA),
    "galactica-1.3b": opt("galactica-1.3b", 2048, 24, 32, **GALACTICA),
    "galactica-6.7b": opt("galactica-6.7b", 4096, 32, 32, **GALACTICA),
    "galactica-30b": opt("galactica-30b", 7168, 48, 56, **GALACTICA, **BARE),
    "galactica-120b": opt("galactica-120b", 10240, 96, 80, **GALACTICA, **BARE),
    "gptj-6b": Entry("EleutherAI/gpt-j-6b", {"model_type": "gptj"}, revision="float16"),
}


def pocket_names() -> list[str]:
    """The models that come with this package, as `pocket-<family>`."""
    folders = sorted(path.parent for path in POCKET.glob("*/config.json"))
    return [f"pocket-{folder.name}" for folder in folders]


def find(name: str) -> Path | Entry:
    """The folder or the repository that `name` means, without a network. Raises UserError."""
    if name.startswith("pocket-") and name in pocket_names():
        return POCKET / name.removeprefix("pocket-")
    try:
        if Path(name).is_dir():
            return Path(name)
    except (OSError, ValueError) as error:  # too long, or with a zero byte
        raise UserError(f"{name!r:.100} is not a model: {str(error)[:100]}") from None
    if name in REGISTRY:
        return REGISTRY[name]
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return Entry(name)
    if "/" in name or "\\" in name:
        raise UserError(f"model folder {name!r} does not exist")
    raise unknown(
        "model",
        name,
        [*pocket_names(), *REGISTRY],
        "python run.py models lists the names; a folder or a hub repository will do as well",
    )


def resolve(name: str, revision: str | None = None, need: str = "weights") -> Path:
    """The folder of a checkpoint: a pocket model, a local folder, the hub's cache, or a download.

    need: "weights" (and all else), "tokenizer" (and config.json), or "config"; nothing else is
    fetched. Raises UserError for an unknown name, and when the hub cannot be reached or refuses.
    """
    place = find(name)
    if isinstance(place, Path):
        if revision:
            raise UserError(
                f"revision {revision!r}: {name} is a local folder, only repositories of the hub "
                "have revisions"
            )
        return place
    revision = revision or place.revision
    folder = cached(place.repo, revision, need)
    if folder is None:
        try:
            folder = download(place.repo, revision, need)
        except UserError:
            folder = cached(place.repo, revision, need, lenient=True)
            if folder is None:
                raise
    return folder


def cached(repo: str, revision: str, need: str, lenient: bool = False) -> Path | None:
    """The repository's folder in the hub's cache, if everything that is needed is there already.

    lenient does without tokenizer_config.json, which few repositories lack: otherwise the hub is
    asked for it first.
    """
    try:
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError
    except ValueError as error:  # it reads its environment while it is imported
        raise UserError(
            f"huggingface_hub cannot start ({error}): check HF_ENDPOINT and the other HF_ variables"
        ) from None
    try:
        config = try_to_load_from_cache(repo, "config.json", revision=revision)
    except HFValidationError:
        return None
    complete = isinstance(config, str) and is_complete(Path(config).parent, need, lenient)
    return Path(config).parent if complete else None


def is_complete(folder: Path, need: str, lenient: bool) -> bool:
    """Whether a folder of the cache holds what `resolve` needs."""
    names = {path.name for path in folder.iterdir()}
    if need == "tokenizer":
        single = names & {"tokenizer.json", "tokenizer.model"}
        return bool(single or names >= {"vocab.json", "merges.txt"}) and (
            lenient or "tokenizer_config.json" in names
        )
    try:
        return need == "config" or bool(weight_files(folder))
    except UserError:
        return False

"""Write a trained adapter for another program, say how that program takes it, put it on the hub.

transformers gets a whole model with any adapter in it. PEFT and vLLM get the adapter, where they
can compute it, llama.cpp and Ollama a merged model or a LoRA (experiments/exporting_gguf.py). What
they cannot compute is refused by name, with the way that remains.
"""

import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from adapters import load_adapter, save_adapter
from adapters.attach import adapters_named
from adapters.formats.base_model import base_name
from adapters.formats.gguf_model import check_model, lora_of
from adapters.formats.peft_write import plain_lora, write
from adapters.formats.transformers_model import export_with_adapters, take_apart
from adapters.several import SETUP
from data.stored_template import stored_template
from experiments.base import load_base
from experiments.card import without_paths, write_card
from experiments.exporting_gguf import export_gguf
from experiments.merging import check_to_write, describe_adapters, load_stored
from files.errors import UserError, unknown
from model.hub import hub_errors
from model.language import LanguageModel
from train.settings import Settings

GGUF = ("llama.cpp", "ollama")
ENGINES = ("transformers", "peft", "vllm", *GGUF)
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # vLLM's --max-lora-rank takes one of these
MERGE = "merge it (python run.py merge) and serve the merged folder"


@dataclass(frozen=True)
class Exported:
    """What was written: the adapters in words, the files, and how the folder is used."""

    adapters: str
    files: list[Path]
    use: str = ""


def export_for(
    engine: str,
    settings: Settings,
    adapters: Sequence[Path],
    folder: Path,
    shard_size: float = 5.0,
    gguf: str = "merged",
) -> Exported:
    """Write what `engine` takes into `folder`, new or empty, with a model card.

    adapters: folders of saved adapters; transformers and a merged GGUF take several, stacked.
    shard_size: of a file of weights, in GB; gguf: what llama.cpp and Ollama get (`export_gguf`).
    Raises UserError for what the engine cannot compute.
    """
    if engine not in ENGINES:
        raise unknown("--for", engine, ENGINES)
    if engine in GGUF:
        described, use = export_gguf(engine, settings, adapters, folder, gguf)
        return Exported(described, sorted(folder.iterdir()), use)
    if engine != "transformers":
        return export_adapter(settings, adapters, folder, "peft", engine == "vllm", engine)
    if not 0 < shard_size < 1e6:
        raise UserError(f"--shard-size {shard_size} should be a number of GB")
    check_to_write(settings, adapters, folder)
    model, template, runs = load_stored(settings, adapters, average=False)
    described = describe_adapters(model)
    export_with_adapters(model, folder, int(shard_size * 1e9))
    call = '{}.from_pretrained("{}", trust_remote_code=True)'
    trained = list(zip(adapters, runs, strict=True))
    usage = "\n".join(
        f"{name} = {call.format(kind, folder.name)}"
        for name, kind in (("model", "AutoModelForCausalLM"), ("tokenizer", "AutoTokenizer"))
    )
    write_card(folder, base_name(model), engine, described, trained, template, usage)
    use = call.format("AutoModelForCausalLM", folder) + ", and so the tokenizer"
    return Exported(described, sorted(folder.iterdir()), use)


def export_adapter(
    settings: Settings,
    adapters: Sequence[Path],
    folder: Path,
    format: str = "peft",
    plain: bool = False,
    engine: str = "",
) -> Exported:
    """Write one saved adapter in a format of `save_adapter`, with a model card.

    engine: "vllm" checks what vLLM serves. Raises UserError as `save_adapter` does.
    """
    check_to_write(settings, adapters, folder)
    if len(adapters) > 1:
        raise UserError("export writes one adapter at a time: give one --adapter")
    (adapter,) = adapters
    if (adapter / SETUP).is_file():
        raise UserError(
            f"{adapter} holds several adapters: choose one of them, such as "
            f"--adapter {adapter / 'default'}, the one that was trained"
        )
    model = load_base(settings)
    about = load_adapter(model, adapter)
    described, base = describe_adapters(model), base_name(model)
    use = {
        "native": "load_adapter(model, {folder!r})",
        "peft": f"PeftModel.from_pretrained(model, {{folder!r}})  # model: {base}",
        "paper": "a folder of LoRA weights for the paper's evaluate.py",
    }[format]
    if engine == "vllm":
        rank = lora_rank(model)
        use = (
            f"vllm serve {base} --enable-lora "
            f"--max-lora-rank {next(size for size in RANKS if size >= rank)} "
            f"--lora-modules {adapter.parent.name or 'adapter'}={{folder}}"
        )
    save_adapter(model, folder, format=format, run=without_paths(about), plain=plain)
    library = "peft" if format == "peft" else ""
    template = stored_template([about])
    write_card(
        folder, base, library, described, [(adapter, about)], template,
        use.format(folder=folder.name),
    )  # fmt: skip
    return Exported(described, sorted(folder.iterdir()), use.format(folder=str(folder)))


def takers(model: LanguageModel) -> list[str]:
    """The engines that take the adapter "default" of the model as it is; the model may be folded
    on the way: load it again to go on with it."""
    adapters = adapters_named(model, "default")
    config = next(iter(adapters.values())).config
    checks = {
        "peft": lambda: write(model, config, adapters, plain=False),
        "vllm": lambda: lora_rank(model),
        **dict.fromkeys(GGUF, lambda: (check_model(model), lora_of(model))),
        "transformers": lambda: take_apart(model),
    }
    taken = []
    for engine, check in checks.items():
        with suppress(UserError):
            check()
            taken.append(engine)
    return taken


def lora_rank(model: LanguageModel) -> int:
    """The largest rank of the loaded adapter, as a LoRA. Raises UserError for what vLLM lacks."""
    if model.family in ("bloom", "gptj"):
        raise UserError(f"vLLM has no LoRA for {model.family}: {MERGE}")
    otherwise = "use export --for transformers, or python run.py merge where it can be merged"
    fields, tensors = plain_lora(model, "default", "vLLM", otherwise)
    wrong = next((key for key in tensors if "embedding" in key or "lm_head" in key), None)
    if wrong:
        raise UserError(f"vLLM has no place for {wrong}: {MERGE}")
    rank = max([fields["r"], *fields.get("rank_pattern", {}).values()])
    if rank > RANKS[-1]:
        raise UserError(
            f"vLLM takes ranks up to {RANKS[-1]}, this adapter has {rank}: {MERGE}, or "
            f"combine --how svd --rank {RANKS[-1]}"
        )
    return rank


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

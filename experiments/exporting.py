"""Write a trained adapter for another program, and say how that program takes it.

transformers gets a whole model with any adapter in it. PEFT and vLLM get the adapter, where they
can compute it; what they cannot is refused by name, with the way that remains.
"""

from collections.abc import Sequence
from pathlib import Path

from adapters import load_adapter, save_adapter
from adapters.attach import adapters_named
from adapters.formats.peft_write import write
from adapters.formats.transformers_model import export_with_adapters
from experiments.base import load_base
from experiments.merging import check_to_write, describe_adapters, load_stored
from files.errors import UserError, unknown
from model.language import LanguageModel
from model.registry import REGISTRY
from train.settings import Settings

ENGINES = ("transformers", "peft", "vllm")
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # vLLM's --max-lora-rank takes one of these
MERGE = "merge it (python run.py merge) and serve the merged folder"


def export_for(
    engine: str, settings: Settings, adapters: Sequence[Path], folder: Path, shard_size: float = 5.0
) -> str:
    """Write what `engine` takes into `folder`, new or empty; returns how to use it, in a line.

    adapters: folders of saved adapters; transformers takes several, stacked. shard_size: of a
    file of weights, in GB. Raises UserError for what the engine cannot compute.
    """
    if engine not in ENGINES:
        raise unknown("--for", engine, ENGINES)
    check_to_write(settings, adapters, folder)
    if engine == "transformers":
        model, _ = load_stored(settings, adapters, average=False)
        export_with_adapters(model, folder, int(shard_size * 1e9))
        return f'AutoModelForCausalLM.from_pretrained("{folder}", trust_remote_code=True)'
    if len(adapters) > 1:
        raise UserError(f"{engine} takes one adapter at a time: combine makes one of several")
    base = REGISTRY[settings.model].repo if settings.model in REGISTRY else settings.model
    model = load_base(settings)
    about = load_adapter(model, adapters[0])
    rank = lora_rank(model) if engine == "vllm" else None
    save_adapter(model, folder, format="peft", run=about, plain=engine == "vllm")
    if engine == "peft":
        return f'PeftModel.from_pretrained(model, "{folder}"), where model is {base}'
    allowed = next(size for size in RANKS if size >= rank)
    return (
        f"vllm serve {base} --enable-lora --max-lora-rank {allowed} "
        f"--lora-modules {adapters[0].parent.name or 'adapter'}={folder}"
    )


def lora_rank(model: LanguageModel) -> int:
    """The largest rank of the loaded adapter, as a LoRA. Raises UserError for what vLLM lacks."""
    described = describe_adapters(model)
    if model.family in ("bloom", "gptj"):
        raise UserError(f"vLLM has no LoRA for {model.family}: {MERGE}")
    adapters = adapters_named(model, "default")
    config = next(iter(adapters.values())).config
    try:
        fields, tensors = write(model, config, adapters, plain=True)
    except UserError as error:
        raise UserError(
            f"vLLM serves LoRA only, not {described} ({error}): {MERGE}, or use "
            "export --for transformers"
        ) from None
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

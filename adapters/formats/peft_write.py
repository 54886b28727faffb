"""What we write for PEFT 0.21 (reading: adapters/formats/peft_read.py).

Our own files have PEFT's names for everything that PEFT can compute, so that it reads them as they
are; `header` is what it needs for that. `write` makes a file for PEFT alone, of more: soft prompts
without the network that made them, mixtures of LoRA with whole modules, biases or rows of the
embedding, and, plain, everything that is a product of two matrices as a LoRA with alpha = r. What
each method writes is in adapters/formats/peft_methods.py.
"""

import torch

from adapters.attach import adapters_named
from adapters.config import METHODS, AdapterConfig
from adapters.formats.base_model import common
from adapters.formats.peft_beside import BESIDE, KEEPS, MORE
from adapters.formats.peft_methods import WRITERS, Adapters, Written, write_factors
from adapters.formats.peft_places import leaves
from adapters.in_use import by_part
from files.errors import UserError
from model.language import LanguageModel

MODULES = {  # (reads, writes) of a bottleneck -> what the paper's code calls it
    ("input", "input"): "mh_adapter",
    ("output", "output"): "output_adapter",
    ("input", "output"): "parallel_adapter",
}


def header(model: LanguageModel, config: AdapterConfig, adapters: Adapters) -> dict:
    """The fields of our own file's adapter_config.json, without our section.

    PEFT's if it computes this adapter from our tensors, else a description that it refuses.
    """
    if config.only:
        try:
            fields, tensors = write(model, config, adapters, plain=False)
        except UserError:
            pass  # PEFT has no place for it; our own section says everything
        else:
            ours = METHODS[config.only.kind].to_file(adapters)
            if all(key in ours and torch.equal(ours[key], tensors[key]) for key in tensors):
                return fields
        if config.only.kind == "bottleneck":
            return common(model, "BOTTLENECK") | bottleneck_fields(adapters)
    kind = config.kind.upper()
    # Not by a name that would make PEFT read what it cannot compute.
    return common(model, f"NATIVE_{kind}" if config.kind in WRITERS else kind)


def bottleneck_fields(adapters: Adapters) -> dict:
    """The paper's names for a bottleneck's options, with the kind of each module spelled out."""
    first = next(iter(adapters.values()))
    options = {path: adapter.options for path, adapter in adapters.items()}
    return {
        "bottleneck_size": len(first.adapter_down),
        "non_linearity": first.options.act,
        "adapter_dropout": first.options.dropout,
        "scaling": first.options.scale,
        "target_modules": leaves(adapters),
        "modules": {path: MODULES[o.reads, o.writes] for path, o in options.items()},
    }


def plain_lora(model: LanguageModel, name: str, engine: str, otherwise: str) -> Written:
    """The loaded adapter of this name as `write` makes it plain, for a program that takes no more.

    otherwise: what to do where it has no such form. Raises UserError.
    """
    adapters = adapters_named(model, name)
    config = next(iter(adapters.values())).config
    try:
        return write(model, config, adapters, plain=True)
    except UserError as error:
        where = f"{config.kind} at {config.place()}"
        raise UserError(f"{engine} takes LoRA only, not {where} ({error}): {otherwise}") from None


def write(model: LanguageModel, config: AdapterConfig, adapters: Adapters, plain: bool) -> Written:
    """(adapter_config.json, tensors) that PEFT 0.21 reads.

    plain: one LoRA with alpha = r everywhere, for programs that know no more. Raises UserError,
    saying why, for an adapter that has no such form.
    """
    kind, main, beside = split_parts(config, adapters)
    if plain:
        if beside:
            raise UserError(
                f"a plain LoRA has no place for {' and '.join(beside)} beside it; leave plain out, "
                "or merge the adapter into the weights"
            )
        return write_factors(model, kind, main, plain=True)
    order = [part.kind for part in config.parts.values()]
    if kind == "dora" and "bitfit" in beside and order.index("bitfit") < order.index("dora"):
        raise UserError(
            "PEFT does not scale the trained biases beside DoRA, as here where they come first: "
            'put that part after it, or use format="native"'
        )
    fields, tensors = WRITERS[kind](model, kind, main)
    everywhere = {kind: main} | beside
    for other, here in beside.items():
        for path in here:
            check_alone(other, [k for k in everywhere if path in everywhere[k]], kind, path)
        more, further = MORE[other](model, here, main, beside.get("full", {}))
        fields, tensors = fields | more, tensors | further
    return fields, tensors


def split_parts(
    config: AdapterConfig, adapters: Adapters
) -> tuple[str, Adapters, dict[str, Adapters]]:
    """(the method, its adapters, those of each other kind beside it). Raises UserError."""
    groups, kinds = by_part(adapters), {name: part.kind for name, part in config.parts.items()}
    is_single = len(kinds) == 1
    mains = [n for n, kind in kinds.items() if kind in WRITERS and (kind not in MORE or is_single)]
    if len(mains) != 1:
        raise UserError(f"PEFT has no place for {config.kind} adapters in one file; {KEEPS}")
    kind = kinds[mains[0]]
    beside = {kinds[name]: group for name, group in groups.items() if name != mains[0]}
    wrong = next((other for other in beside if other not in BESIDE.get(kind, ())), None)
    if wrong or len(beside) != len(groups) - 1:
        what = wrong or "two parts of one kind"
        raise UserError(f"PEFT has no place for {what} beside {kind} in one file; {KEEPS}")
    return kind, groups[mains[0]], beside


def check_alone(other: str, kinds: list[str], main: str, path: str) -> None:
    """Raises UserError for two parts at one module that PEFT has no place for."""
    both = [kind for kind in kinds if kind != other]
    if both and not (other == "bitfit" and both == [main]):
        raise UserError(
            f"PEFT has no place for {other} and {both[0]} at one module ({path}); {KEEPS}"
        )

"""generate: continue a text, or answer an instruction."""

import argparse
import sys
from typing import TYPE_CHECKING

from cli.options import (
    DECODE_MEMORY,
    add,
    add_trained_model,
    given,
    measuring_settings,
    parse_numbers,
)
from files.errors import UserError

if TYPE_CHECKING:  # importing it imports torch
    from eval.sampling import Sampling

SAMPLING = {
    "--temperature T": (float, "above 0: sample (0)", 0.0),
    "--top-k K": (int, "sample from the k likeliest tokens; 0: from all", 0),
    "--top-p P": (float, "sample from the likeliest tokens with this probability", 1.0),
    "--seed N": (int, "of sampled texts (0)", 0),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    add_trained_model(parser)
    prompt = parser.add_argument_group("prompt").add_mutually_exclusive_group(required=True)
    prompts = {
        "--prompt TEXT": "text to continue as it stands",
        "--instruction TEXT": "text to put into the prompt template first",
        "--prompt-ids N,N": "token ids to continue, 5,6,7; needs no tokenizer",
    }
    add(prompt, "", prompts)
    decoding = {
        "--template NAME": "of --instruction: alpaca, paper-v1, paper-final, plain or chat (the "
        "adapter's own)",
        "--beams N": (int, "1: greedy (default)", 1),
        **SAMPLING,
        "--max-new-tokens N": (int, "maximum length of the new text (64)", 64),
    }
    add(parser, "decoding", decoding | DECODE_MEMORY)


def run(options: argparse.Namespace) -> int:
    from eval.generate import generate_text
    from experiments.base import toy_lines
    from experiments.loading import load_with_adapter

    settings, adapters = measuring_settings(options, {"eval": given(options, ("decode_memory",))})
    decoding = {"max_new_tokens": options.max_new_tokens, "beams": options.beams}
    if sampling := sampling_of(options):
        decoding |= {"sampling": sampling, "seeds": [options.seed]}
    if not 1 <= options.max_new_tokens <= 1_000_000:
        raise UserError(
            f"--max-new-tokens {options.max_new_tokens} should be between 1 and 1,000,000"
        )
    if options.prompt_ids is not None:
        model, *_ = load_with_adapter(settings, adapters, with_tokenizer=False)
        print(continue_ids(model, options.prompt_ids, decoding))
        return 0
    model, tokenizer, template, _ = load_with_adapter(
        settings, adapters, template_name=options.template, is_own=True
    )
    text = options.prompt if options.instruction is None else options.instruction
    streams = options.beams == 1  # beams are known at the end only
    (output,) = generate_text(
        model,
        tokenizer,
        [text],
        template=None if options.instruction is None else template,
        stream=(lambda _, piece: print(piece, end="", flush=True)) if streams else None,
        **decoding,
    )
    print("" if streams else output)
    notes = toy_lines(settings.model)
    chosen = options.template or options.run or adapters
    if options.instruction is not None and template.chat and not chosen:
        notes.append("prompt template: chat, the tokenizer's own; --template chooses another")
    for line in notes:
        print(line, file=sys.stderr)
    return 0


def sampling_of(options: argparse.Namespace) -> "Sampling | None":
    """What the options of SAMPLING choose; None: greedy. Raises UserError."""
    from eval.sampling import Sampling

    chosen = options.temperature, options.top_k, options.top_p
    if options.temperature:
        return Sampling(*chosen)
    if chosen != (0, 0, 1) or options.seed:
        raise UserError(
            "--top-k, --top-p and --seed are for sampled texts: set --temperature above 0"
        )
    return None


def continue_ids(model, text: str, decoding: dict) -> str:
    """ "5,6,7" -> the new token ids, in the same form. Raises UserError."""
    import torch

    from data.stops import configured_stop_ids
    from eval.generate import generate

    ids, size = parse_numbers("--prompt-ids", text, "5,6,7"), model.config.vocab_size
    if not all(0 <= token < size for token in ids):
        raise UserError(f"--prompt-ids {text!r}: the model has token ids 0 to {size - 1}")
    prompt = torch.tensor([ids], device=model.device)
    stop_ids = configured_stop_ids(model.folder)
    return ",".join(map(str, generate(model, prompt, stop_ids=stop_ids, **decoding)[0]))

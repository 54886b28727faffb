"""quantize: write a model with its weights in 8 or 4 bits, and measure what that costs."""

import argparse
from pathlib import Path

from cli.options import MODEL, REQUIRED, SHARD_SIZE, add, pick


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Write the model with the weights of its blocks in 8 or 4 bits, and measure it beside the\n"
        "original. The two are never in memory together."
    )
    table = pick(MODEL, "--model", "--revision", "--device", "--dtype")
    table |= {
        "--to FORM": (str, "int8, llm-int8 (activations are rounded too) or nf4", REQUIRED),
        "--out FOLDER": (str, "new folder of the quantised model", REQUIRED),
        "--text FILE": "to measure on (solutions of word problems)",
        "--tokens N": (int, "measure on the first N (1024); 0: do not measure", 1024),
    }
    dtype = "of the other weights and the computation (the checkpoint's)"
    add(parser, "", table | SHARD_SIZE, dtype=dtype)


def run(options: argparse.Namespace) -> int:
    from experiments.quantize import quantize_model

    quantized = quantize_model(
        options.model or "pocket-llama",
        Path(options.out),
        options.to,
        revision=options.revision,
        device=options.device or "auto",
        dtype=options.dtype,
        text=options.text,
        tokens=options.tokens,
        shard_size=options.shard_size,
    )
    print("\n".join(quantized.lines()))
    return 0

"""quantize: write a model with its weights in 8 or 4 bits, and measure what that costs."""

import argparse
from pathlib import Path

from cli.options import add, add_device


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Write the model with the weights of its blocks in 8 or 4 bits, and measure it beside the\n"
        "original. The two are never in memory together."
    )
    add(parser, "--model", "--revision")
    add_device(parser)
    add(parser, "--dtype", dtype="of the other weights and the computation (the checkpoint's)")
    parser.add_argument(
        "--to", required=True, help="int8, llm-int8 (activations are rounded too) or nf4"
    )
    parser.add_argument("--out", required=True, help="new folder of the quantised model")
    parser.add_argument("--text", help="text file to measure on (solutions of word problems)")
    parser.add_argument(
        "--tokens", type=int, default=1024, help="measure on the first N (1024); 0: do not measure"
    )
    add(parser, "--shard-size")


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

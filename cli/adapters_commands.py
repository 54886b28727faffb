"""show, merge, export and combine on the command line."""

import argparse
import math
from dataclasses import replace
from pathlib import Path

from cli.options import add_model_options, measure_settings
from files.errors import UserError
from model.show import size_text


def add_show(parser: argparse.ArgumentParser):
    parser.add_argument(
        "--model",
        default="pocket-llama",
        help="a name of `run.py models`, a hub repository or a folder (pocket-llama)",
    )
    parser.add_argument("--revision", help="branch, tag or commit of a hub repository")
    parser.add_argument(
        "--adapter",
        help="also draw this adapter in the block: a name of adapters/presets.toml, or several, lora+prefix",
    )
    parser.add_argument(
        "--config", help="or the adapter of a TOML file of settings, such as a run.toml"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change one setting of the adapter, adapter.size=64",
    )
    return show


def show(options: argparse.Namespace) -> int:
    from adapters.show import draw, trained
    from cli.options import run_settings
    from experiments.layout import with_adapter
    from model.show import count, show_text

    model = (
        with_adapter(run_settings(options), "cpu")
        if options.adapter or options.config or options.set
        else None
    )
    print(show_text(options.model, options.revision))
    if model is not None:
        share = trained(model) / (count(model) - trained(model))
        print(
            f"\nwith the adapter {options.adapter or ''}:\n\n{draw(model)}\n\n{trained(model):,} trained parameters, {100 * share:.3f} % of the model"
        )
    return 0


def add_merge(parser: argparse.ArgumentParser):
    parser.epilog = "The weights keep the dtype of the checkpoint unless --dtype says another one; they are merged in float32 and rounded once."
    add_source(parser)
    parser.add_argument(
        "--average",
        action="store_true",
        help="average what the adapters add instead of stacking them",
    )
    parser.add_argument("--out", required=True, help="new folder of the merged model")
    parser.add_argument(
        "--shard-size", type=float, default=5.0, help="largest size of a file of weights, in GB (5)"
    )
    return merge


def add_export(parser: argparse.ArgumentParser):
    add_source(parser)
    parser.add_argument(
        "--format",
        default="peft",
        help="peft (default), paper (its repository's code) or native (ours)",
    )
    parser.add_argument(
        "--plain",
        action="store_true",
        help="peft: turn LoRA's relatives into a LoRA with alpha = r, for vLLM and llama.cpp",
    )
    parser.add_argument("--out", required=True, help="new folder of the adapter")
    return export


def add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", nargs="?", help="folder of a run: its model and adapter")
    add_model_options(parser)
    parser.add_argument(
        "--adapter",
        action="append",
        help="folder of a saved adapter, in place of the run's; merge stacks several in this order",
    )


def merge(options: argparse.Namespace) -> int:
    from adapters.formats.merged_model import export_model
    from adapters.merge import merge_and_compare
    from experiments.run import count_base

    made, adapters, folder = source(options)
    if not 0 < options.shard_size < 1e6:
        raise UserError(f"--shard-size {options.shard_size} should be a number of GB")
    model, template = load_stored(made, adapters, options)
    what = describe(model)
    ids, said = probe(model, template)
    largest, deviation = merge_and_compare(model, ids)
    files = export_model(model, folder, int(options.shard_size * 1e9))
    print(
        f"merged    {what} into {made.model}: {count_base(model):,} parameters, {dtype_name(model.input_embedding.weight.dtype)}"
    )
    print(
        f"checked   largest logit difference {largest:.2g} on {said}, computed in {dtype_name(model.dtype)}; "
        f"standard deviation of the logits {deviation:.2g}"
    )
    print_files(folder, files)
    print(
        f"use it    as --model {folder} of any command (prompt template: {template.name}), or with transformers and vLLM"
    )
    return 0


def export(options: argparse.Namespace) -> int:
    from adapters import load_adapter, save_adapter
    from adapters.formats.folders import FORMATS
    from adapters.several import SETUP
    from experiments.base import load_base
    from files.errors import unknown

    if options.format not in FORMATS:
        raise unknown("--format", options.format, FORMATS)
    if options.plain and options.format != "peft":
        raise UserError(f"--plain is for --format peft, not {options.format}")
    made, adapters, folder = source(options)
    for adapter in adapters:
        if (adapter / SETUP).is_file():
            raise UserError(
                f"{adapter} holds several adapters: choose one of them, such as --adapter {adapter / 'default'}, the one that was trained"
            )
    if len(adapters) > 1:
        raise UserError("export writes one adapter at a time: give one --adapter")
    model = load_base(made)
    run = load_adapter(model, adapters[0])
    what = describe(model)
    save_adapter(model, folder, format=options.format, run=run, plain=options.plain)
    print(
        f"exported  {what} of {made.model}, as {options.format}{', plain' if options.plain else ''}"
    )
    print_files(folder, sorted(folder.iterdir()))
    return 0


def add_combine(parser: argparse.ArgumentParser):
    parser.description = (
        "The weighted sum of saved adapters as a new one: 1 adds, -1 subtracts, 0.5 halves."
    )
    parser.epilog = "python run.py combine runs/a/adapter=0.5 runs/b/adapter=0.5 --model pocket-llama --how weights --out runs/mean"
    parser.add_argument(
        "parts",
        nargs="+",
        metavar="FOLDER=WEIGHT",
        help="folder of a saved adapter, and its weight",
    )
    add_model_options(parser)
    parser.add_argument(
        "--how",
        default="outputs",
        help="outputs (default): the exact sum of what they add; weights: of their parameters, of one shape",
    )
    parser.add_argument("--out", required=True, help="new folder of the adapter")
    return combine


def combine(options: argparse.Namespace) -> int:
    from adapters import load_adapter, save_adapter
    from adapters.combine import combine as weighted_sum
    from cli.options import MODEL_OPTIONS, given
    from data.prompts import stored_template
    from experiments.base import check_model, load_base
    from experiments.folders import fresh_folder
    from train.settings import settings

    weights = [folder_and_weight(text) for text in options.parts]
    made, folder = (
        settings(options=given(options, MODEL_OPTIONS)),
        fresh_folder(Path(options.out), numbered=False),
    )
    check_model(made.model)
    model = load_base(made)
    names = [f"adapter{number}" for number in range(1, len(weights) + 1)]
    runs = [
        load_adapter(model, where, name) for (where, _), name in zip(weights, names, strict=True)
    ]
    template = stored_template(runs)
    config = weighted_sum(
        model,
        {name: weight for name, (_, weight) in zip(names, weights, strict=True)},
        "combined",
        options.how,
    )
    save_adapter(
        model,
        folder,
        "combined",
        run={"model": made.model}
        | ({"template": template.name, "template_text": template.table()} if template else {}),
    )
    print(
        f"combined  {' + '.join(f'{weight:g} x {where}' for where, weight in weights)}, {options.how}: {config.kind} at {config.place()}"
    )
    print_files(folder, sorted(folder.iterdir()))
    print(f"use it    as --adapter {folder} of evaluate and generate, with --model {made.model}")
    return 0


def folder_and_weight(text: str) -> tuple[Path, float]:
    """ "runs/a/adapter=0.5" -> its two halves. Raises UserError."""
    folder, sign, number = text.rpartition("=")
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not sign or not folder or not math.isfinite(weight):
        raise UserError(f"{text!r} should be FOLDER=WEIGHT, such as runs/a/adapter=0.5")
    return Path(folder), weight


def source(options: argparse.Namespace):
    """(settings, folders of adapters, folder for the result) of the options. Raises UserError where there is no adapter, or the result has no room."""
    from experiments.base import check_model
    from experiments.folders import fresh_folder

    made, adapters = measure_settings(options)
    if not adapters:
        raise UserError(
            "there is no adapter: give the folder of a run, or --model with --adapter FOLDER"
        )
    check_model(made.model)
    return made, adapters, fresh_folder(Path(options.out), numbered=False)


def load_stored(made, adapters: list[Path], options: argparse.Namespace):
    """(model with its adapters on, prompt template). The weights stay as they are stored, whatever the run computed in; --dtype says otherwise.

    float16 on a CPU is computed in float32: its own arithmetic is slow there.
    """
    import torch

    from experiments.base import choose_devices
    from experiments.loading import load_with_adapter
    from files.reading import tensors
    from model.registry import resolve

    if options.dtype is None:
        first = next(
            tensor
            for name, tensor in tensors(resolve(made.model, made.revision or None))
            if name.endswith("weight")
        )  # no scale of a quantised one
        half = first.dtype == torch.float16 and choose_devices(made)[0].type == "cpu"
        made = replace(made, dtype="float16" if half else "auto")
    model, _, template, _ = load_with_adapter(made, adapters, options.average, with_tokenizer=False)
    if model.dtype == torch.float16 and model.input_embedding.weight.device.type == "cpu":
        model.dtype = torch.float32
    return model, template


def probe(model, template):
    """(token ids [1, T], what they are in words): a prompt of the adapter's template, or random ids where the model has no tokenizer."""
    import torch

    from data.batches import encode_prompt
    from model import load_tokenizer

    try:
        tokenizer = load_tokenizer(str(model.folder))
        tokenizer.fit(model.config.vocab_size)
        _, ids = encode_prompt(
            tokenizer,
            {
                "instruction": "Emma baked 12 pies and ate 4. Each box holds 2. How many boxes are there?"
            },
            template,
        )
        said = f"a prompt of {len(ids)} tokens"
    except UserError as error:
        ids = torch.randint(
            model.config.vocab_size, (32,), generator=torch.Generator().manual_seed(0)
        ).tolist()
        said = f"32 random token ids ({error})"
    return torch.tensor([ids], device=model.input_embedding.weight.device), said


def describe(model) -> str:
    """The adapters that are on, in words."""
    from adapters.attach import adapters_named, in_use

    configs = [
        next(iter(adapters_named(model, name).values())).config
        for name in dict.fromkeys(name for _, name, _ in in_use(model))
    ]
    return " and ".join(f"{config.kind} at {config.place()}" for config in configs)


def dtype_name(dtype) -> str:
    return str(dtype).removeprefix("torch.")


def print_files(folder: Path, files: list[Path]) -> None:
    names = [f"{path.name} ({size_text(path.stat().st_size)})" for path in files]
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    print(
        f"written   {folder}: {', '.join(names[:12])}{more}, {size_text(sum(path.stat().st_size for path in files))} in all"
    )


COMMANDS = {"show": add_show, "merge": add_merge, "export": add_export, "combine": add_combine}

"""train, pretrain and plan on the command line."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from model.errors import UserError
from train.options import MODEL_OPTIONS, add_data_options, add_model_options, data_settings, given, whole_paths

if TYPE_CHECKING:  # the options are there before torch is loaded
    from train.parallel import Processes


def add_train(parser: argparse.ArgumentParser):
    parser.epilog = "Any setting of train/settings.py can be changed with --set, for example --set train.learning_rate=1e-3 --set adapter.size=64"
    add_model_options(parser)
    parser.add_argument("--adapter", help="a name of adapters/presets.toml (parallel), or several, lora+prefix")
    parser.add_argument("--load", action="append", default=[], metavar="NAME=FOLDER", help="an adapter to build on, frozen; may be repeated")
    add_data_options(parser)
    parser.add_argument("--only-right", action="store_true", default=None, help="train only on rows whose rationale reaches the right answer")
    parser.add_argument("--train-on-test", action="store_true", default=None, help="train although a test set is in the training data; the result says so")
    parser.add_argument("--recipe", help="a recipe of train/recipes, or a TOML file")
    parser.add_argument("--config", help="a TOML file of settings, such as the run.toml of another run")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change one setting; may be repeated")
    parser.add_argument("--seed", type=int, help="of the adapter's start, the order of rows and dropout; default 0")
    parser.add_argument("--max-steps", type=int, help="stop after this many steps; 0: after train.epochs")
    parser.add_argument("--items", type=int, help="measure on the first N problems of each test set only; 0: all")
    parser.add_argument("--out", help="folder of the results; default runs/MODEL-ADAPTER-DATA, numbered when it exists")
    parser.add_argument("--resume", metavar="RUN", help="continue the interrupted run in this folder, with its own settings")
    return train


def train(options: argparse.Namespace) -> int:
    from train.parallel import started

    with started() as processes:
        return train_in(processes, options)


def train_in(processes: "Processes", options: argparse.Namespace) -> int:
    from eval.text import published_lines, score_lines
    from train.experiment import can_resume, fresh_folder, resume_settings, run
    from train.settings import settings

    chosen = given(options, (*MODEL_OPTIONS, "seed")) | data_settings(options)
    if options.adapter is not None:
        chosen["adapter"] = {"preset": options.adapter}
    if options.load:
        pairs = [named_folder(text) for text in options.load]
        chosen["load"] = dict(pairs)
        if len(chosen["load"]) < len(pairs):
            raise UserError(f"--load names an adapter twice: {', '.join(name for name, _ in pairs)}; give each a name of its own")
    if options.max_steps is not None:
        chosen["train"] = {"max_steps": options.max_steps}
    if options.items is not None:
        chosen["eval"] = {"items": options.items}
    if options.resume:
        if chosen or options.set or options.config or options.recipe or options.out:
            raise UserError("--resume continues a run with its own settings; give no other option with it")
        folder = Path(options.resume)
        made = resume_settings(folder)
        if processes.world > 1:
            made = replace(made, device=made.device.partition(":")[0])  # it may have been one process on one GPU before
        if not can_resume(folder):
            print(f"{folder} has no checkpoint yet: starting from step 0")
    else:
        made = settings(options.config, options.recipe, chosen, options.set)
        made = whole_paths(made)
        adapter = made.adapter.get("preset") or made.adapter.get("kind") or "+".join(made.adapter)
        name = f"{Path(made.model).name}-{adapter}-{Path(made.data).stem}"
        folder = processes.from_writer(lambda: fresh_folder(Path(options.out) if options.out else Path("runs") / name, numbered=not options.out))
    processes = replace(processes, sharded=made.shard)
    try:
        result = run(made, folder, resume=bool(options.resume) and can_resume(folder), processes=processes)
    except (KeyboardInterrupt, SystemExit):  # while measuring, or at a second signal; at the first the loop itself takes care
        if folder.exists():
            print(f"\nstopped; continue from the last checkpoint with: python run.py --resume {folder}")
        raise
    if result.signal:
        print(f"stopped; continue with: python run.py --resume {folder}")
        return 128 + result.signal
    if result.after:
        lines = score_lines(result.before, result.after, "with adapter")
        beside = published_lines(made.data, made.model, made.adapter.get("preset", ""), result.after)
        print("\n" + "\n".join([*lines, *([""] if beside else []), *beside]))
        if not result.before:
            print("(the base was not measured; --set eval.before=true does)")
    else:
        print("nothing was measured: the data has no test set; --tests NAME,NAME chooses some")
    print(f"report: {folder / 'report.html'}")
    return 0


def named_folder(text: str) -> tuple[str, str]:
    """"math=runs/a/adapter" -> its two halves. Raises UserError."""
    name, sign, folder = text.partition("=")
    if not sign or not name.isidentifier() or not folder:
        raise UserError(f"{text!r} should be NAME=FOLDER, such as math=runs/a/adapter")
    return name, folder


def add_pretrain(parser: argparse.ArgumentParser):
    parser.add_argument("--recipe", default="pocket", help="a recipe of train/recipes, or a TOML file")
    parser.add_argument("--family", default="llama", help="llama (default), bloom, opt or gptj")
    parser.add_argument("--seed", type=int, help="of weights and text; default: the recipe's")
    parser.add_argument("--max-steps", type=int, help="steps, and with them the length of the text; default: the recipe's")
    parser.add_argument("--out", required=True, help="folder of the new model")
    return pretrain


def pretrain(options: argparse.Namespace) -> int:
    from train.experiment import fresh_folder
    from train.pretrain import pretrain as train_from_scratch

    return train_from_scratch(options.recipe, options.family, fresh_folder(Path(options.out), numbered=False), options.seed, options.max_steps)


def add_plan(parser: argparse.ArgumentParser):
    parser.epilog = "Nothing is downloaded but, for a model that run.py models does not list, its config.json."
    parser.add_argument("--model", default="llama-7b", help="a name of `run.py models`, a hub repository or a folder (llama-7b)")
    parser.add_argument("--revision", help="branch, tag or commit of a hub repository")
    parser.add_argument("--adapter", help="a name of adapters/presets.toml (parallel), or several, lora+prefix")
    parser.add_argument("--config", help="a TOML file of settings, such as the run.toml of a run")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change one setting, adapter.size=64; may be repeated")
    parser.add_argument("--json", action="store_true", help="for programs")
    return plan


def plan(options: argparse.Namespace) -> int:
    import json

    from train.plan import plan as plan_run
    from train.plan import plan_text

    facts = plan_run(options)
    print(json.dumps(facts) if options.json else plan_text(facts))
    return 0


COMMANDS = {"train": add_train, "pretrain": add_pretrain, "plan": add_plan}  # word -> adds the command's options, returns what carries them out

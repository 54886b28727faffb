"""distil: let a LoRA learn what a trained adapter gives, and say what that lost and gained."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from cli.options import (
    MODEL,
    SETTINGS,
    add,
    command_line,
    given,
    pick,
    refuse_others,
    resumable,
    split_names,
)
from files.errors import UserError

if TYPE_CHECKING:  # importing it imports torch
    from train.settings import Settings


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", nargs="?", help="folder of a run, whose adapter is the teacher")
    student = {
        "--to NAME": "preset of the student (lora)",
        "--r N": (int, "rank of the student, in place of the preset's"),
        "--sites NAME,NAME": "sites of the student, in place of the preset's: `show` draws them",
    }
    add(parser, "student", student)
    run = pick(MODEL, "--device") | pick(SETTINGS, "--set")
    output = {
        "--out FOLDER": "of the results (RUN-to-NAME, numbered where it exists)",
        "--resume FOLDER": "go on with an interrupted distil; one that is complete is shown again",
    }
    add(parser, "run", run | output, set="change a setting of the teacher's run; may be repeated")


def run(options: argparse.Namespace) -> int:
    from experiments.distil import distil
    from experiments.folders import remove_if_empty

    settings, folder = resumed(options) if options.resume else new(options)
    again = command_line("distil", "--resume", folder)
    try:
        with resumable(folder / "run.toml", again):
            done = distil(settings, folder, resume=bool(options.resume))
    finally:
        remove_if_empty(folder)  # where the run was refused
    if done.signal:
        print(f"stopped; continue with: {again}")
        return 128 + done.signal
    print("\n" + "\n".join(done.lines()))
    print(f"report: {folder / 'report.html'}")
    if not done.student.unmergeable:
        print(f"next: {command_line('merge', folder, '--out', f'{folder}-merged')}")
    return done.status


def resumed(options: argparse.Namespace) -> "tuple[Settings, Path]":
    """(settings, folder) of --resume. Raises UserError."""
    from train.settings import settings

    refuse_others(options, "--resume goes on with its own settings", ("resume",))
    file = Path(options.resume) / "run.toml"
    if not file.is_file():
        raise UserError(f"{options.resume} holds no run.toml: there is no run to resume")
    return settings(config=str(file)), file.parent


def new(options: argparse.Namespace) -> "tuple[Settings, Path]":
    """(settings, folder) of a new run. Raises UserError."""
    from experiments.distil import settings_to_distil
    from experiments.folders import absolute_paths, fresh_folder

    if not options.run:
        raise UserError("give the folder of the run whose adapter is the teacher")
    to = options.to or "lora"
    settings = settings_to_distil(
        options.run, to, options.r, split_names(options.sites), given(options, ("device",)),
        options.set,
    )  # fmt: skip
    out = Path(options.out or f"{options.run.rstrip('/')}-to-{to}")
    return absolute_paths(settings), fresh_folder(out, numbered=not options.out)

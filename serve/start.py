"""From options to a loop: the model of a run or of a name, and adapters NAME=FOLDER."""

from pathlib import Path

from data.prompts import template
from experiments.base import load_base, load_tokenizer_of
from experiments.loading import settings_to_measure
from files.errors import UserError, short_of_memory
from serve.loop import Loop
from serve.protocol import ADAPTER_NAME


def check_limits(slots: int, waiting: int, length: int | None, seconds: float) -> None:
    """Raises UserError for limits that leave nothing to answer."""
    for name, value, least in (
        ("slots", slots, 1), ("waiting", waiting, 0), ("max-length", length, 2),
        ("time-limit", seconds, 0.1),
    ):  # fmt: skip
        if value is not None and not least <= value <= 10_000_000:
            raise UserError(f"--{name} {value} should be from {least} to 10,000,000")


def load(run: str | None, adapters: list[str], options: dict, **size) -> tuple[Loop, str]:
    """(a loop that is not started, the base's name). size: arguments of Loop. Raises UserError.

    run: folder of a run, whose model, adapter and template are taken; adapters: NAME=FOLDER or a
    FOLDER, in place of the run's. options: a table of settings.
    """
    named = dict(name_and_folder(text) for text in adapters)
    if len(named) < len(adapters):
        raise UserError("--adapter gives two adapters the same name: write NAME=FOLDER")
    settings, folders = settings_to_measure(run, list(named.values()), options=options)
    if run and not adapters:
        named = {Path(run).resolve().name: str(folders[0])}
    name = Path(settings.model).name if Path(settings.model).is_dir() else settings.model
    if name in named:
        raise UserError(f"{name!r} is the base model's name: give the adapter another")
    model = load_base(settings)
    tokenizer = load_tokenizer_of(settings, model)
    positions = model.shape.positions  # of rotary models too: they were trained on no more
    if size.get("length") and positions and size["length"] > positions + 1:
        raise UserError(f"--max-length {size['length']}: the model reads up to {positions} tokens")
    prompt = template(settings.template, tokenizer, is_own=True)
    lower = "--slots or --max-length" if "waiting" in size else "--dtype"  # what serve, chat have
    at_once = f"on {model.device} with {size['slots']:,} answers at once"
    with short_of_memory(f"{at_once}: lower {lower}"):
        loop = Loop(model, tokenizer, prompt, **size)
    for adapter, folder in named.items():
        loop.load(adapter, folder)
    return loop, name


def name_and_folder(text: str) -> tuple[str, str]:
    """ "math=runs/a/adapter" -> ("math", "runs/a/adapter"); "runs/a/adapter" -> ("a", ...).

    Raises UserError.
    """
    name, sign, folder = text.partition("=")
    if not sign or Path(text).is_dir():
        path = Path(text).resolve()
        name, folder = path.parent.name if path.name == "adapter" else path.name, text
    if not ADAPTER_NAME.fullmatch(name) or not folder:
        raise UserError(
            f"--adapter {text!r:.200} should be NAME=FOLDER, such as math=runs/a/adapter"
        )
    return name, folder

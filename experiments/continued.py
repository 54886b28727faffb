"""Continuing with an adapter (--continue): a saved one is trained further, perhaps on other data.

The adapter keeps the configuration of its file, and its trained tensors are where training begins;
optimizer, learning rate schedule and order of rows are those of a new run.
"""

from dataclasses import dataclass
from pathlib import Path

from adapters import attach, load_adapter, use
from adapters.attach import adapters_named, in_order
from adapters.config import AdapterConfig
from adapters.formats.folders import CONFIG, OURS, read_adapter
from adapters.rows import rows_in_use
from adapters.several import SETUP, load_adapters
from data.prompts import AUTO, Template, template
from data.stored_template import stored_template
from experiments.history import history_of
from files.errors import UserError
from files.reading import read_json
from files.toml import read_toml
from model.language import LanguageModel
from model.registry import find, pocket_names
from model.tokenizer import Tokenizer
from train.settings import Settings

TRAINED = "default"  # the name of the adapter that a run trains

NO_ENCODER = (
    "its file has the soft tokens and not the network that computed them, which is what is "
    "trained: it can be used, not trained further"
)


def section_and_base(folder: Path) -> tuple[dict, str]:
    """(`run` section, name of the base) of an adapter's folder, empty where they are missing.

    Raises UserError for a folder that holds no adapter.
    """
    if (folder / SETUP).is_file():
        run, base = read_json(folder / SETUP).get("run"), ""
    elif (folder / CONFIG).is_file():
        raw = read_json(folder / CONFIG)
        base, ours = raw.get("base_model_name_or_path"), raw.get(OURS)
        run = ours.get("run") if isinstance(ours, dict) else None
    else:
        inner = sorted(path.parent for path in folder.glob(f"*/{CONFIG}"))
        hint = f"; there is one in {inner[0]}" if inner else ""
        raise UserError(
            f"--continue {folder} is neither a run nor an adapter: it holds neither run.toml nor "
            f"{CONFIG}{hint}"
        )
    return run if isinstance(run, dict) else {}, base if isinstance(base, str) else ""


def check_named(folder: Path, table: dict) -> None:
    """Raise UserError where an adapter's file names no model, an unknown one, or a folder.

    A folder is opened where the run names it too that the adapter is of: a path that stands in the
    file of an adapter only may be any of this machine.
    """
    if "model" not in table:
        raise UserError(f"{folder} does not say which model it is for: give --model")
    name, run = table["model"], folder.parent / "run.toml"
    try:
        place = find(name)
    except UserError:
        raise UserError(
            f"{folder} was trained on {name!r:.200}, which is not here: give --model"
        ) from None
    named = name in pocket_names() or (run.is_file() and read_toml(run).get("model") == name)
    if isinstance(place, Path) and not named:
        raise UserError(
            f"{folder} was trained on the folder {name!r:.200}, which only its own file names, and "
            "is not opened: give it with --model"
        )


# ---------------------------------------------------------------- the adapter
@dataclass(frozen=True)
class Start:
    """A saved adapter that a run begins with: on and trained; what lies below it is frozen."""

    config: AdapterConfig
    history: list[dict]  # the runs that made it, the oldest first
    loaded: dict[str, dict]  # name -> `run` section of each frozen adapter below it, where known
    template: Template | None  # of its prompts, where it is known
    preset: str  # its name in presets.toml, where it is known
    lines: list[str]  # notes on it


def load_start(model: LanguageModel, s: Settings, tokenizer: Tokenizer | None = None) -> Start:
    """Attach the adapter of s.continue_from as "default".

    Raises UserError for one that does not fit the model, and for one that cannot be trained
    further.
    """
    folder = Path(s.continue_from)
    check_trainable(folder)
    if (folder / SETUP).is_file():
        if s.load:
            raise UserError(
                f"{folder} holds several adapters, below which --load has no place: leave out "
                "--load, or continue one of them"
            )
        members_of(folder)
        run = load_adapters(model, folder)
    else:
        run = load_adapter(model, folder, TRAINED)
    if rows_in_use(model):
        raise UserError(
            f"{folder} has an adapter for each row of a batch (Rows), which a run cannot train: "
            f"continue one of them, such as {folder / TRAINED}"
        )
    use(model, in_order(model), train=[TRAINED])
    config = next(iter(adapters_named(model, TRAINED).values())).config
    return Start(
        config,
        history_of(run),
        run["loaded"] if isinstance(run.get("loaded"), dict) else {},
        stored_template([run], tokenizer),
        run["adapter"] if isinstance(run.get("adapter"), str) else "",
        start_lines(model, s, run, config),
    )


def check_trainable(folder: Path) -> None:
    """Raise UserError for a folder without an adapter, and for one that lacks what is trained."""
    section_and_base(folder)
    raw = {} if (folder / SETUP).is_file() else read_json(folder / CONFIG)
    if OURS in raw:
        return
    if raw.get("peft_type") == "P_TUNING":
        raise UserError(f"{folder} is a P-tuning in PEFT's format: {NO_ENCODER}")
    if raw.get("peft_type") == "PREFIX_TUNING" and raw.get("prefix_projection"):
        raise UserError(
            f"{folder} is a prefix in PEFT's format, with prefix_projection: {NO_ENCODER}"
        )


def start_lines(model: LanguageModel, s: Settings, run: dict, config: AdapterConfig) -> list[str]:
    """What changes where an adapter is trained further, a line each."""
    lines = []
    before = run.get("quantize", model.quantize)
    if isinstance(before, str) and before != model.quantize:
        lines.append(
            f"it was trained on a base stored as {before or 'plain weights'}, and this one is "
            f"stored as {model.quantize or 'plain weights'}"
        )
    name = run.get("template")
    if isinstance(name, str) and s.template not in (AUTO, name):
        lines.append(f"it was trained with the template {name}, and continues with {s.template}")
    if any(part.kind == "adalora" for part in config.parts.values()):
        lines.append(
            "AdaLoRA's schedule starts anew: importances are measured again, and ranks that were "
            "cut may come back"
        )
    return lines


def template_of(s: Settings, tokenizer: Tokenizer, start: Start | None, is_own: bool) -> Template:
    """The prompt template of a run: that of its settings; the stored one where they name it or say
    "auto". is_own: the data is the user's."""
    if start and start.template and s.template in (AUTO, start.template.name):
        return start.template
    return template(s.template, tokenizer, is_own)


def shape_of_start(model: LanguageModel, folder: Path) -> None:
    """Attach what `load_start` would, to a model without weights."""
    check_trainable(folder)
    if not (folder / SETUP).is_file():
        attach(model, read_adapter(model, folder)[0], TRAINED)
        return
    for name in members_of(folder):
        attach(model, read_adapter(model, folder / name)[0], name)


def members_of(folder: Path) -> list[str]:
    """The names of several adapters in one folder; one of them is "default". Raises UserError."""
    names = read_json(folder / SETUP).get("adapters")
    listed = isinstance(names, list) and names
    if not listed or not all(isinstance(name, str) and name.isidentifier() for name in names):
        raise UserError(f"{folder / SETUP} should list 'adapters'")
    if TRAINED not in names:
        raise UserError(
            f"{folder} holds the adapters {', '.join(names)}, and none called {TRAINED!r}, the one "
            f"that a run trains: continue one of them, such as {folder / names[0]}"
        )
    return names

"""Going on with an adapter (--continue): a saved one is trained further, on other data perhaps.

The adapter keeps the configuration of its file, and its trained tensors are where training begins;
optimizer, learning rate schedule and order of rows are those of a new run.
"""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from adapters import attach, load_adapter, use
from adapters.attach import adapters_named, in_order
from adapters.compose import by_row
from adapters.config import AdapterConfig
from adapters.formats.folders import CONFIG, OURS, read_adapter
from adapters.several import SETUP, load_adapters
from data.prompts import AUTO, Template, stored_template, template
from experiments.history import history_of
from files.errors import UserError
from files.reading import read_json
from files.toml import parse_set, read_toml
from model.registry import find
from train.settings import Settings, settings

TRAINED = "default"  # the name of the adapter that a run trains
OF_DATA = (
    "data_dir",
    "tests",
    "columns",
    "only_right",
    "train_on_test",
    "strict_rows",
)  # what a run says of its data, which other data has no use for
NO_ENCODER = "its file has the soft tokens and not the network that made them, which is what is trained: it can be used, not trained further"


# ---------------------------------------------------------------- settings
def settings_to_continue(
    source: str,
    config: str | None = None,
    recipe: str | None = None,
    options: dict | None = None,
    sets: list[str] = (),
) -> Settings:
    """The settings of a run that trains the adapter of `source` further: the folder of a run, whose
    settings they are but for the options, or the folder of an adapter. Raises UserError."""
    folder, options = Path(source), options or {}
    if (folder / "run.toml").is_file():
        if config or recipe:
            raise UserError(
                f"{folder} is a run, which has its own settings: leave out "
                f"--{'config' if config else 'recipe'}, or --continue {folder / 'adapter'}"
            )
        below = settings_of_run(folder, options, sets)
    else:
        below = settings_of_adapter(folder)
        given = [options, *map(parse_set, sets), read_toml(Path(config)) if config else {}]
        if not any("model" in table for table in given):
            check_named(folder, below)
    return settings(config, recipe, options, sets, below=below)


def settings_of_run(folder: Path, options: dict, sets: list[str]) -> dict:
    """The settings of the run in `folder` as a table, with its adapter to continue from."""
    table = read_toml(folder / "run.toml")
    if not (folder / "adapter").is_dir():
        raise UserError(
            f"the run in {folder} is not finished, it has no adapter yet: finish it with --resume {folder}"
        )
    table = {key: value for key, value in table.items() if key not in ("adapter", "load")}
    chosen = options
    for text in sets:
        chosen = chosen | parse_set(text)
    if "data" in chosen and not same_data(chosen["data"], table.get("data")):
        table = {key: value for key, value in table.items() if key not in OF_DATA}
    return table | {"continue_from": str(folder / "adapter")}


def same_data(one: str, other: str | None) -> bool:
    if one == other:
        return True
    return Path(one).is_file() and Path(str(other)).is_file() and Path(one).samefile(str(other))


def settings_of_adapter(folder: Path) -> dict:
    """What an adapter's file says of the model and the prompt it was trained with, as settings."""
    run, base = facts_of(folder)
    table = {"continue_from": str(folder)}
    if base:
        table["model"] = base
    for key in ("model", "revision", "template", "quantize"):
        if isinstance(run.get(key), str) and run[key]:
            table[key] = run[key]
    return table


def facts_of(folder: Path) -> tuple[dict, str]:
    """(`run` section, name of the base) of an adapter's folder, empty where they are not there.
    Raises UserError for a folder that holds no adapter."""
    if (folder / SETUP).is_file():
        run = read_json(folder / SETUP).get("run")
        return run if isinstance(run, dict) else {}, ""
    if not (folder / CONFIG).is_file():
        inner = sorted(path.parent for path in folder.glob(f"*/{CONFIG}"))
        hint = f"; there is one in {inner[0]}" if inner else ""
        raise UserError(
            f"--continue {folder}: there is neither run.toml nor {CONFIG}, so that it is no run and no adapter{hint}"
        )
    raw = read_json(folder / CONFIG)
    base = raw.get("base_model_name_or_path")
    ours = raw.get(OURS)
    run = ours.get("run") if isinstance(ours, dict) else None
    return run if isinstance(run, dict) else {}, base if isinstance(base, str) else ""


def check_named(folder: Path, table: dict) -> None:
    """Raise UserError unless the model that an adapter's file names can be looked for."""
    if "model" not in table:
        raise UserError(f"{folder} does not say which model it is for: give --model")
    try:
        find(table["model"])
    except UserError:
        raise UserError(
            f"{folder} was trained on {table['model']!r:.200}, which is not here: give --model"
        ) from None


# ---------------------------------------------------------------- the adapter
@dataclass(frozen=True)
class Start:
    """A saved adapter that a run begins with: on and to be trained, what lies below it frozen."""

    config: AdapterConfig
    history: list[dict]  # the runs that made it, the oldest first
    loaded: dict[str, dict]  # name -> `run` section of each frozen adapter below it, where known
    template: Template | None  # of its prompts, where it is known
    preset: str  # its name in presets.toml, where it is known
    lines: list[str]  # what is to be said of it


def load_start(model: nn.Module, s: Settings, tokenizer=None) -> Start:
    """Attach the adapter of s.continue_from as "default". Raises UserError for one that does not fit
    the model, and for one that cannot be trained further."""
    folder = Path(s.continue_from)
    facts_of(folder)
    check_trainable(folder)
    if (folder / SETUP).is_file():
        if s.load:
            raise UserError(
                f"{folder} holds several adapters, which --load has no place below: leave out --load, or continue one of them"
            )
        members_of(folder)
        run = load_adapters(model, folder)
    else:
        run = load_adapter(model, folder, TRAINED)
    if by_row(model):
        raise UserError(
            f"{folder} has an adapter for each row of a batch (Rows), which a run cannot train: continue one of them, such as {folder / TRAINED}"
        )
    use(model, in_order(model), train=[TRAINED])
    config = next(iter(adapters_named(model, TRAINED).values())).config
    loaded = run.get("loaded") if isinstance(run.get("loaded"), dict) else {}
    preset = run.get("adapter") if isinstance(run.get("adapter"), str) else ""
    return Start(
        config,
        history_of(run),
        loaded,
        stored_template([run], tokenizer),
        preset,
        start_lines(model, s, run, config),
    )


def check_trainable(folder: Path) -> None:
    """Raise UserError for a file that lacks what training would go on with."""
    if (folder / SETUP).is_file():
        return
    raw = read_json(folder / CONFIG)
    if OURS in raw:
        return
    if raw.get("peft_type") == "P_TUNING":
        raise UserError(f"{folder} is a P-tuning in PEFT's form: {NO_ENCODER}")
    if raw.get("peft_type") == "PREFIX_TUNING" and raw.get("prefix_projection"):
        raise UserError(
            f"{folder} is a prefix in PEFT's form, with prefix_projection: {NO_ENCODER}"
        )


def start_lines(model: nn.Module, s: Settings, run: dict, config: AdapterConfig) -> list[str]:
    """What changes where an adapter is trained further, in words."""
    lines = []
    before = run.get("quantize", model.quantize)
    if isinstance(before, str) and before != model.quantize:
        lines.append(
            f"it was trained on a base stored as {before or 'plain weights'}, and this one is stored as {model.quantize or 'plain weights'}"
        )
    if isinstance(run.get("template"), str) and s.template not in (AUTO, run["template"]):
        lines.append(
            f"it was trained with the template {run['template']}, and goes on with {s.template}"
        )
    if any(part.kind == "adalora" for part in config.parts.values()):
        lines.append(
            "AdaLoRA's schedule starts anew: importances are measured again, and ranks that were cut may come back"
        )
    return lines


def template_of(s: Settings, tokenizer, start: Start | None, is_own: bool) -> Template:
    """The prompt template of a run: that of its settings, or the stored one where they name it or
    none. `is_own`: the data is the user's."""
    if start and start.template and s.template in (AUTO, start.template.name):
        return start.template
    return template(s.template, tokenizer, is_own)


def shape_of_start(model: nn.Module, folder: Path) -> None:
    """Attach what `load_start` would, to a model without weights (experiments/layout.py)."""
    facts_of(folder)
    check_trainable(folder)
    if not (folder / SETUP).is_file():
        attach(model, read_adapter(model, folder)[0], TRAINED)
        return
    for name in members_of(folder):
        attach(model, read_adapter(model, folder / name)[0], name)


def members_of(folder: Path) -> list[str]:
    """The names of several adapters in one folder; one of them is "default". Raises UserError."""
    names = read_json(folder / SETUP).get("adapters")
    if (
        not isinstance(names, list)
        or not names
        or not all(isinstance(name, str) and name.isidentifier() for name in names)
    ):
        raise UserError(f"{folder / SETUP} should list 'adapters'")
    if TRAINED not in names:
        raise UserError(
            f"{folder} holds the adapters {', '.join(names)}, and none called {TRAINED!r}, the one that a run trains: "
            f"continue one of them, such as {folder / names[0]}"
        )
    return names

"""A trained model, used or trained further: which settings apply, and loading it."""

from collections.abc import Sequence
from pathlib import Path

from adapters import Average, use
from adapters.attach import in_order
from adapters.several import load_any
from data.prompts import Template, template
from data.stored_template import stored_template
from experiments.base import load_base, load_tokenizer_of
from experiments.continued import check_named, section_and_base
from experiments.folders import check_whole
from files.errors import UserError
from files.toml import parse_set, read_toml
from model.tokenizer import Tokenizer
from train.parallel import SINGLE, Processes
from train.settings import Settings
from train.settings import settings as make_settings

# Settings of a run that apply to its own data only.
OF_DATA = ("data_dir", "tests", "columns", "only_right", "train_on_test", "strict_rows")
NOT_MEASURED = ("adapter", "train", "load", "continue_from", "teacher")
NOT_MEASURED += ("only_right", "train_on_test")
NOT_OF_THE_RUN = {
    "shard": False,
    "train": {"offload": False, "compile": False, "tf32": False},
}  # were for training only


def settings_to_measure(
    run: str | None,
    adapters: Sequence[str] = (),
    *,
    config: str | None = None,
    recipe: str | None = None,
    options: dict | None = None,
    sets: Sequence[str] = (),
) -> tuple[Settings, list[Path]]:
    """(settings, folders of adapters) for a trained model that is used, not trained.

    run: folder of a run, whose settings and adapter are taken; adapters: folders of saved adapters,
    in place of the run's. `options` is a table of settings ({"model": ...}), `sets` are KEY=VALUE
    texts; both are laid over the run's settings. Raises UserError.
    """
    folders, options = [Path(folder) for folder in adapters], options or {}
    for folder in folders:
        if (folder / "adapter").is_dir():
            raise UserError(
                f"--adapter {folder} is the folder of a run; its adapter is {folder / 'adapter'}"
            )
    for text in sets:
        check_set(text)
    if not run:
        return make_settings(config, recipe, options, list(sets)), folders
    if config or recipe:
        raise UserError(
            "the folder of a run has its own settings: give either it or "
            f"--{'config' if config else 'recipe'}"
        )
    file = Path(run) / "run.toml"
    if not file.is_file():
        if not file.parent.is_dir():
            raise UserError(f"{run} does not exist: give the folder of a run")
        raise UserError(f"{run} holds no run.toml: it is not the folder of a run")
    if not folders:
        check_finished(Path(run), "continue it with")
    check_whole(file)
    settings = make_settings(str(file), None, NOT_OF_THE_RUN | options, list(sets))
    return settings, folders or [Path(run) / "adapter"]


def check_finished(run: Path, what: str) -> None:
    """Raise UserError for a run without an adapter."""
    if not (run / "adapter").is_dir():
        raise UserError(
            f"the run in {run} is not finished, it has no adapter yet: {what} --resume {run}"
        )


def check_set(text: str) -> None:
    """Raise UserError for a KEY=VALUE text that has no effect where nothing is trained."""
    ((key, value),) = parse_set(text).items()
    of_training = key == "eval" and isinstance(value, dict) and "before" in value
    if key in NOT_MEASURED or of_training:
        raise UserError(f"--set {text}: there is nothing to train here, {key} changes nothing")
    if key == "template":
        raise UserError(
            f"--set {text}: use --template, which takes precedence over the template that the "
            "adapter was trained with"
        )


def settings_to_continue(
    source: str,
    config: str | None = None,
    recipe: str | None = None,
    options: dict | None = None,
    sets: Sequence[str] = (),
) -> Settings:
    """The settings of a run that trains the adapter of `source` further.

    source: the folder of a run, whose settings apply where no other is given, or of an adapter.
    Raises UserError.
    """
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
    return make_settings(config, recipe, options, list(sets), below=below)


def settings_of_run(folder: Path, options: dict, sets: Sequence[str]) -> dict:
    """The settings of the run in `folder` as a table, with its adapter to continue from."""
    check_whole(folder / "run.toml")
    table = read_toml(folder / "run.toml")
    check_finished(folder, "finish it with")
    for text in sets:
        options = options | parse_set(text)
    dropped = {"adapter", "load", "teacher"}
    if "data" in options and not same_data(options["data"], table.get("data")):
        dropped |= set(OF_DATA)
    table = {key: value for key, value in table.items() if key not in dropped}
    return table | {"continue_from": str(folder / "adapter")}


def named_data(s: Settings) -> list[str]:
    """The data that the user named: by options, or by the settings of the run that is continued.

    What an adapter's own file names is not followed.
    """
    run = Path(s.continue_from).parent / "run.toml"
    table = read_toml(run) if s.continue_from and run.is_file() else {}
    return [s.data, *s.tests, *(name for name in [table.get("data")] if isinstance(name, str))]


def same_data(one: str, other: str | None) -> bool:
    both_files = Path(one).is_file() and Path(str(other)).is_file()
    return one == other or (both_files and Path(one).samefile(str(other)))


def settings_of_adapter(folder: Path) -> dict:
    """The model and the prompt that an adapter was trained with, from its file, as settings."""
    run, base = section_and_base(folder)
    table = {"continue_from": str(folder)} | ({"model": base} if base else {})
    for key in ("model", "revision", "template", "quantize"):
        if isinstance(run.get(key), str) and run[key]:
            table[key] = run[key]
    return table


def load_with_adapter(
    settings: Settings,
    adapters: Sequence[Path],
    average: bool = False,
    *,
    with_tokenizer: bool = True,
    template_name: str | None = None,
    processes: Processes = SINGLE,
    is_own: bool = False,
):
    """(model, tokenizer or None, prompt template, `run` sections of the adapters' files).

    The adapters are stacked in this order, or averaged. The template is the one of that name, else
    the one the adapters were trained with, else that of the settings. is_own: the data (or the
    instruction) is the user's, which "auto" answers with the tokenizer's chat template.
    Raises UserError.
    """
    model = load_base(settings, processes)
    tokenizer: Tokenizer | None = load_tokenizer_of(settings, model) if with_tokenizer else None
    names = [f"adapter{number}" for number in range(1, len(adapters) + 1)]
    names = ["default"] if len(adapters) == 1 else names
    runs = [load_any(model, folder, name) for folder, name in zip(adapters, names, strict=True)]
    if average:
        if len(adapters) < 2 or in_order(model) != names:
            raise UserError("--average takes two adapters or more, each of its own folder")
        use(model, [Average(*names)])
    model.eval()
    prompt: Template = (
        template(template_name, tokenizer)
        if template_name
        else stored_template(runs, tokenizer) or template(settings.template, tokenizer, is_own)
    )
    return model, tokenizer, prompt, runs

"""The settings of a run that continues a saved adapter."""

from collections.abc import Sequence
from pathlib import Path

from experiments.continued import check_named, section_and_base
from experiments.folders import check_whole
from files.errors import UserError
from files.toml import parse_set, read_toml
from train.settings import Settings
from train.settings import settings as make_settings

# Settings of a run that apply to its own data only.
OF_DATA = ("data_dir", "tests", "columns", "only_right", "train_on_test", "strict_rows")


# ---------------------------------------------------------------- settings
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
    if not (folder / "adapter").is_dir():
        raise UserError(
            f"the run in {folder} is not finished, it has no adapter yet: finish it with --resume "
            f"{folder}"
        )
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

"""The settings of a run as frozen dataclasses, one to one with the TOML file that is saved beside its results.

What wins over what: defaults < recipe < adapter preset < what the recipe says of that preset < --config FILE < options and --set.
"""

import math
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path

from adapters.config import named, overlay
from adapters.config import resolve as resolve_adapter
from files.errors import UserError, unknown
from files.toml import parse_set, read_toml, table_text
from model.quantize import STORED_AS

SCHEDULES = ("linear", "cosine", "constant")
RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Train:
    """How to train. A step is one update of the weights, from `batch_size` rows."""

    epochs: int = 3
    max_steps: int = 0  # stop after this many steps; 0: after `epochs`
    batch_size: int = 16
    micro_batch_size: int = 4  # rows that go through the model at once: memory and speed; the result only by rounding and dropout's draws
    learning_rate: float = 3e-4
    warmup_steps: int = 100
    schedule: str = "linear"  # linear | cosine | constant, after the warm-up
    final_learning_rate: float = 0.0  # at the end of the schedule, as a share of learning_rate
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    clip: float = 1.0  # largest norm of the gradient
    cutoff: int = 256  # tokens of a row; what is cut off is counted and reported
    prompt_weight: float = 0.0  # loss weight of prompt tokens; the response has 1
    group_by_length: bool = False  # batches of near-equal lengths: less padding, less random
    checkpointing: str = "none"  # none | block | "every 2": recompute each block, or every second, in the backward pass: far less memory, a third more time
    offload: bool = False  # keep what the backward pass needs in the CPU's memory: slower, for texts that fit no other way
    save_every: int = 100  # steps between checkpoints
    keep: int = 1  # so many checkpoints, the newest
    validation_rows: int = 0  # of the training rows, drawn by the seed and never trained on
    validate_every: int = 0  # steps between validations; 0: as save_every
    best: bool = True  # with validation rows, the adapter of the step with the lowest loss on them is what is saved in the end; false: the last step's
    patience: int = 0  # stop after so many validations without a lower loss; 0: never
    tracker: str = ""  # tensorboard | wandb: also draw the run there

    def check(self) -> None:
        for key in ("epochs", "batch_size", "micro_batch_size", "cutoff", "save_every", "keep"):
            if getattr(self, key) < 1:
                raise UserError(f"train.{key} = {getattr(self, key)} must be at least 1")
        for key in (
            "max_steps",
            "warmup_steps",
            "weight_decay",
            "prompt_weight",
            "final_learning_rate",
            "validation_rows",
            "validate_every",
            "patience",
        ):
            if getattr(self, key) < 0:
                raise UserError(f"train.{key} = {getattr(self, key)} must not be negative")
        for key in ("learning_rate", "clip"):
            if not getattr(self, key) > 0:
                raise UserError(f"train.{key} = {getattr(self, key)} must be positive")
        self.checkpoint_every  # noqa: B018 - raises
        if self.schedule not in ("linear", "cosine", "constant"):
            raise unknown("train.schedule", self.schedule, ["linear", "cosine", "constant"])

    def check_together(self) -> None:
        """Raise UserError for values that do not go together."""
        for key in ("validate_every", "patience"):
            if getattr(self, key) and not self.validation_rows:
                raise UserError(
                    f"train.{key} = {getattr(self, key)} needs rows to validate on: set train.validation_rows"
                )

    @property
    def checkpoint_every(self) -> int:
        """Every how many blocks one is recomputed in the backward pass; 0: none. Raises UserError."""
        word, _, number = self.checkpointing.partition(" ")
        if word == "every" and number.isascii() and number.isdigit() and int(number) > 0:
            return int(number)
        if self.checkpointing not in ("none", "block"):
            raise UserError(
                f'train.checkpointing = {self.checkpointing!r} should be none, block, or every and a number, such as "every 2"'
            )
        return int(self.checkpointing == "block")


@dataclass(frozen=True)
class Eval:
    """What is measured, and how answers are made."""

    before: bool = False  # also measure the base model, before training
    items: int = 0  # problems of each test set, the first ones; 0: all
    batch_size: int = 16
    max_new_tokens: int = 256
    scoring: str = "generate"  # generate | likelihood: of the options of a multiple-choice set the one the model finds likeliest
    beams: int = 1  # 1: greedy; the paper has 4
    temperature: float = 0.0  # above 0: answers are drawn, by seeds
    top_k: int = 0  # drawn from the k likeliest tokens; 0: all
    top_p: float = 1.0  # drawn from the likeliest tokens that together have this probability
    seeds: list = field(
        default_factory=lambda: [0]
    )  # of drawn answers: every problem is answered once with each

    def check(self) -> None:
        for key, least in (
            ("items", 0),
            ("batch_size", 1),
            ("max_new_tokens", 1),
            ("beams", 1),
            ("temperature", 0),
            ("top_k", 0),
        ):
            if getattr(self, key) < least:
                raise UserError(f"eval.{key} = {getattr(self, key)} must be at least {least}")
        for key, most in (
            ("max_new_tokens", 1_000_000),
            ("beams", 1000),
            ("batch_size", 1_000_000),
        ):
            if getattr(self, key) > most:
                raise UserError(f"eval.{key} = {getattr(self, key)} is more than {most:,}")
        if not 0 < self.top_p <= 1:
            raise UserError(f"eval.top_p = {self.top_p} should lie above 0 and be at most 1")
        if self.scoring not in ("generate", "likelihood"):
            raise unknown("eval.scoring", self.scoring, ["generate", "likelihood"])
        if (
            not self.seeds
            or not all(type(seed) is int and 0 <= seed < 2**63 for seed in self.seeds)
            or len(set(self.seeds)) < len(self.seeds)
        ):
            raise UserError(f"eval.seeds = {self.seeds} should be different whole numbers from 0")

    def check_together(self) -> None:
        """Raise UserError for values that do not go together."""
        drawn = self.temperature > 0
        if drawn and (self.beams > 1 or self.scoring == "likelihood"):
            raise UserError(
                f"eval.temperature = {self.temperature} draws answers, which goes with neither beams nor likelihoods"
            )
        if self.beams > 1 and self.scoring == "likelihood":
            raise UserError(
                f"eval.beams = {self.beams}: likelihoods are not generated; use eval.scoring=generate"
            )
        if not drawn and (self.top_k or self.top_p < 1 or self.seeds != [0]):
            raise UserError(
                "eval.top_k, eval.top_p and eval.seeds are for drawn answers: set eval.temperature above 0"
            )

    @property
    def decoding(self) -> str:
        """How answers are made, in words."""
        if self.scoring == "likelihood":
            return "likelihood of the options"
        if self.temperature > 0:
            limits = [f"top k {self.top_k}"] * (self.top_k > 0) + [f"top p {self.top_p}"] * (
                self.top_p < 1
            )
            return ", ".join(
                [
                    f"drawn at temperature {self.temperature}",
                    *limits,
                    f"{len(self.seeds)} seed{'s' * (len(self.seeds) > 1)}",
                ]
            )
        return f"{self.beams} beams" if self.beams > 1 else "greedy"


@dataclass(frozen=True)
class Settings:
    """One run, complete: `python run.py --config runs/NAME/run.toml` repeats it."""

    model: str = "pocket-llama"
    revision: str = ""  # of a hub repository; empty: the registry's, else main
    data: str = "math-v1"  # a name of `run.py data list`, a file, or a data set of the hub
    data_dir: str = ""  # folder that holds dataset/, for the paper's data; empty: the cache, into which it is fetched
    tests: list = field(
        default_factory=list
    )  # the sets to measure on; empty: those that belong to the data
    columns: dict = field(
        default_factory=dict
    )  # instruction, input, output, answer -> the columns of a file of yours
    test_share: float = 0.1  # of a file of yours, held out to measure on
    only_right: bool = False  # train only on rows whose rationale reaches the right answer
    train_on_test: bool = (
        False  # train although a test set is in the training data; the result says so
    )
    strict_rows: bool = (
        False  # refuse a file with rows that cannot be used, in place of leaving them out
    )
    template: str = "auto"  # alpaca | paper-v1 | plain | chat, the tokenizer's own; auto: chat for own data where there is one, else alpaca
    seed: int = 0
    device: str = "auto"  # auto: cuda where there is one, else cpu; several, "cuda:0,cuda:1": the layers are split over them
    layers_per_device: list = field(
        default_factory=list
    )  # how many layers lie on each of several devices; empty: even, or what fits (experiments/layout.py)
    dtype: str = "auto"  # float32 | bfloat16 | float16 of the frozen base and the computation; auto: the checkpoint's, where the device can
    quantize: str = (
        ""  # int8 | llm-int8 | nf4: the base's Linears in 8 or 4 bits; empty: as they are stored
    )
    shard: bool = False  # each of several processes holds a part of every block's weights, for a base that is too big for one device
    threads: int = 0  # CPU threads of a computation; 0: as many as there are cores
    adapter: dict = field(default_factory=dict)
    continue_from: str = ""  # folder of a saved adapter that is trained further, in place of a new one; adapter is empty then
    load: dict = field(
        default_factory=dict
    )  # name -> folder of an adapter that is there, frozen, below the one that is trained
    train: Train = field(default_factory=Train)
    eval: Eval = field(default_factory=Eval)

    def check(self) -> None:
        if self.threads < 0:
            raise UserError(f"threads = {self.threads} must not be negative")
        if self.quantize and self.quantize not in STORED_AS:
            raise unknown("quantization", self.quantize, STORED_AS)
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed = {self.seed} should be between 0 and 2^63 - 1")
        if not all(type(layers) is int and layers > 0 for layers in self.layers_per_device):
            raise UserError(
                f"layers_per_device = {self.layers_per_device} should be whole numbers above 0, one for each device"
            )
        if not 0 <= self.test_share < 1:
            raise UserError(f"test_share = {self.test_share} should be at least 0 and below 1")
        for key, texts in (("tests", self.tests), ("columns", self.columns.values())):
            if not all(isinstance(text, str) for text in texts):
                raise UserError(f"{key} = {getattr(self, key)!r} should hold names")
        if not all(isinstance(folder, str) for folder in self.load.values()):
            raise UserError(
                "load should name a folder for each adapter, such as load.math=runs/a/adapter"
            )


def recipe(name: str) -> dict:
    """The table of train/recipes/NAME.toml, or of a TOML file of that path. Raises UserError."""
    if name.endswith(".toml"):
        return read_toml(Path(name))
    known = sorted(path.stem for path in RECIPES.glob("*.toml"))
    if name not in known:
        raise unknown("recipe", name, known)
    return read_toml(RECIPES / f"{name}.toml")


def build(cls, table: dict, where: str):
    """The frozen dataclass `cls` from a table; unknown keys (nearest name suggested) and wrong types are UserErrors naming `where`."""
    known = {f.name: f.type for f in fields(cls)}
    values = {}
    for key, value in table.items():
        if key not in known:
            raise UserError(f"{where}: {unknown('setting', key, known)}")
        kind = known[key]
        if is_dataclass(kind):
            if not isinstance(value, dict):
                raise UserError(f"{where}: {key} should be a table")
            value = build(kind, value, f"{where} [{key}]")
        elif kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        elif kind is float and isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{where}: {key} = {value} is not a finite number")
        elif kind == tuple[float, float]:
            if (
                not isinstance(value, list | tuple)
                or len(value) != 2
                or not all(isinstance(v, int | float) for v in value)
            ):
                raise UserError(f"{where}: {key} = {value!r} should be two numbers")
            value = tuple(map(float, value))
            if not all(0 <= v < 1 for v in value):
                raise UserError(f"{where}: {key} = {list(value)} should lie between 0 and 1")
        elif not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise UserError(f"{where}: {key} = {value!r} should be {kind.__name__}")
        values[key] = value
    made = cls(**values)
    if hasattr(made, "check"):
        made.check()
    return made


def settings(
    config: str | None = None,
    recipe_name: str | None = None,
    options: dict | None = None,
    sets: list[str] = (),
    below: dict | None = None,
) -> Settings:
    """The settings of a run from a TOML file, a recipe, command-line options {"model": ..., "adapter": {"preset": ...}} and --set texts.

    Without a recipe, the pocket models have theirs (pocket-tune). `below`: a table under the TOML file
    (experiments/continued.py). Raises UserError for anything misspelled or malformed.
    """
    from_file = read_toml(Path(config)) if config else {}
    tables = [("the adapter to continue", below or {}), (config or "--config", from_file)]
    tables.append(("options", options or {}))
    tables += [(f"--set {text}", parse_set(text)) for text in sets]
    if config and recipe_name and not leaves(recipe(recipe_name)) - leaves(from_file):
        raise UserError(
            f"recipe {recipe_name} changes nothing here: {config} says all that it says"
        )
    model = next(
        (table["model"] for _, table in reversed(tables) if "model" in table), Settings.model
    )
    if recipe_name is None and str(model).startswith("pocket-"):
        recipe_name = "pocket-tune"
    if recipe_name:
        tables.insert(0, (f"recipe {recipe_name}", recipe(recipe_name)))
        if "tokenizer_size" in tables[0][1]:
            raise UserError(
                f"recipe {recipe_name} makes a model from scratch: use it with python run.py pretrain --recipe {recipe_name} --out FOLDER"
            )

    whole: dict = {}
    adapter: dict = {}
    adapter_from = ""
    of_presets: dict = {}
    for where, table in tables:
        table = dict(table)
        if where.startswith("recipe"):
            of_presets = preset_tables(table.pop("adapters", {}), where)
        change = table.pop("adapter", {})
        if not isinstance(change, dict):
            raise UserError(
                f"{where}: adapter should be a table, such as [adapter] with preset = {str(change)!r}"
            )
        build(Settings, table, where)  # a mistake is named with the place it stands in
        adapter_from = where if change else adapter_from
        if "device" in table:
            whole.pop("layers_per_device", None)  # they were counted for other devices
        whole = overlay(whole, table)
        adapter = (
            change if change.keys() & {"preset", "kind"} else overlay(adapter, change)
        )  # another method starts anew
    if whole.get("continue_from"):
        if adapter:
            said = "--adapter" if adapter_from == "options" else adapter_from
            raise UserError(
                f"{said} says what the adapter is, and one that is trained further "
                "(--continue) keeps the configuration of its file: give either"
            )
        return checked(whole)
    adapter = dict(adapter)
    complete = "kind" in adapter or any(
        isinstance(part, dict) and part.keys() & {"preset", "kind"} for part in adapter.values()
    )
    preset = adapter.pop("preset", None if complete else "parallel")
    whole["adapter"] = ({"preset": preset} if preset else {}) | resolve_adapter(
        preset, below=of_presets, **adapter
    ).table()
    return checked(whole)


def checked(table: dict) -> Settings:
    """The Settings of a complete table. Raises UserError."""
    made = build(Settings, table, "settings")
    made.train.check_together()
    made.eval.check_together()
    return made


def leaves(table: dict) -> set[tuple[str, ...]]:
    """The keys of a recipe's or a file's settings, without what a recipe says of presets."""
    return {
        (key, *rest)
        for key, value in table.items()
        if key != "adapters"
        for rest in (leaves(value) if isinstance(value, dict) else [()])
    }


def preset_tables(tables, where: str) -> dict[str, dict]:
    """A recipe's [adapters.NAME] tables: each must name a preset. Raises UserError."""
    for name, table in tables.items() if isinstance(tables, dict) else [("adapters", None)]:
        if not isinstance(table, dict):
            raise UserError(f"{where}: adapters should hold tables, such as [adapters.lora]")
        try:
            named(name, {})
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    return tables


def to_toml(made: Settings) -> str:
    """The TOML text that gives these settings back."""
    return table_text(asdict(made))

"""The settings of a run: frozen dataclasses, one to one with the run.toml beside its results.

Later wins: defaults < recipe < adapter preset < the recipe's [adapters.PRESET] < --config FILE <
options and --set.
"""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal, get_args

from adapters.config import AdapterConfig, overlay, resolve
from eval.settings import Eval
from files.errors import UserError, unknown
from files.toml import parse_set, read_toml, table_text
from files.typed import Range, from_table
from model.quantize import STORED_AS
from train.recipe import for_run, keys, preset_tables, recipe

Schedule = Literal["linear", "cosine", "constant"]
SCHEDULES = get_args(Schedule)
FromZero = Annotated[int, Range(0)]
FromOne = Annotated[int, Range(1)]
Share = Annotated[float, Range(0)]
Positive = Annotated[float, Range(0, open=True)]


@dataclass(frozen=True)
class Train:
    """How to train. A step is one update of the weights, from `batch_size` rows."""

    epochs: FromOne = 3  # passes over the training rows
    max_steps: FromZero = 0  # stop after this many steps; 0: after `epochs`
    batch_size: FromOne = 16  # rows of a step
    # rows in the model at once; this and the next two change memory and speed, the result only by
    # rounding and dropout
    micro_batch_size: FromOne = 4
    tokens_per_batch: FromZero = (
        0  # above 0: not so many rows at once, but as fit in so many tokens
    )
    packing: bool = True  # lay rows end to end, so that pads are computed in attention only
    learning_rate: Positive = 3e-4  # the highest, after the warm-up
    warmup_steps: FromZero = 100  # steps of linear warm-up, at most half of the run
    schedule: Schedule = "linear"  # of the learning rate after the warm-up
    final_learning_rate: Share = 0.0  # at the end of the schedule, as a share of learning_rate
    betas: tuple[float, float] = (0.9, 0.999)  # of AdamW
    weight_decay: Share = 0.0  # of AdamW
    clip: Positive = 1.0  # largest norm of the gradient
    cutoff: FromOne = 256  # tokens of a row; longer rows are cut off, counted and reported
    prompt_weight: Share = 0.0  # loss weight of prompt tokens; response tokens have 1
    group_by_length: bool = False  # batches of near-equal lengths: less padding, less random
    # none, block, or "every 2": recompute each (every second) block in the backward pass, for less
    # memory and a third more time
    checkpointing: str = "none"
    offload: bool = False  # keep activations in the CPU's memory until the backward pass: slow
    compile: bool = False  # blocks through torch.compile: the same numbers to rounding
    # the same bits in every run on one kind of GPU: deterministic algorithms only, some slower
    deterministic: bool = False
    tf32: bool = False  # float32 products in TF32 on a GPU: faster, factors rounded to 10 bits
    save_every: FromOne = 100  # steps between checkpoints
    keep: FromOne = 1  # newest checkpoints to keep
    validation_rows: FromZero = 0  # training rows, drawn by the seed, to validate on instead
    validate_every: FromZero = 0  # steps between validations; 0: as save_every
    best: bool = True  # save the adapter of the lowest validation loss, not that of the last step
    patience: FromZero = 0  # stop after so many validations without a lower loss; 0: never
    tracker: str = ""  # tensorboard or wandb: also log there

    def check(self) -> None:
        """Raise UserError for a single value that the types above do not exclude."""
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"train.betas = {list(self.betas)} should lie between 0 and 1")
        self.checkpoint_every  # noqa: B018 - raises

    def check_together(self) -> None:
        """Raise UserError for values that exclude each other."""
        for key in ("validate_every", "patience"):
            if getattr(self, key) and not self.validation_rows:
                raise UserError(
                    f"train.{key} = {getattr(self, key)} needs rows to validate on: "
                    "set train.validation_rows"
                )

    def rows_at_once(self, length: int) -> int:
        """How many rows of `length` tokens are in the model at once."""
        tokens = self.tokens_per_batch
        rows = max(1, tokens // length) if tokens else self.micro_batch_size
        return min(rows, self.batch_size)

    @property
    def amount(self) -> str:
        """What is in the model at once, for messages."""
        tokens = self.tokens_per_batch
        return f"{tokens} tokens" if tokens else f"{self.micro_batch_size} rows"

    @property
    def at_once(self) -> str:
        """The setting that says how much is in the model at once."""
        return "train.tokens_per_batch" if self.tokens_per_batch else "train.micro_batch_size"

    @property
    def checkpoint_every(self) -> int:
        """n: recompute every n-th block in the backward pass; 0: none. Raises UserError."""
        word, _, number = self.checkpointing.partition(" ")
        if word == "every" and number.isascii() and number.isdigit() and int(number) > 0:
            return int(number)
        if self.checkpointing not in ("none", "block"):
            raise UserError(
                f"train.checkpointing = {self.checkpointing!r} should be none, block, or every and "
                'a number, such as "every 2"'
            )
        return int(self.checkpointing == "block")


@dataclass(frozen=True)
class Settings:
    """One run, complete: `python run.py --config runs/NAME/run.toml` repeats it."""

    model: str = "pocket-llama"  # a name of `run.py models`, a hub repository, or a folder
    revision: str = ""  # of a hub repository; empty: the registry's, else main
    data: str = "math-v1"  # a name of `run.py data list`, a file, or a data set of the hub
    data_dir: str = ""  # folder with dataset/, the paper's data; empty: downloaded to the cache
    tests: list[str] = field(default_factory=list)  # test sets; empty: those of the data
    # instruction, input, output, answer -> the columns of your own file
    columns: dict[str, str] = field(default_factory=dict)
    test_share: Share = 0.1  # of your own file, held out to measure on
    only_right: bool = False  # train only on rows whose rationale reaches the right answer
    train_on_test: bool = False  # train although the data holds test rows; the result says so
    strict_rows: bool = False  # refuse a file with unusable rows instead of leaving them out
    # alpaca, paper-v1, paper-final, plain, or chat (the tokenizer's own); auto: chat for own data,
    # else alpaca
    template: str = "auto"
    seed: FromZero = 0  # of the adapter's start, the order of rows and dropout
    # auto: cuda, else cpu; several, "cuda:0,cuda:1": the layers are split over them
    device: str = "auto"
    # layers on each of several devices; empty: even, or what fits (experiments/layout.py)
    layers_per_device: list[FromOne] = field(default_factory=list)
    # float32, bfloat16 or float16, of the frozen base and the computation; auto: the checkpoint's
    dtype: str = "auto"
    quantize: str = ""  # int8, llm-int8 or nf4: Linears of the base; empty: as they are stored
    shard: bool = False  # each of several processes holds a part of every block's weights
    threads: Annotated[int, Range(0, 1024)] = 0  # of the CPU in a computation; 0: one a core
    adapter: AdapterConfig | None = None  # what is trained; None: with continue_from
    continue_from: str = ""  # folder of a saved adapter to train further, instead of a new one
    load: dict[str, str] = field(default_factory=dict)  # name -> folder of a frozen adapter below
    teacher: str = ""  # folder of an adapter whose distributions are learned, not the rows' tokens
    train: Train = field(default_factory=Train)
    eval: Eval = field(default_factory=Eval)

    def check(self) -> None:
        """Raise UserError for a single value that the types above do not exclude."""
        if self.quantize and self.quantize not in STORED_AS:
            raise unknown("quantization", self.quantize, STORED_AS)
        if self.test_share >= 1:
            raise UserError(f"test_share = {self.test_share} should be at least 0 and below 1")

    def to_dict(self) -> dict:
        """The table of run.toml."""
        adapter = self.adapter.to_dict() if self.adapter else {}
        return asdict(replace(self, adapter=None)) | {"adapter": adapter}


def settings(
    config: str | None = None,
    recipe_name: str | None = None,
    options: dict | None = None,
    sets: list[str] = (),
    below: dict | None = None,
) -> Settings:
    """The settings of a run, from tables that are laid over each other.

    config: a TOML file. recipe_name: a recipe of train/recipes; pocket models have a default one
    (pocket-tune). options: such as {"model": ..., "adapter": {"preset": ...}}. sets: texts such as
    "train.epochs=2". below: a table under the TOML file (experiments/continued.py).
    Raises UserError for anything misspelled or malformed.
    """
    from_file = read_toml(Path(config)) if config else {}
    if config and recipe_name and not keys(recipe(recipe_name)) - keys(from_file):
        raise UserError(
            f"recipe {recipe_name} changes nothing here: {config} says all that it says"
        )
    tables = [
        ("the adapter to continue", below or {}),
        (config or "--config", from_file),
        ("the command line", options or {}),
        *((f"--set {text}", parse_set(text)) for text in sets),
    ]
    if recipe_name is None and named_run(tables)[0].startswith("pocket-"):
        recipe_name = "pocket-tune"
    presets: dict[str, dict] = {}
    if recipe_name:
        where, table = f"recipe {recipe_name}", dict(recipe(recipe_name))
        if "tokenizer_size" in table:
            raise UserError(
                f"{where} makes a model from scratch: use it with "
                f"python run.py pretrain --recipe {recipe_name} --out FOLDER"
            )
        presets = preset_tables(table.pop("adapters", {}), where)
        table = for_run(table, where, *named_run([(where, table), *tables]))
        tables.insert(0, (where, table))

    whole: dict = {}
    adapter: dict = {}
    adapter_from = ""
    for where, table in tables:
        change = table.get("adapter", {})
        if not isinstance(change, dict):
            raise UserError(
                f"{where}: adapter should be a table, such as [adapter] with preset = "
                f"{change if isinstance(change, str) else 'lora'!r}"
            )
        table = {key: value for key, value in table.items() if key != "adapter"}
        from_table(Settings, table, where)  # an error names the place of the mistake
        if "device" in table:
            whole.pop("layers_per_device", None)  # they were counted for other devices
        whole = overlay(whole, table)
        # another method starts anew
        adapter = change if change.keys() & {"preset", "kind"} else overlay(adapter, change)
        adapter_from = where if change else adapter_from
    complete = from_table(Settings, whole, "settings")
    complete.train.check_together()
    complete.eval.check_together()
    if not complete.continue_from:
        parts = [part for part in adapter.values() if isinstance(part, dict)]
        if not any(table.keys() & {"preset", "kind"} for table in (adapter, *parts)):
            adapter = {"preset": "parallel"} | adapter
        return replace(complete, adapter=resolve(adapter, below=presets))
    if adapter:
        where = "--adapter" if adapter_from == "the command line" else adapter_from
        raise UserError(
            f"{where} says what the adapter is, and one that is trained further "
            "(--continue) keeps the configuration of its file: give either"
        )
    return complete


def named_run(tables: list[tuple[str, dict]]) -> tuple[str, str, str]:
    """(model, data, preset) of tables that are laid over each other, as a recipe's [[when]] asks;
    "" for an adapter that is no preset."""
    model, data, adapter = Settings.model, Settings.data, "parallel"
    for _, table in tables:
        model, data = str(table.get("model", model)), str(table.get("data", data))
        change = table.get("adapter")
        if isinstance(change, dict) and change.keys() & {"preset", "kind"}:
            adapter = str(change.get("preset", ""))
    return model, data, adapter


def to_toml(s: Settings) -> str:
    """The TOML text that gives these settings back."""
    return table_text(s.to_dict())

"""Train a pocket model from scratch: its tokenizer, its text, its weights."""

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import asdict, astuple, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as BPE
from torch import nn

from data import pretraining_text, wordproblems
from data.batches import Example
from data.prompts import PREAMBLE, RESPONSE, prompt
from experiments.folders import write_json
from files.errors import UserError, unknown
from files.reading import read_json
from files.typed import Range, from_table
from files.writing import held, write_atomically, write_text
from model.config import family_and_config
from train.checkpoint import checkpoints
from train.loop import train
from train.settings import Train, recipe

EOS, PAD = "<eos>", "<pad>"
Line = list[tuple[str, float]]  # segments of text, each with its loss weight


@dataclass(frozen=True)
class Family:
    """One family's table: its config.json, and what is laid over the recipe's [train]."""

    model: dict
    train: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """A recipe for pretrain: what all families share, and a table for each."""

    seed: Annotated[int, Range(0)]
    threads: Annotated[int, Range(1)]
    tokenizer_size: Annotated[int, Range(400)]  # bytes, numbers and special tokens are 391
    initializer_range: float
    train: dict
    families: dict[str, dict]


@dataclass(frozen=True)
class Order:
    """What is to be trained, as pretrain.json keeps it until the model is complete.

    seed, max_steps: in place of the recipe's.
    """

    recipe: str
    family: str
    seed: int | None = None
    max_steps: int | None = None


ORDER = "pretrain.json"


def unfinished(folder: Path) -> Order:
    """What the interrupted pretraining in this folder makes. Raises UserError."""
    if not (folder / ORDER).is_file():
        raise UserError(f"{folder} holds no {ORDER}: there is no pretraining to resume")
    return from_table(Order, read_json(folder / ORDER), str(folder / ORDER), "key")


def pretrain(order: Order, folder: Path) -> int:
    """Train a pocket model from scratch and write it to `folder`: config.json, tokenizer.json and
    model.safetensors in float16. It goes on from a checkpoint that is there.

    Returns the signal that stopped it, or 0. Raises UserError for a recipe that is unknown,
    malformed or not one for pretrain, and for a family that it does not have.
    """
    with held(folder):
        return pretrain_in(order, folder)


def pretrain_in(order: Order, folder: Path) -> int:
    recipe_name, family_name, seed, max_steps = astuple(order)
    where = f"recipe {recipe_name}"
    table = recipe(recipe_name)
    if missing := [key.name for key in fields(Recipe) if key.name not in table]:
        raise UserError(f"{where} is not one for pretrain: it has no {missing[0]!r}")
    r = from_table(Recipe, table, where)
    if family_name not in r.families:
        raise UserError(f"{where}: {unknown('family', family_name, r.families)}")
    where = f"{where} [families.{family_name}]"
    own = from_table(Family, r.families[family_name], where)
    seed = r.seed if seed is None else seed
    if not 0 <= seed < 2**63:
        raise UserError(f"seed = {seed} should be between 0 and 2^63 - 1")
    s = from_table(Train, r.train | own.train, f"{where} [train]")
    s = replace(s, max_steps=s.max_steps if max_steps is None else max_steps)
    if s.max_steps < 1:
        raise UserError(
            f"max_steps = {s.max_steps} must be at least 1: the text has the length of that many "
            "steps"
        )
    s.check_together()
    if s.validation_rows or s.tracker:
        raise UserError(
            f"{where}: pretrain has neither validation nor a tracker; leave out "
            "train.validation_rows and train.tracker"
        )
    write_json(folder / ORDER, asdict(order))  # fails now, not after the minutes of training

    torch.set_num_threads(r.threads)
    print("training the tokenizer")
    tokenizer = train_tokenizer(r.tokenizer_size, r.seed)
    ids = {"eos_token_id": tokenizer.token_to_id(EOS), "pad_token_id": tokenizer.token_to_id(PAD)}
    raw = {**own.model, "vocab_size": tokenizer.get_vocab_size(), **ids}
    examples = [encode_line(tokenizer, line) for line in lines(s.max_steps * s.batch_size, seed)]
    family, config = family_and_config(raw, f"{where} model")
    model = family.Model(config)
    initialise(model, r.initializer_range, seed)
    named = dict(model.named_parameters())
    print(
        f"{sum(parameter.numel() for parameter in named.values()):,} parameters, "
        f"{sum(map(len, examples)):,} tokens, {s.max_steps} steps"
    )
    outcome = train(
        model,
        named,
        examples,
        s,
        seed=seed,
        pad_id=ids["pad_token_id"],
        folder=folder,
        resume=bool(checkpoints(folder)),
        fingerprints={"recipe": digest(table), "order": digest(asdict(order))},
    )
    if outcome.signal:
        return outcome.signal

    weights = {name: parameter.detach().half().contiguous() for name, parameter in named.items()}
    write_atomically(
        folder / "model.safetensors",
        lambda path: save_file(weights, str(path), metadata={"format": "pt"}),
    )
    write_text(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
    special = {"eos_token": EOS, "pad_token": PAD}
    for name, content in (("tokenizer_config.json", special), ("config.json", raw)):
        write_json(folder / name, content)
    for path in (folder / ORDER, *checkpoints(folder)):  # killed between: nothing is trained again
        path.unlink()
    print(f"saved in {folder}; try: python run.py --model {folder} --recipe pocket-tune")
    return 0


def digest(table: dict) -> str:
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()


TOKENIZER_LINES = 30_000  # of text, by which the tokenizer is trained


def train_tokenizer(size: int, seed: int) -> BPE:
    """Byte-level BPE of `size` entries, trained on the pretraining text. The numbers 0 to 130 are
    single tokens with their leading space."""
    digits = [str(n) for n in range(wordproblems.LARGEST + 1)]
    texts = ["".join(text for text, _ in line) for line in lines(TOKENIZER_LINES, seed)]
    texts = [text.replace(PREAMBLE, " ").replace(RESPONSE, " ") for text in texts]
    added = [EOS, PAD, PREAMBLE, RESPONSE]
    tokenizer = BPE(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = ["".join(c for c in text if not c.isdigit()) for text in texts]
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(digits) - len(added),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(words, trainer)
    learnt = json.loads(tokenizer.to_str())["model"]
    numbers = [("Ġ" + n[:-1], n[-1]) for n in digits]  # "Ġ1" + "2" -> "Ġ12"
    vocabulary = dict(learnt["vocab"])
    for left, right in numbers:
        vocabulary.setdefault(left + right, len(vocabulary))
    tokenizer = BPE(
        models.BPE(vocab=vocabulary, merges=[*numbers, *(tuple(pair) for pair in learnt["merges"])])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in added]
    )
    return tokenizer


MIX = {"problem": 0.54, "sums": 0.31, "clause": 0.10, "walk": 0.05}  # kinds of lines, by share


def lines(count: int, seed: int) -> Iterator[Line]:
    """The pretraining text: `count` lines, each a list of (text, loss weight) segments.

    Problems of the five trained kinds with their rationales; plain sums with the loss on the
    results only; sentences that hold the held-out kind's words; walks through answer choices. A
    longer text begins with the lines of a shorter one.
    """
    rng = random.Random(f"pretrain {seed}")
    streams = {
        manner: wordproblems.problems(manner, "train", seed) for manner in wordproblems.TRAINED
    }
    for _ in range(count):
        kind = rng.choices(list(MIX), list(MIX.values()))[0]
        if kind == "problem":
            manner = rng.choices(list(wordproblems.TRAINED), list(wordproblems.TRAINED.values()))[0]
            row = next(streams[manner])
            yield [(prompt("alpaca", row["instruction"]), 0.1), (row["output"], 1.0), (EOS, 1.0)]
        elif kind == "clause":
            yield [(" " + pretraining_text.clauses(rng, 2), 1.0), (EOS, 1.0)]
        else:
            pairs = pretraining_text.sums(rng) if kind == "sums" else pretraining_text.walk(rng)
            yield [
                part
                for question, answer in pairs
                for part in ((f" {question}", 0.0), (f" {answer}", 1.0))
            ] + [(EOS, 0.0)]


def encode_line(tokenizer: BPE, line: Line) -> Example:
    """The ids of each segment with its weight; a segment ends where a token does."""
    ids, weights = [], []
    for text, weight in line:
        part = tokenizer.encode(text).ids
        ids += part
        weights += [weight] * len(part)
    return Example(ids, weights)


def initialise(model: nn.Module, std: float, seed: int) -> None:
    """Normal weights of `std`; norms 1, biases 0."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 1.0)
        else:
            nn.init.normal_(parameter, 0.0, std, generator=generator)

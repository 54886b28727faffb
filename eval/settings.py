"""The settings of an evaluation: what is measured, and how answers are decoded."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from eval.sampling import Sampling
from files.errors import UserError
from files.typed import Range

FromZero = Annotated[int, Range(0)]
UpToMillion = Annotated[int, Range(1, 1_000_000)]


@dataclass(frozen=True)
class Eval:
    """The [eval] table of run.toml."""

    before: bool = False  # also measure the base model, before training
    items: FromZero = 0  # the first problems of each test set; 0: all
    batch_size: UpToMillion = 16  # prompts that are answered at once
    graphs: bool = True  # on a GPU: the pass over one token as a CUDA graph (model/graphs.py)
    compile: bool = False  # blocks through torch.compile: the same answers to rounding
    max_new_tokens: UpToMillion = 256  # of an answer
    # likelihood: of a multiple-choice problem's options the one with the highest likelihood
    scoring: Literal["generate", "likelihood"] = "generate"
    # a second copy of the weights, which answers sooner (model/packed.py)
    decode_memory: Literal["auto", "packed", "plain"] = "auto"
    beams: Annotated[int, Range(1, 1000)] = 1  # 1: greedy; the paper uses 4
    temperature: Annotated[float, Range(0)] = 0.0  # above 0: sample answers
    top_k: FromZero = 0  # sample from the k likeliest tokens; 0: all
    # sample from the likeliest tokens that together have this probability
    top_p: Annotated[float, Range(0, 1, open=True)] = 1.0
    # of sampled answers: every problem is answered once with each seed
    seeds: list[FromZero] = field(default_factory=lambda: [0])

    def check(self) -> None:
        """Raise UserError for a single value that the types above do not exclude."""
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"eval.seeds = {self.seeds} should be different whole numbers from 0")

    def check_together(self) -> None:
        """Raise UserError for values that exclude each other."""
        sampled, likelihood = self.temperature > 0, self.scoring == "likelihood"
        if sampled and (self.beams > 1 or likelihood):
            raise UserError(
                f"eval.temperature = {self.temperature} samples answers, which excludes beams and "
                "likelihoods"
            )
        if sampled:
            Sampling(self.temperature, self.top_k, self.top_p).check()
        if self.beams > 1 and likelihood:
            raise UserError(
                f"eval.beams = {self.beams}: likelihoods are not generated; "
                "use eval.scoring=generate"
            )
        if not sampled and (self.top_k or self.top_p < 1 or self.seeds != [0]):
            raise UserError(
                "eval.top_k, eval.top_p and eval.seeds are for sampled answers: "
                "set eval.temperature above 0"
            )

    @property
    def decoding(self) -> str:
        """How answers are decoded, for a person."""
        if self.scoring == "likelihood":
            return "likelihood of the options"
        if self.temperature == 0:
            return f"{self.beams} beams" if self.beams > 1 else "greedy"
        parts = [f"drawn at temperature {self.temperature}"]
        parts += [f"top k {self.top_k}"] * (self.top_k > 0)
        parts += [f"top p {self.top_p}"] * (self.top_p < 1)
        return ", ".join([*parts, f"{len(self.seeds)} seed{'s' * (len(self.seeds) > 1)}"])

"""Counts and times of the answers, in Prometheus' text format (version 0.0.4)."""

from collections import Counter

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)  # bounds of buckets
PREFIX = "llm_adapters"


class Histogram:
    """How many times were at most each bound, and their sum."""

    def __init__(self):
        self.counts, self.sum = [0] * (len(SECONDS) + 1), 0.0

    def add(self, seconds: float) -> None:
        self.counts[sum(bound < seconds for bound in SECONDS)] += 1
        self.sum += seconds

    def lines(self, name: str, about: str) -> list[str]:
        figures, total = {}, 0
        for bound, count in zip((*SECONDS, "+Inf"), self.counts, strict=True):
            total += count
            figures[f'_bucket{{le="{bound}"}}'] = total
        figures |= {"_sum": f"{self.sum:.6f}", "_count": total}
        return described(name, about, "histogram", figures)


class Metrics:
    """What a server has done. Each figure is changed by one thread only."""

    def __init__(self):
        self.first, self.between = Histogram(), Histogram()
        self.tokens = 0
        self.prompt_tokens: Counter[str] = Counter()  # by model
        self.requests: Counter[tuple[str, int]] = Counter()  # by model and HTTP status

    def token(self, seconds: float, is_first: bool) -> None:
        """An answer got a token, so many seconds after the one before it, or after the question."""
        self.tokens += 1
        (self.first if is_first else self.between).add(seconds)

    def text(self, now: dict[str, tuple[str, float]]) -> str:
        """All of it; now: name -> (about, value) of gauges."""
        lines = []
        for name, (about, value) in now.items():
            lines += described(name, about, "gauge", {"": value})
        requests = {
            f'{{model="{escaped(model)}",status="{status}"}}': count
            for (model, status), count in sorted(self.requests.items())
        }
        lines += described("requests_total", "Requests by model and status.", "counter", requests)
        counts = sorted(self.prompt_tokens.items())
        prompts = {f'{{model="{escaped(model)}"}}': count for model, count in counts}
        lines += described("prompt_tokens_total", "Tokens of prompts.", "counter", prompts)
        tokens = {"": self.tokens}
        lines += described("generated_tokens_total", "Tokens of answers.", "counter", tokens)
        about = "From the question to its first token."
        lines += self.first.lines("time_to_first_token_seconds", about)
        about = "From a token of an answer to the next."
        lines += self.between.lines("time_between_tokens_seconds", about)
        return "\n".join(lines) + "\n"


def described(name: str, about: str, kind: str, figures: dict[str, object]) -> list[str]:
    """The lines of a metric; figures: its labels, or the end of its name -> value."""
    name = f"{PREFIX}_{name}"
    lines = [f"{name}{labels} {value}" for labels, value in figures.items()]
    return [f"# HELP {name} {about}", f"# TYPE {name} {kind}", *lines]


def escaped(text: str) -> str:
    """The value of a label."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

"""Log-likelihoods of given continuations, for multiple-choice tasks and perplexity."""

from collections.abc import Iterator, Sequence

from adapters.rows import rows_in_use
from eval.compare import Likelihood
from eval.engine import Engine, Request
from files.errors import UserError, short_of_memory
from model.language import LanguageModel

Pair = tuple[list[int], list[int]]  # ids of the context, ids of the continuation


def log_likelihoods(
    model: LanguageModel,
    pairs: Sequence[Pair],
    *,
    batch_size: int = 16,
    vocab_size: int | None = None,
) -> list[Likelihood]:
    """For each (context ids, continuation ids), in order: (log p(continuation | context) in nats,
    whether greedy decoding would generate the continuation).

    Probabilities are over all rows of the head; greedy decoding chooses among ids below vocab_size
    (None: all), as `generate` does. A context of several pairs is read once for all of them. With
    adapters by row (Rows) entry i is for pair i. Raises UserError for an empty context or
    continuation, and when out of memory.
    """
    found = dict(each_likelihood(model, pairs, batch_size, vocab_size))
    return [found[number] for number in range(len(pairs))]


def each_likelihood(
    model: LanguageModel, pairs: Sequence[Pair], batch_size: int, vocab_size: int | None = None
) -> Iterator[tuple[int, Likelihood]]:
    """(number of a pair, its likelihood) as the engine makes them; arguments as above."""
    for number, (context, continuation) in enumerate(pairs):
        if not context or not continuation:
            empty = "continuation" if context else "context"
            raise UserError(f"pair {number + 1} has an empty {empty}; both need at least one token")
    if type(batch_size) is not int or batch_size < 1:
        raise UserError(f"batch_size should be 1 or more, not {batch_size!r:.50}")
    mixtures = rows_in_use(model)
    for rows in mixtures:
        rows.check(len(pairs))
    if not pairs:
        return
    alone = bool(mixtures) or model.depends_on_length  # contexts cannot be shared
    groups: dict[tuple, list[int]] = {}
    for i, (context, _) in enumerate(pairs):
        groups.setdefault((*context, -i if alone else 0), []).append(i)
    pieces = [
        numbers[start : start + batch_size]
        for numbers in groups.values()
        for start in range(0, len(numbers), batch_size)
    ]
    requests = [
        Request(pairs[numbers[0]][0], options=[pairs[i][1] for i in numbers], entry=numbers[0])
        for numbers in pieces
    ]
    model.eval()
    with short_of_memory(f"on {model.device} with {batch_size} texts at once: lower batch_size"):
        length = max(len(request.ids) + request.most for request in requests)
        engine = Engine(model, min(batch_size, len(pairs)), length, vocab_size)
        for event in engine.run(requests):
            yield from zip(pieces[event.number], event.likelihoods, strict=True)

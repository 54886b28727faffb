"""One engine for answers: rows wait, take a slot of a static cache, and leave it to the next.

    submit ── waiting ──> [ slot 0 | slot 1 | slot 2 | ... ] ── step ──> events ── over

A step reads the prompts of rows that slots are free for, or makes tokens of every live row: one,
or more where guesses hold (eval/drafts.py). Rows go on at their own lengths, so that one that is
over makes room at once; when no row waits, the last slots move into the free ones and the passes
get smaller. What a row becomes depends on nothing but the row: not on its neighbours, the order or
the slots, up to the rounding of a sum.
"""

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from adapters.rows import rows_in_use, seated
from data.batches import shared_start
from eval.beams import Beams, candidates
from eval.compare import Options
from eval.drafts import guesses, verify
from eval.prefill import Beginning, admit, read
from eval.requests import Event, Request, Row, set_of
from eval.room import Fronts, positions_of, room_for, too_long
from eval.sampling import choose, scored
from files.errors import UserError
from model.graphs import graphs_for
from model.language import LanguageModel
from model.packed import pack
from model.tokens import check_ids


class Engine:
    """Makes the answers of one model, of at most `slots` rows at a time.

    length: the most tokens of a row, prompt and new ones. vocab_size: only ids below it are chosen
    (None: all). The adapters in use stay the same meanwhile, but for those of Rows (`reseat`).
    """

    def __init__(
        self, model: LanguageModel, slots: int, length: int, vocab_size: int | None = None
    ):
        self.model, self.length, self.vocab_size = model, length, vocab_size
        pack(model)
        self.mixtures = rows_in_use(model)
        self.fronts = Fronts(model, self.mixtures)
        self.options = Options(model, slots, vocab_size, self.mixtures)
        self.cache = model.new_slots(slots, length, self.fronts.most)
        self.graphs = graphs_for(model, self.cache, by_row=bool(self.mixtures))
        self.waiting: deque[Row] = deque()
        self.owners: list[Row | None] = [None] * slots
        # (entry, prompt) in each slot
        self.known: list[tuple[int | None, list[int]]] = [(None, [])] * slots
        self.last = torch.zeros(slots, dtype=torch.long, device=model.device)  # token of each slot
        self.count = 0

    @property
    def is_idle(self) -> bool:
        return not self.waiting and not any(self.owners)

    def reseat(self, entries: Collection[int]) -> None:
        """`use` has put other Rows in place; no row of these entries, which changed, is there."""
        self.mixtures = self.options.mixtures = rows_in_use(self.model)
        self.fronts = Fronts(self.model, self.mixtures)
        self.known = [(e, [] if e in entries else ids) for e, ids in self.known]

    def room(self, entry: int | None) -> int:
        """The most tokens of a row of this entry, prompt and new ones."""
        return min(self.length, self.cache.length - self.fronts.columns(entry))

    def submit(self, request: Request) -> int:
        """Let a request wait for a slot -> its number. Raises UserError for one that cannot be."""
        for rows in self.mixtures:
            rows.check_entry(request.entry)
        if not self.mixtures:  # rows without adapters of their own share what they begin with
            request = replace(request, entry=None)
        request.check(len(self.owners), self.room(request.entry))
        check_ids((request.ids, *request.options), self.model.input_embedding.in_features)
        if len(request.options) > 1 and self.model.depends_on_length:
            raise UserError("rotary angles depend on a row's length: give one option a request")
        read = request.most - 1 if request.options else 0  # of its options; the last id is not
        with seated(self.mixtures, [request.entry]):
            positions = positions_of(self.model)
        room = room_for(positions, len(request.ids) + read, request.most - read)
        if not room:
            raise UserError(too_long(self.model))
        beams = Beams(request.beams, room, request.stop_ids) if request.beams > 1 else None
        generator = torch.Generator().manual_seed(request.seed) if request.sampling else None
        self.count += 1
        self.waiting.append(Row(self.count - 1, request, room, beams, generator))
        return self.count - 1

    def cancel(self, number: int) -> None:
        """Forget a request, wherever it is; one that is over is gone already."""
        self.waiting = deque(row for row in self.waiting if row.number != number)
        for row in set_of(self.owners):
            if row.number == number:
                self.release(row)

    def run(self, requests: Sequence[Request]) -> Iterator[Event]:
        """Submit requests, the longest prompts first, and yield the events of all.

        The numbers of events are those of the requests.
        """
        order = sorted(range(len(requests)), key=lambda i: -len(requests[i].prompt))
        numbers = {self.submit(requests[i]): i for i in order}
        while not self.is_idle:
            for event in self.step():
                yield replace(event, number=numbers[event.number])

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Read prompts that wait, if slots are free, else make tokens of every live row."""
        free = [slot for slot, row in enumerate(self.owners) if row is None]
        if admitted := admit(self.waiting, free, self.model.device.type, self.fronts):
            return self.begin(admitted)
        self.close_gaps()
        live = [row for row in self.owners if row]
        if not live:
            return []
        guessed = [] if self.graphs else guesses(self.model, live, self.cache)
        if any(guessed):
            return verify(self, live, guessed)
        ids = self.last[: len(live)]
        logits = self.graphs.step(ids) if self.graphs else None
        if logits is None:
            self.cache.begin(len(live))
            with seated(self.mixtures, [row.request.entry for row in live]):
                hidden = self.model.hidden(ids[:, None], cache=self.cache)
                logits = self.model.logits(hidden[:, -1])
        self.cache.moved_on([1] * len(live))
        return self.take(set_of(live), logits, [row.slots for row in set_of(live)])

    def begin(self, rows: list[Row]) -> list[Event]:
        """Read the prompts of rows -> the events of first tokens and of compared options."""
        asked = [row.request for row in rows]
        prompts, entries = [one.prompt for one in asked], [one.entry for one in asked]
        known, lengths = self.longest_known(asked[0]), [len(one.ids) for one in asked]
        found = read(self.model, prompts, self.mixtures, entries, known, lengths)
        ends = self.model.prompt_ends
        for i, row in enumerate(rows):
            if asked[i].options and i > 0:  # one of them is enough for `longest_known`
                continue
            for slot in row.slots[:1] if asked[i].options else row.slots:
                self.cache.copy_row(slot, found.cache, i, found.lengths[i])
                shared = prompts[i][: max(0, lengths[i] - ends)]  # with any other prompt
                self.owners[slot], self.known[slot] = row, (entries[i], shared)
        compared = {i: one for i, one in enumerate(asked) if one.options}
        figures = self.options.likelihoods(compared, found) if compared else {}
        events = [Event(rows[i].number, [], "compared", figures[i]) for i in compared]
        for i in compared:
            self.release(rows[i])
        going_on = [i for i in range(len(rows)) if i not in compared]
        if going_on:
            with seated(self.mixtures, [entries[i] for i in going_on]):
                logits = self.model.logits(found.last(prompts)[going_on])
            at = [[n] * len(rows[i].slots) for n, i in enumerate(going_on)]
            events += self.take([rows[i] for i in going_on], logits, at)
        return events

    def longest_known(self, request: Request) -> Beginning | None:
        """What slots still hold of the beginning of a prompt."""
        entry, ids = request.entry, request.ids
        shared = [shared_start(ids, known) if e == entry else 0 for e, known in self.known]
        slot = max(range(len(shared)), key=shared.__getitem__)
        return Beginning(ids[: shared[slot]], self.cache, slot) if shared[slot] else None

    def take(self, rows: list[Row], logits: Tensor, where: list[list[int]]) -> list[Event]:
        """Let rows go on by logits [B, V], of which each has those of the given indices."""
        logits = logits.to(self.model.device)
        plain = [(row, at[0]) for row, at in zip(rows, where, strict=True) if not row.beams]
        events = []
        if plain:
            chosen, at = [row for row, _ in plain], [at for _, at in plain]
            some = logits if at == list(range(len(logits))) else logits[at]
            tokens = choose(
                some[:, : self.vocab_size],
                [row.request.sampling for row in chosen],
                [row.generator for row in chosen],
            )
            self.last[[row.slots[0] for row in chosen]] = tokens
            grown = zip(chosen, tokens.tolist(), some, strict=True)
            events += [self.extend(row, token, scores) for row, token, scores in grown]
        for width in sorted({row.request.beams for row in rows} - {1}):
            these = [(row, at) for row, at in zip(rows, where, strict=True) if len(at) == width]
            some = logits[[index for _, at in these for index in at]]
            found = candidates(
                some.unflatten(0, (-1, width)), [row.beams for row, _ in these], self.vocab_size
            )
            for (row, _), continued in zip(these, found, strict=True):
                events += self.branch(row, *continued)
        return sorted(events, key=lambda event: event.number)

    def extend(self, row: Row, token: int, logits: Tensor) -> Event:
        """The next token of a row that has no beams, chosen by logits [V]."""
        if token in row.request.stop_ids:
            return self.end(row, [], "stop")
        row.tokens.append(token)
        top, event = row.request.logprobs, Event(row.number, [token])
        if row.request.stop and row.request.stop(row.tokens):
            event = self.end(row, [token], "stop")
        elif len(row.tokens) == row.longest:
            event = self.end(row, [token])
        return event if top is None else replace(event, scores=[scored(logits, token, top)])

    def branch(
        self, row: Row, totals: list[float], beams: list[int], tokens: list[int]
    ) -> list[Event]:
        """The next tokens of a row's beams: those that go on twice take the slots of dropped ones.

        The prompt's keys are the same in all of them, so only what follows it is copied.
        """
        sources = row.beams.advance(totals, beams, tokens)
        if sources is None:
            row.tokens = row.beams.best
            return [self.end(row, row.tokens, "" if len(row.tokens) == row.longest else "stop")]
        dropped = [row.slots[b] for b in range(len(row.slots)) if b not in sources]
        slots, start = [], self.fronts.columns(row.request.entry) + len(row.request.ids)
        for source in sources:
            slot = row.slots[source]
            if slot in slots:
                slot, from_slot = dropped.pop(), slot
                self.cache.copy_row(slot, self.cache, from_slot, self.cache.lengths[slot], start)
            slots.append(slot)
        row.slots = slots
        self.last[slots] = torch.tensor([text[-1] for text in row.beams.texts]).to(self.last)
        return []

    def end(self, row: Row, tokens: list[int], why: str = "") -> Event:
        self.release(row)
        short = row.longest < row.request.max_new_tokens
        return Event(row.number, tokens, why or ("positions" if short else "length"))

    def release(self, row: Row) -> None:
        for slot in row.slots:
            self.owners[slot] = None

    def close_gaps(self) -> None:
        """Move the last live rows into free slots before them."""
        live = sum(row is not None for row in self.owners)
        gaps = [slot for slot in range(live) if self.owners[slot] is None]
        last = [slot for slot in range(live, len(self.owners)) if self.owners[slot]]
        for gap, slot in zip(gaps, last, strict=True):
            row = self.owners[slot]
            self.cache.copy_row(gap, self.cache, slot, self.cache.lengths[slot])
            self.last[gap], self.known[gap] = self.last[slot], self.known[slot]
            self.owners[gap], self.owners[slot] = row, None
            row.slots[row.slots.index(slot)] = gap

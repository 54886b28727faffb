"""The decoding step as a CUDA graph: its thousand and more launches become one.

A graph repeats the launches it was captured from, at the same addresses, without Python. So the
pass that is captured has fixed shapes and reads its values from tensors that stay:

    token of each slot [B], in `ids` ─────┐
    length of each slot [B], in `counts` ─┴─ pass over one token, S keys ── logits [B, V]

B is the next size above the live slots and S the next multiple of KEYS above the longest row; each
pair is captured when it is first needed. A mask hides the keys after a row's length. Slots that
have no row compute what nobody reads.
"""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from model.fsdp import is_part
from model.language import LanguageModel
from model.slots import Slots

KEYS = 256  # steps of the number of keys: fewer captures, more keys read in vain
WARM_UP = 2  # passes before the capture, in which libraries allocate their workspaces

Capture = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]


def cuda_capture() -> Capture:
    """Capturing in CUDA graphs that share one pool of memory: only one is replayed at a time."""
    pool = torch.cuda.graph_pool_handle()

    def capture(step: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """(what replays the step, the tensor that then has its result)."""
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                step()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            result = step()
        return graph.replay, result

    return capture


CAPTURES: dict[str, Callable[[], Capture]] = {"cuda": cuda_capture}  # by kind of device


class Graphs:
    """The decoding steps of one model over one static cache. The adapters in use stay the same."""

    def __init__(self, model: LanguageModel, cache: Slots):
        self.model, self.cache = model, cache
        self.capture = CAPTURES[model.device.type]()
        self.ids = torch.zeros(len(cache.lengths), 1, dtype=torch.long, device=model.device)
        self.captured: dict[tuple[int, int], tuple[Callable[[], None], Tensor]] = {}
        self.failed = False

    def sizes(self, rows: int) -> tuple[int, int]:
        """(slots, keys) of the graph for the next token of the first `rows` slots."""
        slots, keys = 1, max(self.cache.lengths[:rows]) + 1
        while slots < rows:
            slots *= 2
        return min(slots, len(self.ids)), min(-(-keys // KEYS) * KEYS, self.cache.length)

    def step(self, ids: Tensor) -> Tensor | None:
        """The next token ids [B] of the first B slots -> logits [B, V], which the next step
        overwrites. None where it cannot be captured: a warning has said so, once.

        The cache's lengths are those from before; `moved_on` is left to the caller.
        """
        rows = len(ids)
        limit = self.model.shape.positions
        too_long = limit is not None and max(self.cache.lengths[:rows]) >= limit
        if self.failed or (too_long and not self.model.warned_of_length):  # a plain pass warns
            return None
        self.ids[:rows, 0] = ids
        slots, keys = self.sizes(rows)
        if (slots, keys) not in self.captured:
            try:
                self.captured[slots, keys] = self.capture(lambda: self.one_token(slots, keys))
            except RuntimeError as error:
                self.failed = True
                reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
                warnings.warn(f"answers are made without CUDA graphs: {reason}", stacklevel=2)
                return None
        replay, logits = self.captured[slots, keys]
        replay()
        return logits[:rows]

    def one_token(self, slots: int, keys: int) -> Tensor:
        """The pass that is captured: nothing in it depends on values that Python knows."""
        self.cache.begin(slots, keys)
        warned, self.model.warned_of_length = self.model.warned_of_length, True
        try:
            hidden = self.model.hidden(self.ids[:slots], cache=self.cache)
            return self.model.logits(hidden[:, -1])
        finally:
            self.model.warned_of_length = warned


def graphs_for(model: LanguageModel, cache: Slots, by_row: bool) -> Graphs | None:
    """Graphs of the decoding step, where there can be some: on one GPU that has all weights, if
    rotary angles do not depend on the length of a row, and no adapters on the row (by_row)."""
    fixed = not (model.stages or by_row or model.depends_on_length)
    usable = fixed and model.graphs and model.device.type in CAPTURES
    usable = usable and not any(map(is_part, model.parameters()))
    return Graphs(model, cache) if usable else None

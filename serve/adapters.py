"""The adapters that are served: each is an entry of Rows by its name; the base is entry 0."""

import time
from dataclasses import dataclass, field
from pathlib import Path

from adapters.attach import adapter_names, in_order, remove, unchanged_on_error, use
from adapters.rows import Rows
from adapters.several import load_any
from data.prompts import Template
from data.stored_template import stored_template
from files.errors import UserError
from model.language import LanguageModel
from model.tokenizer import Tokenizer
from serve.questions import Refused

MOST = 64  # adapters at a time


@dataclass
class Served:
    """An adapter, or the base."""

    name: str  # "" is the base
    template: Template  # of chats
    folder: str = ""
    entry: int = 0
    loaded: tuple[str, ...] = ()  # names in the model, those built on others last
    running: int = 0  # answers on their way
    since: int = field(default_factory=lambda: int(time.time()))  # seconds since 1970


class Shelf:
    """What a model can answer with. Only one thread may change it, between passes of the engine."""

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer, template: Template):
        self.model, self.tokenizer = model, tokenizer
        self.base = Served("", template)
        self.named: dict[str, Served] = {}  # those that can be asked for
        self.leaving: list[Served] = []  # unloaded while they answer
        self.stacks: list[tuple[str, ...]] = [()]  # of each entry, what is applied in order
        self.count = 0  # loaded so far
        self.put_in_use()

    def find(self, name: str) -> Served:
        """Raises Refused for a name that is not there."""
        if name and name not in self.named:
            raise Refused("model_not_found", f"there is no model {name!r}")
        return self.named[name] if name else self.base

    def load(self, name: str, folder: str | Path) -> Served:
        """Load the adapter of a folder, in an entry that is new or free again.

        It can be asked for when it is put into `named`, after the engine knows the entry.

        Raises UserError, with nothing changed.
        """
        if name in self.named:
            raise UserError(f"there is an adapter {name!r} already: unload it first")
        if len(self.named) + len(self.leaving) >= MOST:
            raise UserError(f"there are {MOST} adapters, the most at a time: unload one first")
        there, self.count = adapter_names(self.model), self.count + 1
        try:
            with unchanged_on_error(self.model):
                use(self.model, [])
                run = load_any(self.model, folder, f"served{self.count}")
                stack, template = in_order(self.model), stored_template([run], self.tokenizer)
                if not all(isinstance(entry, str) for entry in stack):
                    raise UserError(
                        f"{folder}: {stack} cannot be served; `combine` makes one of it"
                    )
        finally:
            self.put_in_use()
        loaded = tuple(entry for entry in adapter_names(self.model) if entry not in there)
        used = {0} | {served.entry for served in [*self.named.values(), *self.leaving]}
        entry = next(i for i in range(len(used) + 1) if i not in used)
        self.stacks[entry : entry + 1] = [tuple(stack)]
        self.put_in_use()
        template = template or self.base.template
        return Served(name, template, str(folder), entry, loaded)

    def unload(self, name: str) -> None:
        """No question may name it any more; it goes when its last answer is over."""
        served = self.find(name)
        del self.named[name]
        self.leaving.append(served)
        self.tidy()

    def tidy(self) -> None:
        """Take out of the model what nobody uses any more."""
        over = [served for served in self.leaving if not served.running]
        for served in over:
            self.leaving.remove(served)
            self.stacks[served.entry] = ()
            for name in reversed(served.loaded):  # a fusion before its members
                remove(self.model, name)
        if over:
            self.put_in_use()

    def put_in_use(self) -> None:
        """Each entry's adapters in its row: the first of all stacks in one Rows, and so on."""
        depth = max(1, *map(len, self.stacks))
        rows = [[*stack, *[None] * (depth - len(stack))] for stack in self.stacks]
        use(self.model, [Rows(*column) for column in zip(*rows, strict=True)])

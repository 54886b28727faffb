"""A frozen adapter whose distribution another one learns (Hinton et al. 2015, at temperature 1).

Both sit on the same base, which is in memory once: of each micro-batch the teacher computes its
last hidden states, without gradients, before the adapter in training reads it. The loss of a
labelled token is KL(teacher || student), in place of the cross-entropy of the data's token.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from adapters.attach import adapters_named, setup, switch
from data.batches import Batch, Example, Labels, batch_of
from model.language import LanguageModel
from model.packing import pick
from model.rope_scaling import positions_of

TEACHER = "teacher"  # the name of the adapter that a run learns from


@dataclass(frozen=True)
class Teacher:
    """The adapter of this name, the only one on the base, without its dropout."""

    model: LanguageModel
    name: str = TEACHER

    @contextmanager
    def speaking(self) -> Iterator[None]:
        """Without gradients, with no other adapter on."""
        before = setup(self.model)
        switch(self.model, [self.name], [])
        for adapter in adapters_named(self.model, self.name).values():
            adapter.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            switch(self.model, *before)

    def taught(self, batch: Batch, rows: Sequence[Example], pad_id: int) -> Batch:
        """The micro-batch of these rows with the teacher's distributions as its targets."""
        with self.speaking():  # its virtual tokens may be others, and so the places of labels
            packing = batch.labels.packing is not None
            own = batch_of(rows, pad_id, batch.ids.device, packing, self.model.prompt_length)
        return batch._replace(labels=self.targets(batch.labels, *own))

    def targets(
        self, labels: Labels, ids: Tensor, weights: Tensor, lengths: Tensor | None, own: Labels
    ) -> Labels:
        """`labels` with distributions as targets. own: the labels of the same rows as the teacher
        reads them; their order is the same, but for those of weight 0 that packing adds."""
        with self.speaking():
            positions = positions_of(self.model, ids, lengths)
            hidden = self.model.hidden(
                ids, positions=positions, packing=own.packing, prompts=own.prompts
            )
        hidden = hidden[0] if own.packing else pick(hidden, own.places)
        states = hidden.new_zeros(len(labels.weights), hidden.shape[-1])
        real = min(len(states), len(hidden))
        states[:real] = hidden[:real]
        return labels._replace(targets=Distributions(self, states))


@dataclass(frozen=True)
class Distributions:
    """What the teacher says of L tokens: logits float32 [l, V] of a slice of them at a time."""

    teacher: Teacher
    states: Tensor  # [L, E]

    def to(self, device: torch.device) -> "Distributions":
        return self  # the logits are computed on the head's device

    def __getitem__(self, tokens: slice) -> Tensor:
        with self.teacher.speaking():
            return self.teacher.model.logits(self.states[tokens])

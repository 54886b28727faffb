"""The same models in transformers, and what is compared with them."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from eval.generate import left_pad

GOLDEN = Path(__file__).parent / "golden"
PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13, 14], [15], [16, 17, 18, 19], [20, 21]]


def reference(folder: Path, dtype: torch.dtype = torch.float32):
    """transformers' model of a checkpoint of the tests, in a third of from_pretrained's time."""
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.from_pretrained(folder)
    kind = transformers.AutoModelForCausalLM
    model = kind.from_config(config, dtype=dtype, attn_implementation="eager")
    found = model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    tied = ["lm_head.weight"] if config.tie_word_embeddings else []
    assert found.missing_keys == tied  # a bias that we forgot would be random there
    assert not found.unexpected_keys
    return model.eval()


def positions_of(model, mask: torch.Tensor) -> dict:
    """The positions as an argument, for the families whose reference takes them."""
    return (
        {}
        if model.config.model_type == "bloom"
        else {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    )


def by_transformers(
    reference, rows: list[list[int]], stop_ids: Sequence[int], **settings
) -> list[list[int]]:
    """The new tokens of transformers' generate on a left-padded batch, cut in front of the stop
    token.
    """
    ids, mask = left_pad(rows, 0, "cpu")
    found = reference.generate(
        ids,
        attention_mask=mask,
        do_sample=False,
        eos_token_id=list(stop_ids) or None,
        pad_token_id=0,
        **settings,
    )[:, ids.shape[1] :]
    return [
        list(itertools.takewhile(lambda token: token not in stop_ids, row))
        for row in found.tolist()
    ]


def as_transformers_model(model):
    """Our model, adapters and all, under transformers' generate; without a cache, so that
    reordering one is no part of it.
    """
    transformers = pytest.importorskip("transformers")

    class Wrapped(transformers.PreTrainedModel, transformers.GenerationMixin):
        config_class = transformers.PretrainedConfig

        def __init__(self):
            super().__init__(
                transformers.PretrainedConfig(
                    vocab_size=model.config.vocab_size, num_hidden_layers=1
                )
            )
            self.place = torch.nn.Parameter(torch.zeros(1))  # where it is
            self.inner = [model]  # in a list: not to be counted, moved or initialised

        def forward(self, input_ids, attention_mask=None, **_):
            return transformers.modeling_outputs.CausalLMOutput(
                logits=self.inner[0](input_ids, attention_mask)
            )

        def prepare_inputs_for_generation(self, input_ids, attention_mask=None, **_):
            return {"input_ids": input_ids, "attention_mask": attention_mask}

    return Wrapped()

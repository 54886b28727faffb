"""The language models: `load_model` and `load_tokenizer`. Knows nothing of adapters."""

from files.errors import UserError
from model.load import load_model
from model.tokenizer import load_tokenizer

__all__ = ["UserError", "load_model", "load_tokenizer"]

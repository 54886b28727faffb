"""Adapters: one method, one file; `attach` puts them into a model's sites."""

from adapters.attach import attach, named_parameters, parameters, use
from adapters.files import load_adapter, save_adapter
from adapters.merge import merge

__all__ = ["attach", "load_adapter", "merge", "named_parameters", "parameters", "save_adapter", "use"]

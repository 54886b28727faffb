"""Adapters: one method, one file; `attach` puts them into a model's sites."""

from adapters.attach import attach, remove, use
from adapters.begin import begin
from adapters.combine import combine
from adapters.compose import Average
from adapters.formats.folders import load_adapter, save_adapter
from adapters.in_use import named_parameters, parameters
from adapters.merge import merge
from adapters.rows import Rows
from adapters.several import load_adapters, save_adapters

__all__ = [
    "Average", "Rows", "attach", "begin", "combine", "load_adapter", "load_adapters", "merge",
    "named_parameters", "parameters", "remove", "save_adapter", "save_adapters", "use",
]  # fmt: skip

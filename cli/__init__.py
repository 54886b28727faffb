"""The command line, one file a command. Importing it does not import torch."""

__version__ = "0.1.0"  # pyproject.toml reads it

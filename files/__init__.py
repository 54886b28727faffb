"""Errors, typed tables, progress bars, atomic writing and reading of files."""

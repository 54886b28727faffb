"""Errors, typed tables, atomic writing and reading of files."""

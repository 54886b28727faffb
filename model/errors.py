"""`UserError`, where callers of `model` look for it; it is defined in files/errors.py."""

from files.errors import UserError

__all__ = ["UserError"]

"""Adapter files: ours, PEFT's, the paper repository's; merged models."""

"""The paper repository's adapter files (placeholder, being written)."""


def is_ours(raw, tensors):
    return False


def write(model, config, adapters): ...
def read(model, raw, tensors, where): ...

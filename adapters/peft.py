"""PEFT's adapter files (placeholder, being written)."""


def header(model, config, adapters):
    return {"peft_type": config.kind.upper(), "task_type": "CAUSAL_LM", "base_model_name_or_path": str(model.folder), "inference_mode": True}


def write(model, config, adapters, plain): ...
def read(model, raw, tensors, where): ...
def check_base(model, raw, folder): ...

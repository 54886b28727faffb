"""What a model_type of llama.py has and another has not: sliding windows and biases.

A sliding window lets a query see its last keys alone, in

    mistral         every layer, or those that layer_types names "sliding_attention", while
                    sliding_window is not null
    qwen2, qwen3    with use_sliding_window, the layers from max_window_layers on, or those that
                    layer_types names "sliding_attention"
    llama           none

Biases of all attention Linears and of the MLP's are a setting of some.
"""

from files.errors import UserError

TYPES = {"full_attention", "sliding_attention"}
BIASES = {"attention_bias": ("llama", "qwen3"), "mlp_bias": ("llama",)}  # setting -> who has it


def window_of(config, layer: int) -> int | None:
    """How many keys a query of this layer sees, its own included; None: all up to its own."""
    if not config.use_sliding_window:
        return None
    if config.layer_types is None:
        slides = layer >= config.max_window_layers
    else:
        slides = config.layer_types[layer] == "sliding_attention"
    return config.sliding_window if slides else None


def check_row(config) -> None:
    """Raise UserError for settings that contradict each other, or what the model_type does."""
    kind, types, layers = config.model_type, config.layer_types, config.num_hidden_layers
    for name, kinds in BIASES.items():
        if getattr(config, name) and kind not in kinds:
            raise UserError(
                f"config.json: {name} = true is no setting of a {kind} model: its published "
                f"weights have no such biases; set it to false if these have none either"
            )
    if types is not None and (
        len(types) != layers or not all(isinstance(one, str) and one in TYPES for one in types)
    ):
        raise UserError(
            f"config.json: layer_types should name full_attention or sliding_attention for each "
            f"of the {layers} layers, not {types!r:.200}"
        )
    windows = [window_of(config, layer) for layer in range(layers)]
    if types is not None and windows.count(None) != types.count("full_attention"):
        raise UserError(
            "config.json: layer_types has sliding_attention, and sliding_window or "
            "use_sliding_window is off: set layer_types to null if all layers see all keys"
        )
    if kind == "llama" and any(windows):
        raise UserError(
            f"config.json: sliding_window = {config.sliding_window} is not supported in a llama "
            f"model, which sees all keys: set it to null, or model_type to mistral if it was "
            f"trained with a window"
        )
    if kind == "mistral" and config.sliding_window and types is None and None in windows:
        raise UserError(
            f"config.json: sliding_window = {config.sliding_window} holds in every layer of a "
            f"mistral model, and use_sliding_window or max_window_layers says otherwise: set "
            f"sliding_window to null if it is off, or delete the other"
        )

"""The Config of llama.py, and what its model types do not have in common.

With a sliding window a query sees only its last keys:

    mistral         every layer, or those that layer_types names "sliding_attention", unless
                    sliding_window is null
    qwen2, qwen3    with use_sliding_window, the layers from max_window_layers on, or those that
                    layer_types names "sliding_attention"
    llama           none
"""

from dataclasses import dataclass

from files.errors import UserError
from model.parts import Shape, check_sizes
from model.rope_scaling import check_rope

QWEN = {
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "use_sliding_window": False,
    "max_window_layers": 28,
}
ROWS = {  # model_type -> the defaults that differ from those of Config
    "llama": {},
    "qwen2": QWEN,
    "qwen3": {**QWEN, "head_dim": 128},
    "mistral": {
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
    },
}
QK_NORMS = {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}  # qwen3's further sites
PICTURE_QK_NORMS = """\
x ─┬─ [attn_norm] ─┬─ [q] ─ [q_norm] ─ rotary ─┐
   │               ├─ [k] ─ [k_norm] ─ rotary ─┤
   │               └─ [v] ─────────────────────┴─ [kv] ─ attention ─ [o] ─ [attn] ─ + ─┐
   └────────────────────────────────────────────────────────────────────────────────┘  │
┌──────────────────────────────────────────────────────────────────────────────────────┘
└──┬─ [mlp_norm] ──┬─ [gate] ─ act ─┐
   │               └─ [up] ─────────× ─ [down] ─ [mlp] ─ + ─ [block] ─ x
   └─────────────────────────────────────────────────────┘"""
TYPES = {"full_attention", "sliding_attention"}
BIASES = {
    "attention_bias": ("llama", "qwen3"),
    "mlp_bias": ("llama",),
}  # setting -> model types that have it


@dataclass(frozen=True)
class Config:
    """The fields of config.json that change the computation, by their published names."""

    model_type: str = "llama"
    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None  # None: one per attention head
    head_dim: int | None = None  # None: hidden_size / num_attention_heads
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: dict | None = None
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    sliding_window: int | None = None  # keys that a query sees, its own included; None: all
    use_sliding_window: bool = True  # this and the next two: in which layers: `window_of`
    max_window_layers: int = 0
    layer_types: list | None = None

    @property
    def kv_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_size(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def shape(self) -> Shape:
        heads, positions = self.num_attention_heads, self.max_position_embeddings
        return Shape(self.num_hidden_layers, heads, self.kv_heads, self.head_size, positions)

    def check(self) -> None:
        """Raise UserError for a setting these files cannot compute."""
        kv_heads = "num_key_value_heads" if self.num_key_value_heads else "num_attention_heads"
        check_sizes(self, "num_attention_heads", kv_heads, "hidden_act")
        if self.head_dim is None:
            check_sizes(self, "hidden_size", "num_attention_heads")
        if self.head_size % 2:
            raise UserError(f"config.json: head_dim {self.head_size} is odd; rotary needs pairs")
        check_rope(self.rope_scaling or {}, self.head_size)
        check_row(self)


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
        len(types) != layers or not all(isinstance(t, str) and t in TYPES for t in types)
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

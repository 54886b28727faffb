"""What published config.json files carry besides the settings of the model: which keys change
nothing, which may, and which classes `architectures` may name.

A key that a family's Config does not know is passed over when it changes nothing here: it is in
IGNORED or HARMLESS, fits IGNORED_NAMES, or is off (null, false, empty). Keys of NEUTRAL are known
in one value. All others may matter and are refused, all of them in one line.
"""

import logging
import re

from files.errors import UserError

logger = logging.getLogger(__name__)

IGNORED = set(
    """
    _commit_hash _fast_init _flash_attn_2_enabled _from_model_config _name_or_path _num_labels
    architectures auto_map
    chunk_size_feed_forward dtype finetuning_task fp16 bf16 fp32 gradient_checkpointing
    gradient_checkpointing_use_reentrant id2label init_std initializer_factor initializer_range
    is_decoder keys_to_ignore_at_inference label2id name_or_path neftune_noise_alpha num_labels
    output_attentions output_hidden_states output_router_logits prefix problem_type pruned_heads
    return_dict task_specific_params tie_encoder_decoder torch_dtype torchscript
    transformers.js_config transformers_version use_bfloat16 use_cache use_return_dict
    _pre_quantization_dtype cache_implementation paddlenlp_version
    use_flash_attention use_flash_attention_2 use_flash_attn flash_attention use_sdpa
    use_xformers use_memory_efficient_attention use_fused_rms_norm use_fused_rope
    use_fused_cross_entropy use_liger_kernel use_recompute recompute_granularity
    sequence_parallel_enabled sequence_parallel sequence_parallel_size tensor_parallel_degree
    tensor_parallel_output tensor_parallel_rank pipeline_parallel_degree tp_size pp_size dp_size
    name model_name base_model base_model_name license language description author version tags
    date library_name datasets
    bos_token eos_token pad_token unk_token chat_template additional_special_tokens
    max_sequence_length max_seq_length max_seq_len max_model_len model_max_length seq_length
    seq_len n_ctx max_context_length context_length
    do_sample early_stopping max_length max_new_tokens min_length min_new_tokens num_beams
    num_beam_groups num_return_sequences repetition_penalty length_penalty diversity_penalty
    no_repeat_ngram_size encoder_no_repeat_ngram_size exponential_decay_length_penalty
    bad_words_ids suppress_tokens begin_suppress_tokens remove_invalid_values output_scores
    return_dict_in_generate temperature top_k top_p typical_p penalty_alpha
""".split()
)  # the last four lines: settings of generation, which were saved here once

IGNORED_NAMES = re.compile(
    r"""
      (.*_)?(dropout|pdrop|layerdrop)(_prob|_rate|_p)?   # the base is never trained here
    | (.*_)?tokens?_ids?
    | tokenizer_.* | unsloth_.* | summary_.*
    | _?attn_implementation.*
""",
    re.VERBOSE,
)

NEUTRAL = {  # key -> the one value in which it changes nothing; false or 0 would matter
    "is_causal": True,
    "causal": True,
    "use_causal_mask": True,
    "use_residual": True,
    "normalize_before": True,
    "scale_attn_weights": True,
    "partial_rotary_factor": 1,
    "rotary_pct": 1,
    "rotary_percent": 1,
    "rope_scaling_factor": 1,
    "embedding_multiplier": 1,
    "residual_multiplier": 1,
    "logits_scaling": 1,
    "logit_scale": 1,
    "scale_emb": 1,
    "num_experts": 0,
    "num_local_experts": 0,
    "num_experts_per_tok": 0,
    "n_routed_experts": 0,
    "n_shared_experts": 0,
    "num_nextn_predict_layers": 0,
}
LONGEST = 1200  # characters of the keys named in one line


def changes_nothing(key: str, value: object, harmless: set[str], neutral: dict) -> bool:
    """Whether this key, no field of the Config, changes nothing of what the family computes."""
    if key in IGNORED or key in harmless or IGNORED_NAMES.fullmatch(key):
        return True
    if key in neutral and value is not None:
        return type(value) in (int, float, bool) and value == neutral[key]
    return value is None or value is False or (isinstance(value, str | list | dict) and not value)


def refused(keys: dict[str, object], where: str) -> UserError:
    """The error that names all keys which may change the computation, and how to go on."""
    named = ", ".join(f"{key!r:.60} = {value!r:.60}" for key, value in keys.items())
    named = named if len(named) <= LONGEST else f"{named[:LONGEST]} ..., {len(keys)} in all"
    settings = "setting is" if len(keys) == 1 else f"{len(keys)} settings are"
    these = "this key" if len(keys) == 1 else "these keys"
    return UserError(
        f"{where}: {settings} not known here and may change what the model computes: {named}; if "
        f"the model does not use {these}, delete {these} from config.json (in a copy of the folder)"
    )


def note_passed(keys: list[str], where: str) -> None:
    """Say which keys were passed over; --debug shows it."""
    logger.debug("%s: passed over, as they change nothing here: %s", where, ", ".join(keys))


WRAPPERS = {  # classes around a causal model whose name was saved in its place
    "DistributedDataParallel",
    "FullyShardedDataParallel",
    "OptimizedModule",
    "PeftModelForCausalLM",
}
NO_LANGUAGE_MODEL = {  # in the name of a class -> what it is
    r"(?i)eagle|medusa|hydra|draft|speculat|dflash|MTP": (
        "a draft head, which guesses tokens for another model"
    ),
    r"(?i)classif|reward|rank(er|ing)|scor(e|ing)|regress|value_?head|valuemodel": (
        "a classifier or reward model, which does not predict tokens"
    ),
    r"(?i)question_?answering|multiplechoice|masked_?lm|MNTP|embed|encoder|bidirec|Bi(?-i:[A-Z])"
    r"|sentence|retriev": "an encoder or reader of texts, which does not predict the next token",
    r"(?i)llava|vision|audio|speech|omni|image|(?-i:VL)|conditionalgeneration": (
        "a model of more than text, or with an encoder"
    ),
    r"(?i)mixtral|mixture|(?-i:Mo[eE]|MOE)": "a mixture of experts",
}


def check_architectures(names: object, bare: str, tied: bool, where: str) -> None:
    """Raise UserError where `architectures` of config.json names another kind of model.

    `bare` is the class without an output head: it will do where the embedding is the head (tied).
    """
    names = [names] if isinstance(names, str) else names
    if names is not None and (
        not isinstance(names, list) or not all(isinstance(name, str) for name in names)
    ):
        raise UserError(f"{where}: architectures = {names!r:.200} should be a list of class names")
    for name in names or ():
        what = "" if name in WRAPPERS else no_language_model(name, bare, tied)
        if what:
            raise UserError(
                f"{where}: architectures names {name[:100]!r}, {what}; give a causal language "
                f"model (...ForCausalLM), such as the one it was made for or from"
            )


def no_language_model(name: str, bare: str, tied: bool) -> str:
    """What a class is instead of a causal language model; "" for one."""
    for pattern, what in NO_LANGUAGE_MODEL.items():
        if re.search(pattern, name):
            return what
    if name.lower() == bare.lower():
        return "" if tied else "a model without an output head"
    if re.search(r"(ForCausalLM|LMHeadModel)(Pipe)?$", name):
        return ""
    return "which is no causal language model by its name"

"""What each key of a Hugging Face config.json means to a model of this family; `huggingface.py` reads the file by it.

Three kinds: fields of `ModelConfig`; keys that change the mathematics, accepted only at the value that changes
nothing; keys that matter to a trainer, a tokenizer or a generation default only, kept as they are. Any other key is
refused unless its value is null or false. Sources: the configuration classes of transformers 4.36 to 5.23.
"""

from typing import Any

__all__ = ["ABSENT", "ARCHITECTURES", "FIELDS", "HARMLESS", "NEUTRAL", "REQUIRED", "is_bookkeeping"]

ARCHITECTURES = {
    "mixtral": "MixtralForCausalLM", "mistral": "MistralForCausalLM", "llama": "LlamaForCausalLM",
    "coterie": "CoterieForCausalLM",  # Mixtral with another router: its own name, so that nobody runs it as Mixtral
}  # fmt: skip

REQUIRED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")

FIELDS = (
    *REQUIRED,
    "num_key_value_heads",
    "head_dim",
    "num_local_experts",
    "num_experts_per_tok",
    "norm_topk_prob",
    "max_position_embeddings",
    "rms_norm_eps",
    "sliding_window",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "router",
)

ABSENT: dict[str, dict[str, Any]] = {  # what a missing key means, by model_type: the defaults of transformers
    "mixtral": {
        "num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2, "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5, "rope_theta": 1e6, "sliding_window": None,
    },
    "mistral": {
        "num_key_value_heads": 8, "max_position_embeddings": 131072, "rms_norm_eps": 1e-6, "rope_theta": 1e4,
        "sliding_window": 4096,
    },
    "llama": {
        "num_key_value_heads": None, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 1e4,
        "sliding_window": None,
    },
}  # fmt: skip
ABSENT["coterie"] = ABSENT["mixtral"]

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "use_bias": (False,),
    "qkv_bias": (False,),
    "pretraining_tp": (1, None),
    "partial_rotary_factor": (1, 1.0, None),
    "rotary_pct": (1, 1.0, None),
    "chunk_size_feed_forward": (0, None),
    "pruned_heads": ({}, None),
    "per_layer_config": ({}, None),
    "quantization_config": (None, {"format": "coterie-packed"}),  # of a packed folder
    "is_encoder_decoder": (False, None),
    "add_cross_attention": (False, None),
    "auto_map": (None,),
}

_HARMLESS = """
    architectures model_type torch_dtype dtype tokenizer_class prefix finetuning_task task_specific_params
    problem_type id2label label2id num_labels name_or_path unsloth_fixed max_sequence_length
    model_max_length

    initializer_range attention_dropout hidden_dropout resid_pdrop embd_pdrop router_aux_loss_coef
    router_jitter_noise output_router_logits gradient_checkpointing neftune_noise_alpha

    use_cache return_dict output_hidden_states output_attentions torchscript use_bfloat16 tf_legacy_loss
    tie_encoder_decoder is_decoder cross_attention_hidden_size attn_implementation tie_last_hidden_states

    pad_token_id unk_token_id sep_token_id cls_token_id decoder_start_token_id max_length max_new_tokens min_length
    do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p typical_p
    repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
    num_return_sequences output_scores return_dict_in_generate forced_bos_token_id forced_eos_token_id
    remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens
"""  # of the file and its writer, of training, of how transformers runs, of special tokens and generation
HARMLESS = frozenset(_HARMLESS.split())


def is_bookkeeping(key: str) -> bool:
    """Whether a key's very form says that it is a writer's note: `_name_or_path`, `transformers_version`."""
    return key.startswith("_") or key.endswith("_version")

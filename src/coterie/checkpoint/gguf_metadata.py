"""The keys of a GGUF file that say what the model is, read and written. Mixtral and Mistral files say they are llama.

As in a config.json, a `llama.` key is a field of the model, or one that changes the mathematics and is accepted at the
value that changes nothing, or one that only informs; any other is refused. Numbers are float32 in the file: 1e-5 comes
back as 1e-5 and not as 9.999999747378752e-06, which is what Hugging Face's files had before.
"""

from typing import Any

import numpy as np

from coterie.config import ModelConfig
from coterie.errors import ConfigError, nearest

__all__ = ["check_kind", "config_from_metadata", "config_to_metadata"]

_FIELDS = {  # after "llama."
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
    "attention.sliding_window": "sliding_window",
    "expert_count": "num_local_experts",
    "expert_used_count": "num_experts_per_tok",
    "rope.freq_base": "rope_theta",
}
_REQUIRED = (
    *("context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count"),
    "attention.layer_norm_rms_epsilon",
)
_FLOATS = ("rms_norm_eps", "rope_theta")
_CHECKED = ("vocab_size", "attention.value_length", "rope.dimension_count", "expert_feed_forward_length")
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "rope.scaling.type": ("none",),
    "rope.scaling.factor": (1.0, 0.0),
    "rope.scaling.attn_factor": (1.0, 0.0),
    "rope.scale_linear": (1.0,),
    "expert_shared_count": (0,),
    "expert_weights_norm": (True,),
    "expert_weights_scale": (1.0, 0.0),
    "expert_gating_func": (1,),  # softmax
    "expert_group_count": (0,),
    "expert_group_used_count": (0,),
    "leading_dense_block_count": (0,),
    "interleave_moe_layer_step": (0, 1),
    "attention.causal": (True,),
    "attention.scale": (0.0,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "logit_scale": (1.0, 0.0),
    "residual_scale": (1.0, 0.0),
    "embedding_scale": (1.0, 0.0),
    "use_parallel_residual": (False,),
    "pooling_type": (0,),
}
_HARMLESS = ("tensor_data_layout", "rope.scaling.original_context_length", "rope.scaling.finetuned")
_PREFIX = "llama."


def config_from_metadata(
    metadata: dict[str, Any], where: str, *, vocab_size: int, is_tied: bool, dtype: str
) -> ModelConfig:
    """The model that the keys describe; what only the tensors say is handed in."""
    values = {key.removeprefix(_PREFIX): value for key, value in metadata.items() if key.startswith(_PREFIX)}
    _check_keys(values, where)
    chosen = {field: _plain(values[key], key, where) for key, field in _FIELDS.items() if key in values}
    chosen.setdefault("num_key_value_heads", chosen["num_attention_heads"])
    chosen.setdefault("rope_theta", 10000.0)
    chosen["sliding_window"] = chosen.get("sliding_window") or None
    chosen["num_local_experts"] = chosen.get("num_local_experts") or None
    if chosen["num_local_experts"] is None:
        if chosen.pop("num_experts_per_tok", 0):
            raise ConfigError(f"{where}: llama.expert_used_count is there without llama.expert_count")
    elif "num_experts_per_tok" not in chosen:
        raise ConfigError(f"{where}: 'llama.expert_used_count' is missing")
    chosen["head_dim"] = chosen.get("head_dim") or _plain(values.get("rope.dimension_count", 0), "rope", where)
    chosen |= _special_ids(metadata, where)
    chosen |= {"vocab_size": vocab_size, "tie_word_embeddings": is_tied, "torch_dtype": dtype}
    try:
        config = ModelConfig.from_fields(chosen, where=where)
    except ConfigError as e:
        raise ConfigError(_in_their_words(str(e))) from None
    _check_sizes(values, config, where)
    return config


def config_to_metadata(config: ModelConfig, name: str) -> dict[str, tuple[str, Any]]:
    """Key -> (type, value) of what a file must say about a model; without the vocabulary's."""
    if not config.norm_topk_prob:
        raise ConfigError("norm_topk_prob is false, which a GGUF file of this architecture cannot say")
    fields = config.to_fields()
    keys: dict[str, tuple[str, Any]] = {
        "general.architecture": ("string", "llama"),
        "general.type": ("string", "model"),
        "general.name": ("string", name),
    }
    for key, field in _FIELDS.items():
        value = fields[field]
        if value is not None and (config.is_sparse or not field.startswith("num_experts")):
            keys[_PREFIX + key] = ("f32" if field in _FLOATS else "u32", value)
    keys[f"{_PREFIX}attention.value_length"] = ("u32", config.head_dim)
    keys[f"{_PREFIX}rope.dimension_count"] = ("u32", config.head_dim)
    keys[f"{_PREFIX}vocab_size"] = ("u32", config.vocab_size)
    return keys


def check_kind(metadata: dict[str, Any], where: str) -> None:
    """`ConfigError` where the file is no model of an architecture that is read."""
    architecture, kind = metadata.get("general.architecture"), metadata.get("general.type", "model")
    if architecture != "llama":
        found = "is missing" if architecture is None else f"is {str(architecture)[:60]!r}"
        raise ConfigError(
            f"{where}: general.architecture {found}; expected 'llama', as files of Mixtral, Mistral and Llama have it"
        )
    if kind != "model":
        raise ConfigError(f"{where}: general.type is {str(kind)[:60]!r}, expected 'model'")


def _check_keys(values: dict[str, Any], where: str) -> None:
    for key in _REQUIRED:
        if key not in values:
            raise ConfigError(f"{where}: '{_PREFIX}{key}' is missing{nearest(key, set(values) - set(_FIELDS))}")
    for key, value in values.items():
        if key in _FIELDS or key in _CHECKED or key in _HARMLESS or value is False:
            continue
        if key not in _NEUTRAL:
            raise ConfigError(
                f"{where}: the key {(_PREFIX + key)[:80]!r} (value {str(value)[:60]!r}) is unknown and may change what "
                f"the model computes{nearest(key, (*_FIELDS, *_NEUTRAL, *_HARMLESS))}"
            )
        if isinstance(value, np.ndarray | list) or value not in _NEUTRAL[key]:
            raise ConfigError(
                f"{where}: {_PREFIX}{key} is {str(value)[:60]!r}, which is not supported; only {_NEUTRAL[key][0]!r} is"
            )


def _plain(value: Any, key: str, where: str) -> Any:
    """A Python number; one for each layer is accepted where all are the same."""
    if isinstance(value, np.ndarray):
        if not len(value) or (value != value[0]).any():
            raise ConfigError(f"{where}: {_PREFIX}{key} differs from layer to layer, which is not supported")
        value = value[0].item()
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _special_ids(metadata: dict[str, Any], where: str) -> dict[str, Any]:
    """The ids that begin and end a text; where a file has a vocabulary and does not say, llama.cpp's 1 and 2."""
    is_llama = metadata.get("tokenizer.ggml.model") == "llama"
    found = {
        name: metadata.get(f"tokenizer.ggml.{name}_token_id", {"bos": 1, "eos": 2}.get(name) if is_llama else None)
        for name in ("bos", "eos", "eot", "eom")
    }
    for name, value in found.items():
        if value is not None and type(value) is not int:
            raise ConfigError(f"{where}: tokenizer.ggml.{name}_token_id is {str(value)[:60]!r}, expected an id")
    ends = tuple(dict.fromkeys(i for i in (found["eos"], found["eot"], found["eom"]) if i is not None))
    return {"bos_token_id": found["bos"], "eos_token_id": ends if len(ends) > 1 else (ends[0] if ends else None)}


def _check_sizes(values: dict[str, Any], config: ModelConfig, where: str) -> None:
    """Keys that repeat what others say must say the same."""
    for key, expected in (
        ("vocab_size", config.vocab_size),
        ("attention.value_length", config.head_dim),
        ("rope.dimension_count", config.head_dim),
        ("expert_feed_forward_length", config.intermediate_size),
    ):
        if key in values and (found := _plain(values[key], key, where)) != expected:
            raise ConfigError(
                f"{where}: {_PREFIX}{key} is {found}, expected {expected}; anything else is not supported"
            )


def _in_their_words(message: str) -> str:
    """A message on the fields of a ModelConfig with the names that the file has for them."""
    for key, field in _FIELDS.items():
        message = message.replace(f" {field} ", f" {_PREFIX}{key} ")
    return message

"""Mistral's own folders: params.json and consolidated*.safetensors.

Their query and key rows are interleaved (`names.Place.n_heads`), and params.json has no word for much that a Hugging
Face config.json says (special tokens, training settings): those ride along under the key `huggingface`, so that a
round trip loses nothing. A missing `rope_theta` means 1e6 without a sliding window and 1e4 with one, as Mistral's
program has it.
"""

import re
from pathlib import Path
from typing import Any

from coterie.checkpoint.json_text import read_object
from coterie.config import ModelConfig
from coterie.errors import ConfigError, nearest

__all__ = ["config_from_params", "config_to_params", "read_params"]

_FIELDS = {  # params.json: ModelConfig
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "head_dim": "head_dim",
    "hidden_dim": "intermediate_size",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "norm_eps": "rms_norm_eps",
    "vocab_size": "vocab_size",
    "rope_theta": "rope_theta",
    "sliding_window": "sliding_window",
    "max_position_embeddings": "max_position_embeddings",
    "max_seq_len": "max_position_embeddings",
    "tied_embeddings": "tie_word_embeddings",
}
_REQUIRED = ("dim", "n_layers", "hidden_dim", "n_heads", "n_kv_heads", "norm_eps", "vocab_size")
_MOE = {"num_experts": "num_local_experts", "num_experts_per_tok": "num_experts_per_tok"}
_NEUTRAL: dict[str, tuple[Any, ...]] = {  # keys of other published models, at the value that changes nothing
    "model_type": ("transformer",),
    "activation": ("silu",),
    "use_biases": (False,),
    "causal": (True,),
    "rope_scaling_factor": (1, 1.0),
}
_HARMLESS = frozenset({"multiple_of", "max_batch_size", "architectures", "dtype", "torch_dtype", "huggingface"})
_KEPT = ("bos_token_id", "eos_token_id", "norm_topk_prob")


def read_params(path: Path) -> ModelConfig:
    """The model a params.json (or the folder that holds it) describes; `ConfigError` names what is wrong in it."""
    path = path / "params.json" if path.is_dir() else path
    return config_from_params(read_object(path, ConfigError), str(path))


def config_from_params(values: dict[str, Any], where: str) -> ModelConfig:
    """The model that the object of a params.json describes; `where` names the file in messages."""
    _check_keys(values, where)
    chosen: dict[str, Any] = {}
    for key, field in _FIELDS.items():
        if values.get(key) is not None:
            chosen.setdefault(field, values[key])
    chosen.setdefault("rope_theta", 1e6 if chosen.get("sliding_window") is None else 1e4)
    chosen |= _experts(values.get("moe"), where)
    rest = values.get("huggingface") or {}
    if not isinstance(rest, dict):
        raise ConfigError(f"{where}: huggingface is {rest!r}, expected a table")
    chosen |= {key: rest[key] for key in _KEPT if key in rest}
    extra = {key: value for key, value in rest.items() if key not in _KEPT}
    dtype = extra.get("dtype") or extra.get("torch_dtype")
    if dtype is not None:
        chosen["torch_dtype"] = dtype
    try:
        return ModelConfig.from_fields({**chosen, "extra": extra}, where=where)
    except ConfigError as e:
        raise ConfigError(_in_their_words(str(e), values)) from None


def config_to_params(config: ModelConfig) -> dict[str, Any]:
    """The params.json of a model."""
    fields = config.to_fields()
    params: dict[str, Any] = {key: fields[field] for key, field in _FIELDS.items() if key != "max_seq_len"}
    if not config.tie_word_embeddings:
        del params["tied_embeddings"]
    if config.sliding_window is None:
        del params["sliding_window"]
    if config.is_sparse:
        params["moe"] = {key: fields[field] for key, field in _MOE.items()}
    defaults = ModelConfig(vocab_size=3, hidden_size=2, num_attention_heads=1, num_key_value_heads=1).to_fields()
    rest = {key: config.torch_dtype if key in ("dtype", "torch_dtype") else v for key, v in config.extra.items()}
    rest |= {key: fields[key] for key in _KEPT if fields[key] != defaults[key]}
    return params | ({"huggingface": rest} if rest else {})


def _check_keys(values: dict[str, Any], where: str) -> None:
    for key in _REQUIRED:
        if values.get(key) is None:
            raise ConfigError(f"{where}: {key!r} is missing{nearest(key, set(values) - set(_FIELDS))}")
    for key, value in values.items():
        if key in _FIELDS or key == "moe" or key in _HARMLESS or value is None or value is False:
            continue
        if key not in _NEUTRAL:
            known = {*_FIELDS, *_NEUTRAL, *_HARMLESS, "moe"}
            raise ConfigError(
                f"{where}: the key {key!r} (value {repr(value)[:60]}) is unknown and may change what the model computes"
                f"{nearest(key, known)}"
            )
        if not any(type(value) is type(v) and value == v for v in _NEUTRAL[key]):
            raise ConfigError(
                f"{where}: {key} is {repr(value)[:60]}, which is not supported; only {_NEUTRAL[key][0]!r} is"
            )


def _in_their_words(message: str, values: dict[str, Any]) -> str:
    """A message on the fields of a ModelConfig with the names that params.json has for them."""
    moe = values.get("moe")
    theirs = _FIELDS | {f"moe.{key}": field for key, field in _MOE.items()}
    for key, field in theirs.items():
        if key in values or (isinstance(moe, dict) and field in _MOE.values()):
            message = re.sub(rf"\b{field}\b", key, message)
    return message


def _experts(moe: Any, where: str) -> dict[str, Any]:
    if moe is None:
        return {"num_local_experts": None}
    if not isinstance(moe, dict):
        raise ConfigError(f"{where}: moe is {moe!r}, expected a table with num_experts and num_experts_per_tok")
    for key, value in moe.items():
        if key not in _MOE and value is not None and value is not False:
            raise ConfigError(
                f"{where}: moe.{key} is unknown and may change what the model computes{nearest(key, _MOE)}"
            )
    for key in _MOE:
        if moe.get(key) is None:
            raise ConfigError(f"{where}: moe.{key} is missing")
    return {field: moe[key] for key, field in _MOE.items()}

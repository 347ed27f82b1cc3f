"""Hugging Face folders: config.json of transformers 4 and 5 read and written, weights written under version-4 names.

What a missing key means is transformers' own default for the model_type (a Mistral config without `sliding_window`
has a window of 4096; with null it has none). A key that would change the mathematics is never passed over: see
`huggingface_keys.py`. Weights are written one tensor per expert, which transformers 4 and 5 and vLLM all load.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coterie.checkpoint.atomic import new_file, new_folder, require_disk
from coterie.checkpoint.huggingface_keys import (
    ABSENT,
    ARCHITECTURES,
    FIELDS,
    HARMLESS,
    NEUTRAL,
    REQUIRED,
    is_bookkeeping,
)
from coterie.checkpoint.json_text import read_object
from coterie.checkpoint.names import Place, is_exact, places
from coterie.checkpoint.numbers import file_bytes, file_type
from coterie.checkpoint.safetensors import TensorSpec, write_file
from coterie.config import ModelConfig
from coterie.errors import CheckpointError, ConfigError, nearest

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "LARGEST_SHARD",
    "config_from_json",
    "config_to_json",
    "copy_files",
    "read_config",
    "save_huggingface",
    "write_json",
    "write_shards",
    "write_sidecars",
]

LARGEST_SHARD = 5_000_000_000  # bytes of tensors; the hub's own limit per shard
_TOP_LEVEL_ROPE = ("rope_theta", "rope_parameters", "rope_scaling")
_IMPLIED = (*_TOP_LEVEL_ROPE, "layer_types")  # read, and written anew or left out


def read_config(path: Path) -> ModelConfig:
    """The model a config.json (or the folder that holds it) describes; `ConfigError` names what is wrong in it."""
    path = path / "config.json" if path.is_dir() else path
    return config_from_json(read_object(path, ConfigError), str(path))


def config_from_json(values: dict[str, Any], where: str) -> ModelConfig:
    """The model that the object of a config.json describes; `where` names the file in messages."""
    kind = _model_type(values, where)
    _check_keys(values, where)
    absent = ABSENT[kind]
    chosen = {key: values.get(key, absent.get(key)) for key in FIELDS if key in values or key in absent}
    if chosen.get("num_key_value_heads") is None:
        chosen["num_key_value_heads"] = chosen["num_attention_heads"]
    if chosen.get("head_dim") is None:
        chosen["head_dim"] = 0
    elif chosen["head_dim"] == 0:
        raise ConfigError(f"{where}: head_dim is 0, expected null or a positive even number")
    if kind != "coterie" and chosen.get("router") is not None:
        raise ConfigError(f"{where}: router is given, which only the model_type 'coterie' has, and this is {kind!r}")
    if kind not in ("mixtral", "coterie"):
        _refuse_experts(chosen, kind, where)
    elif chosen["num_local_experts"] is None:
        raise ConfigError(f"{where}: num_local_experts is null, expected a whole number for a mixture of experts")
    if kind == "llama" and chosen["sliding_window"] is not None:
        raise ConfigError(f"{where}: sliding_window is {chosen['sliding_window']!r}, a llama model has none")
    _check_layer_types(values.get("layer_types"), chosen, where)
    chosen["rope_theta"] = _rope_theta(values, absent["rope_theta"], where)
    dtype = values.get("dtype") or values.get("torch_dtype")
    if dtype is not None:
        chosen["torch_dtype"] = dtype
    extra = {key: value for key, value in values.items() if key not in (*FIELDS, *_IMPLIED)}
    return ModelConfig.from_fields({**chosen, "extra": extra}, where=where)


def config_to_json(config: ModelConfig) -> dict[str, Any]:
    """The config.json of a model, readable by transformers 4 (`rope_theta`) and 5 (`rope_parameters`)."""
    kind = _kind_of(config)
    fields = config.to_fields()
    dtype, theta = fields.pop("torch_dtype"), fields.pop("rope_theta")
    if not config.is_sparse:
        del fields["num_local_experts"], fields["num_experts_per_tok"]
    if config.norm_topk_prob:
        del fields["norm_topk_prob"]
    if kind == "llama":
        del fields["sliding_window"]
    return {
        "architectures": [ARCHITECTURES[kind]],
        "hidden_act": "silu",
        **config.extra,
        "model_type": kind,
        **fields,
        "rope_theta": theta,
        "rope_parameters": {"rope_theta": theta, "rope_type": "default"},
        "torch_dtype": dtype,
        "dtype": dtype,
    }


def _kind_of(config: ModelConfig) -> str:
    """The model_type to write: "coterie" where another program that knows Mixtral would compute something else."""
    if config.is_sparse:
        return "mixtral" if config.router.is_plain and config.norm_topk_prob else "coterie"
    kind = config.extra.get("model_type", "mistral")
    return kind if kind == "llama" and config.sliding_window is None else "mistral"


def save_huggingface(
    folder: Path,
    config: ModelConfig,
    tensors: "dict[str, Tensor]",
    *,
    dtype: str,
    extra_files: Sequence[Path] = (),
    replace: bool = False,
) -> None:
    """Write a model as a folder that transformers, vLLM and `load_model` read.

    `tensors` by canonical names, any float type; `dtype` ("bf16", "bfloat16", ...) is the type on disk. `extra_files`
    (the tokenizer's, a README) are copied. The folder appears whole or not at all; one that exists is refused unless
    `replace`.
    """
    torch_name, code = file_type(dtype)
    specs = [
        (TensorSpec(name, "F32" if is_exact(place.name) else code, place.shape), place)
        for name, place in places(config, "huggingface")
    ]
    require_disk(folder, sum(spec.nbytes for spec, _ in specs))

    def contents(spec: TensorSpec, place: Place) -> Iterator[Any]:
        flat = tensors[place.name].detach().reshape(-1)
        yield from file_bytes(flat[place.first : place.first + place.n_elements], spec.dtype, place.name)

    with new_folder(folder, replace=replace) as partial:
        write_shards(partial, [spec for spec, _ in specs], (contents(spec, place) for spec, place in specs))
        write_sidecars(partial, config, torch_name, extra_files)


def write_sidecars(folder: Path, config: ModelConfig, dtype: str, extra_files: Iterable[Path]) -> None:
    """config.json with this type, the copied files, and a generation_config.json where none was among them."""
    write_json(folder / "config.json", config_to_json(config) | {"torch_dtype": dtype, "dtype": dtype})
    copy_files(extra_files, folder)
    if not (folder / "generation_config.json").exists():
        eos = list(config.eos_ids) if len(config.eos_ids) > 1 else config.eos_token_id
        ids = {"_from_model_config": True, "bos_token_id": config.bos_token_id, "eos_token_id": eos}
        write_json(folder / "generation_config.json", ids)


def copy_files(files: Iterable[Path], folder: Path) -> None:
    """Copy files into a folder under their own names."""
    for path in files:
        try:
            contents = path.read_bytes()
        except OSError as e:
            raise CheckpointError(f"{path} cannot be read: {e.strerror}") from None
        with new_file(folder / path.name) as f:
            f.write(contents)


def write_shards(folder: Path, specs: Sequence[TensorSpec], contents: Iterable[Iterable[Any]]) -> None:
    """Write tensors, in order, as model.safetensors, or as shards with an index where they exceed `LARGEST_SHARD`."""
    shards: list[list[TensorSpec]] = [[]]
    size = 0
    for spec in specs:
        if shards[-1] and size + spec.nbytes > LARGEST_SHARD:
            shards.append([])
            size = 0
        shards[-1].append(spec)
        size += spec.nbytes
    remaining = iter(contents)
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards, 1):
        name = "model.safetensors" if len(shards) == 1 else f"model-{i:05}-of-{len(shards):05}.safetensors"
        write_file(folder / name, shard, (piece for _ in shard for piece in next(remaining)))
        weight_map |= {spec.name: name for spec in shard}
    if len(shards) > 1:
        total = sum(spec.nbytes for spec in specs)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(folder / "model.safetensors.index.json", index)


def write_json(path: Path, value: dict[str, Any]) -> None:
    with new_file(path) as f:
        f.write((json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def _model_type(values: dict[str, Any], where: str) -> str:
    kind, architectures = values.get("model_type"), values.get("architectures")
    if kind is None and isinstance(architectures, list):
        kind = {a: k for k, a in ARCHITECTURES.items()}.get(str(architectures[0]) if architectures else "")
    if kind is None and not architectures:
        raise ConfigError(f"{where}: 'model_type' is missing, expected one of {', '.join(ARCHITECTURES)}")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        found = repr(kind if kind is not None else architectures)
        raise ConfigError(
            f"{where}: the architecture {found} is not supported, expected one of {', '.join(ARCHITECTURES)}"
        )
    if architectures not in (None, [], [ARCHITECTURES[kind]]):
        raise ConfigError(
            f"{where}: architectures is {architectures!r}, expected [{ARCHITECTURES[kind]!r}] for {kind!r}"
        )
    return kind


def _check_keys(values: dict[str, Any], where: str) -> None:
    for key in REQUIRED:
        if values.get(key) is None:
            raise ConfigError(f"{where}: {key!r} is missing{nearest(key, set(values) - set(FIELDS))}")
    for key, value in values.items():
        if key in FIELDS or key in HARMLESS or key in _IMPLIED or is_bookkeeping(key):
            continue
        if key in NEUTRAL:
            if not any(type(value) is type(v) and value == v for v in NEUTRAL[key]):
                raise ConfigError(
                    f"{where}: {key} is {_short(value)}, which is not supported; only {NEUTRAL[key][0]!r} is"
                )
        elif value is not None and value is not False:
            known = {*FIELDS, *NEUTRAL, *HARMLESS, *_TOP_LEVEL_ROPE}
            raise ConfigError(
                f"{where}: the key {key!r} (value {_short(value)}) is unknown and may change what the model computes"
                f"{nearest(key, known)}"
            )


def _check_layer_types(types: Any, chosen: dict[str, Any], where: str) -> None:
    """One entry a layer, all of the kind that `sliding_window` says: models that mix kinds are of another family."""
    kind = "full_attention" if chosen["sliding_window"] is None else "sliding_attention"
    is_uniform = isinstance(types, list) and all(t == kind for t in types) and len(types) == chosen["num_hidden_layers"]
    if types is not None and not is_uniform:
        raise ConfigError(f"{where}: layer_types is {_short(types)}; only {kind!r} for every layer is supported")


def _refuse_experts(chosen: dict[str, Any], kind: str, where: str) -> None:
    for key in ("num_local_experts", "num_experts_per_tok", "norm_topk_prob"):
        if chosen.pop(key, None) is not None:
            raise ConfigError(f"{where}: {key} belongs to a mixture of experts, and model_type {kind!r} is dense")
    chosen |= {"num_local_experts": None}


def _rope_theta(values: dict[str, Any], default: float, where: str) -> Any:
    """The one base of the rotary embedding, whichever of the three spellings holds it; scaling is refused."""
    found = [values["rope_theta"]] if values.get("rope_theta") is not None else []
    for key in ("rope_parameters", "rope_scaling"):
        rope = values.get(key)
        if rope is None:
            continue
        if not isinstance(rope, dict):
            raise ConfigError(f"{where}: {key} is {_short(rope)}, expected a table or null")
        neutral = {"rope_type": "default", "type": "default", "partial_rotary_factor": 1.0, "factor": 1.0}
        for name, value in sorted(rope.items(), key=lambda item: "type" not in item[0]):
            if name != "rope_theta" and (name not in neutral or value not in (None, neutral[name])):
                raise ConfigError(
                    f"{where}: {key}.{name} is {_short(value)}; only the default rotary embedding is supported"
                )
        if rope.get("rope_theta") is not None:
            found.append(rope["rope_theta"])
    if any(theta != found[0] for theta in found):
        raise ConfigError(f"{where}: rope_theta is given twice, as {found[0]!r} and {found[-1]!r}")
    return found[0] if found else default


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."

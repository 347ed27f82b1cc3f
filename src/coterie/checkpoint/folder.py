"""A model, opened: which format it is, its configuration, and where in its files each tensor lies.

Only headers are read, and everything is checked before anyone allocates: every canonical tensor covered exactly once,
with the right shape and a float type. The format is decided by content: published folders mix .pt, consolidated and
sharded files with different names, so where an index exists only the files it lists count. Pickles are never opened.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Literal

from coterie.checkpoint.gguf import open_gguf
from coterie.checkpoint.huggingface import config_from_json, read_config
from coterie.checkpoint.index import indexed_entries
from coterie.checkpoint.json_text import read_object
from coterie.checkpoint.mistral import config_from_params, read_params
from coterie.checkpoint.names import Naming, is_ignorable, naming_of, tied_head
from coterie.checkpoint.numbers import FILE_DTYPES
from coterie.checkpoint.opened import Checkpoint, list_names, main_code, match
from coterie.checkpoint.packed import is_packed, open_packed
from coterie.checkpoint.safetensors import Entry, read_entries
from coterie.config import ModelConfig
from coterie.errors import CheckpointError, ConfigError, UnsafeFileError

__all__ = ["not_a_model", "open_checkpoint", "read_model_config"]

_PICKLES = (".bin", ".pth", ".pt", ".ckpt", ".pkl", ".pickle")


def read_model_config(path: Path) -> ModelConfig:
    """The configuration of a folder, a .gguf file, a bare config.json or params.json; weights need not be there."""
    if path.suffix == ".gguf" and path.is_file():
        return open_gguf(path).config
    if not path.is_file():
        return read_config(path) if _format(path) == "huggingface" else read_params(path)
    values = read_object(path, ConfigError)
    is_params = path.name == "params.json" or ("dim" in values and "model_type" not in values)
    return (config_from_params if is_params else config_from_json)(values, str(path))


def not_a_model(path: Path) -> CheckpointError:
    """Why a path that is no folder cannot be read as a model."""
    if path.suffix in _PICKLES:
        return _only_pickles(path, "is a pickle", [path.name])
    return CheckpointError(
        f"{path} is not a folder; expected a model's folder, with config.json or params.json and safetensors files, or "
        "a .gguf file"
    )


def open_checkpoint(path: Path) -> Checkpoint:
    """Open and check a folder or .gguf file; `ConfigError`, `CheckpointError`, `UnsafeFileError` say what is amiss."""
    path = Path(path)
    if path.suffix == ".gguf" and path.is_file():
        return open_gguf(path)
    if is_packed(path):
        return open_packed(path)
    format = _format(path)
    config = read_config(path) if format == "huggingface" else read_params(path)
    entries = [e for e in _all_entries(path, format) if not is_ignorable(e.name)]
    naming: Naming = naming_of(e.name for e in entries) if entries else format
    if not naming.startswith(format):
        raise CheckpointError(
            f"{path}: the configuration is {format}'s and the tensor names are not ({entries[0].name!r})"
        )
    by_name, tied_copy = _index_names(path, entries, config, naming)
    matched = match(path, {name: e.shape for name, e in by_name.items()}, config, naming)
    pairs = [(by_name[name], place) for name, (place,) in matched.items()]
    pairs.sort(key=lambda pair: (pair[0].file, pair[0].offset))
    _check_floats(path, [*(e for e, _ in pairs), *([tied_copy] if tied_copy else [])])
    if not (config.extra.get("dtype") or config.extra.get("torch_dtype")):  # the file does not say: the weights do
        config = replace(config, torch_dtype=FILE_DTYPES[main_code([e for e, _ in pairs])])
    return Checkpoint(path, format, naming, config, tuple(e for e, _ in pairs), tuple(p for _, p in pairs), tied_copy)


def _format(path: Path) -> Literal["huggingface", "mistral"]:
    if not path.is_dir():
        raise not_a_model(path)
    has_config, has_params = (path / "config.json").is_file(), (path / "params.json").is_file()
    if has_config and (not has_params or _huggingface_files(path) or not _consolidated_files(path)):
        return "huggingface"
    if has_params:
        return "mistral"
    if pickles := _pickles(path):
        raise _only_pickles(path, "has its weights only as pickles", pickles)
    if files := sorted(p.name for p in path.glob("*.gguf")):
        raise ConfigError(f"{path} has no config.json, but GGUF files; name one of them ({list_names(files)})")
    found = list_names(sorted(p.name for p in path.iterdir())) or "nothing"
    raise ConfigError(f"{path} has neither config.json nor params.json (it holds {found}); name a model's folder")


def _huggingface_files(path: Path) -> list[Path]:
    return sorted(path.glob("model*.safetensors"))


def _consolidated_files(path: Path) -> list[Path]:
    return sorted(path.glob("consolidated*.safetensors"))


def _all_entries(path: Path, format: str) -> list[Entry]:
    stem = "model" if format == "huggingface" else "consolidated"
    index = path / f"{stem}.safetensors.index.json"
    if index.exists():
        return indexed_entries(index)
    single = path / f"{stem}.safetensors"
    found = _huggingface_files(path) if format == "huggingface" else _consolidated_files(path)
    files = [single] if single.exists() else found
    if not files:
        raise _no_weights(path, stem)
    return [entry for file in files for entry in read_entries(file)]


def _no_weights(path: Path, stem: str) -> CheckpointError:
    if pickles := _pickles(path):
        return _only_pickles(path, "has its weights only as pickles", pickles)
    return CheckpointError(f"{path} has no weights: expected {stem}.safetensors, or {stem}-*.safetensors with an index")


def _pickles(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLES)


def _only_pickles(path: Path, what: str, names: list[str]) -> UnsafeFileError:
    return UnsafeFileError(
        f"{path} {what} ({list_names(names)}); pickles can run code when read and are never opened here: get the "
        "model's safetensors files, or convert them where you trust their source: "
        'python -c "import sys, torch; from safetensors.torch import save_file as s; '
        "[s({k: v.contiguous().clone() for k, v in torch.load(f, weights_only=True, map_location='cpu').items()}, "
        "f.rsplit('.', 1)[0].replace('pytorch_model', 'model') + '.safetensors') for f in sys.argv[1:]]\" FILES"
    )


def _index_names(
    path: Path, entries: list[Entry], config: ModelConfig, naming: Naming
) -> tuple[dict[str, Entry], Entry | None]:
    by_name: dict[str, Entry] = {}
    for entry in entries:
        if entry.name in by_name:
            files = f"{by_name[entry.name].file.name} and {entry.file.name}"
            raise CheckpointError(f"{path}: the tensor {entry.name!r} is in both {files}; remove one of the files")
        by_name[entry.name] = entry
    if not config.tie_word_embeddings:
        return by_name, None
    name, place = tied_head(config, naming)
    copy = by_name.pop(name, None)
    if copy is not None and copy.shape != place.shape:
        raise CheckpointError(f"{copy.file}: {name!r} has shape {list(copy.shape)}, expected {list(place.shape)}")
    return by_name, copy


def _check_floats(path: Path, entries: Iterable[Entry]) -> None:
    wrong = [f"{e.name} {e.dtype}" for e in entries if e.dtype not in FILE_DTYPES]
    if wrong:
        types = ", ".join(FILE_DTYPES)
        raise CheckpointError(
            f"{path} has tensors of a type that weights cannot have ({list_names(wrong)}), expected {types}"
        )

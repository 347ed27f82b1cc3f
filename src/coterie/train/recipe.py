"""The TOML that drives a run, read and checked; an unknown section or key names the nearest.

A recipe needs `[data] files` and `[train] steps`; everything else has a default. Paths may name environment variables.
"""

import math
import os
import re
import tomllib
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

import torch

from coterie.config import ModelConfig
from coterie.errors import ConfigError, DataError, RecipeError, nearest
from coterie.router_config import RouterConfig
from coterie.routing.balance import CONVENTIONS, SCOPES
from coterie.train.recipe_init import Init, check_init
from coterie.train.recipe_sections import Balance, Data, Parallel, Recipe, Run, Train
from coterie.train.recipe_values import Kind

__all__ = [
    "Balance", "Data", "Init", "Parallel", "Recipe", "Run", "Train",
    "expand_path", "fresh_config", "read_recipe", "require_context", "require_router", "token_file_name",
]  # fmt: skip


_MOST_TOKENS = 1 << 48  # of a run: far above any published one

_SECTIONS: dict[str, type] = {
    "data": Data, "train": Train, "init": Init, "balance": Balance, "parallel": Parallel, "run": Run,
}  # fmt: skip
_ONLY = {
    ("data", "documents"): ("packed", "masked"),
    ("train", "optimizer"): ("adamw", "muon"),
    ("train", "schedule"): ("linear", "cosine", "constant", "wsd"),
    ("train", "dtype"): ("auto", "float32", "bfloat16"),
    ("balance", "scope"): SCOPES,
    ("balance", "convention"): ("coterie", *CONVENTIONS),
}
_POSITIVE = {
    "train": ("batch", "accumulate", "lr", "clip"), "init": ("std",), "run": ("eval_every", "save_every"),
    "parallel": ("expert",),
}  # fmt: skip
_NOT_NEGATIVE = {
    "train": ("steps", "seed", "warmup", "weight_decay"), "init": ("seed",), "parallel": ("data",),
    "balance": ("load", "z", "importance", "noisy_load", "bias"),
}  # fmt: skip


def read_recipe(path: Path) -> Recipe:
    """Raises `RecipeError` with file, section and key; `ConfigError` for a field of [model]."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as e:
        raise RecipeError(f"{path} cannot be read as a recipe: {(e.strerror or str(e)).lower()}") from None
    except (ValueError, RecursionError) as e:  # bytes, syntax, a number of 5,000 digits, brackets in brackets
        raise RecipeError(f"{path} cannot be read as a recipe: {e}") from None
    known = ["model", "router", *_SECTIONS]
    for name, value in raw.items():
        if name not in known:
            raise RecipeError(f"{path}: {name!r} is not a section of a recipe{nearest(name, known)}")
        if not isinstance(value, dict):
            raise RecipeError(f"{path}: {name!r} is no section; write [{name}] on a line of its own, once")
    for name in ("data", "train"):
        if name not in raw:
            raise RecipeError(f"{path} has no section [{name}]; a recipe needs [data] files and [train] steps")
    parts = {name: _section(kind, raw[name], f"{path}: [{name}]") for name, kind in _SECTIONS.items() if name in raw}
    recipe = Recipe(model=_model(raw.get("model", {})), router=_router(raw.get("router", {}), path), **parts)
    check_init(recipe.init, path)
    recipe = _with_own_tokenizer(recipe, raw["data"], path)
    _check_choices(recipe, path)
    _check_bounds(recipe, path)
    _check_balance(recipe, path)
    _check_files(recipe.data, path)
    _check_sequence(recipe, path)
    return recipe


def _model(raw: dict[str, Any]) -> dict[str, Any]:
    """TOML has no null: 0 experts are a dense model, whose `num_local_experts` is None."""
    n_experts = raw.get("num_local_experts")
    return raw | {"num_local_experts": None} if type(n_experts) is int and n_experts == 0 else raw


def _with_own_tokenizer(recipe: Recipe, raw_data: dict[str, Any], path: Path) -> Recipe:
    """A run that starts from a model takes its tokenizer, unless one is named."""
    if recipe.init.is_random:
        return recipe
    if isinstance(raw_data.get("tokenizer"), dict):
        raise RecipeError(f"{path}: [data] tokenizer is to be trained, and [init] names a model, which has its own")
    return recipe if "tokenizer" in raw_data else replace(recipe, data=replace(recipe.data, tokenizer=""))


def _router(raw: dict[str, Any], path: Path) -> RouterConfig:
    try:
        return RouterConfig.from_fields(raw)
    except ConfigError as e:
        raise RecipeError(f"{path}: {e}") from None


def _section(kind: type, raw: dict[str, Any], where: str) -> Any:
    known = {f.metadata.get("key", f.name): f for f in fields(kind)}
    for key in raw:
        if key not in known:
            raise RecipeError(f"{where} has no key {key!r}{nearest(key, known)}")
    for name, f in known.items():
        if f.default is MISSING and f.default_factory is MISSING and name not in raw:
            raise RecipeError(f"{where} needs the key {name!r}")
    converted = {key: _converted(known[key].metadata["kind"], value, f"{where} {key}") for key, value in raw.items()}
    return kind(**{known[key].name: value for key, value in converted.items()})


def _converted(kind: Kind, value: Any, where: str) -> Any:
    try:
        return kind.convert(value)
    except (TypeError, ValueError, OverflowError):
        raise RecipeError(f"{where} is {value!r}, expected {kind.name}") from None


def _check_choices(recipe: Recipe, path: Path) -> None:
    for (section, key), allowed in _ONLY.items():
        value = getattr(getattr(recipe, section), key)
        if value not in allowed:
            listed = ", ".join(map(repr, allowed))
            raise RecipeError(f"{path}: [{section}] {key} is {value!r}, supported now: {listed}")


def _check_balance(recipe: Recipe, path: Path) -> None:
    for key, kind in (("bias", "sigmoid_bias"), ("noisy_load", "noisy_topk")):
        if getattr(recipe.balance, key) and recipe.router.kind != kind:
            raise RecipeError(
                f"{path}: [balance] {key} is for the router {kind!r} and [router] kind is {recipe.router.kind!r}; "
                f"choose that router, or leave {key} out"
            )


def _check_bounds(recipe: Recipe, path: Path) -> None:
    for section, keys in _POSITIVE.items():
        for key in keys:
            value = getattr(getattr(recipe, section), key)
            if value <= 0:
                raise RecipeError(f"{path}: [{section}] {key} is {value}, expected more than 0")
    for section, keys in _NOT_NEGATIVE.items():
        for key in keys:
            value = getattr(getattr(recipe, section), key)
            if value < 0:
                raise RecipeError(f"{path}: [{section}] {key} is {value}, expected 0 or more")
    if not 0 <= recipe.train.decay <= 1:
        raise RecipeError(f"{path}: [train] decay is {recipe.train.decay}, expected a share from 0 to 1")
    if not all(0 <= beta < 1 for beta in recipe.train.betas):
        raise RecipeError(
            f"{path}: [train] betas is {list(recipe.train.betas)}, expected two numbers from 0 to below 1"
        )


def _check_files(data: Data, path: Path) -> None:
    if not data.files:
        raise RecipeError(f"{path}: [data] files is empty, expected the paths of the text to train on")
    for key, names in (("files", data.files), ("valid", data.valid)):
        if len({_whole_path(name) for name in names}) < len(names):
            raise RecipeError(f"{path}: [data] {key} names a file twice; use weights to see one more often")
    if len({token_file_name(_whole_path(name)) for name in data.valid}) < len(data.valid):
        raise RecipeError(f"{path}: [data] valid has two files of the same name; the scores are told apart by it")
    if data.weights and len(data.weights) != len(data.files):
        raise RecipeError(f"{path}: [data] weights has {len(data.weights)} numbers for {len(data.files)} files")
    if data.weights and not (min(data.weights) >= 0 and 0 < sum(data.weights) < math.inf):
        raise RecipeError(f"{path}: [data] weights is {list(data.weights)}, expected shares from 0 up, not all 0")


def _model_config(recipe: Recipe, path: Path) -> ModelConfig:
    """[model] with its router, which must be one that can learn."""
    config = ModelConfig.from_fields(recipe.model | {"router": recipe.router}, where=f"{path}: [model]")
    require_router(recipe, config, where=str(path))
    return config


def fresh_config(recipe: Recipe, dtype: torch.dtype, pieces: int, *, where: str, **ids: int | None) -> ModelConfig:
    """[model] and [router] of a run that starts from random numbers, with a vocabulary of so many pieces.

    Raises `RecipeError` where [model] vocab_size leaves some out.
    """
    fields = {"vocab_size": pieces, "torch_dtype": str(dtype).removeprefix("torch."), **ids}
    config = ModelConfig.from_fields(fields | recipe.model | {"router": recipe.router}, where=f"{where}: [model]")
    require_router(recipe, config, where=where)
    if config.vocab_size < pieces:
        raise RecipeError(
            f"{where}: [model] vocab_size is {config.vocab_size} and the tokenizer has {pieces} pieces; leave it out, "
            "and it is taken from the tokenizer"
        )
    return config


def require_router(recipe: Recipe, config: ModelConfig, *, where: str) -> None:
    """`RecipeError` where the model's router could not learn, has experts that ranks cannot share, or is not there."""
    if not config.is_sparse and recipe.router != RouterConfig():
        raise RecipeError(
            f"{where}: [router] shapes sparse blocks and this model has none; leave it out, or give [model] "
            "num_local_experts"
        )
    if config.num_local_experts is not None and config.num_local_experts % recipe.parallel.expert:
        raise RecipeError(
            f"{where}: [parallel] expert = {recipe.parallel.expert} does not divide the {config.num_local_experts} "
            "experts of a layer evenly"
        )
    try:
        if config.is_sparse:
            config.router.check_trainable(config.num_experts_per_tok, config.norm_topk_prob)
    except ConfigError as e:
        raise RecipeError(f"{where}: [model] {e}") from None


def _check_sequence(recipe: Recipe, path: Path) -> None:
    """Phases rise from the first step; in each, a step is whole rows in whole micro-batches, inside the context."""
    t, plan = recipe.train, recipe.sequence_plan()
    starts, lengths = [start for start, _ in plan], [length for _, length in plan]
    if t.steps == 0 and recipe.init.is_random:
        raise RecipeError(
            f"{path}: [train] steps is 0, expected more, or an [init] that names a model to write at once"
        )
    if t.steps * t.batch * max(lengths, default=0) >= _MOST_TOKENS:
        raise RecipeError(
            f"{path}: [train] {t.steps} steps of {t.batch} sequences are more tokens than can be numbered; ask for "
            "fewer"
        )
    if not starts or starts[0] != 0 or starts != sorted(set(starts)) or starts[-1] >= max(1, t.steps):
        raise RecipeError(f"{path}: [train] sequence must start at 0.0 and rise to below 1.0")
    for length in lengths:
        n, rest = divmod(t.batch * lengths[0], length) if length > 0 else (0, 1)
        if rest or n < 1 or n % t.accumulate:
            raise RecipeError(
                f"{path}: [train] batch {t.batch} of sequence {lengths[0]} cannot be cut into whole sequences of "
                f"{length} in {t.accumulate} micro-batches"
            )
    if not recipe.init.is_random:
        return  # the model that it starts from says how long its context is
    config = _model_config(recipe, path)
    require_context(recipe, config, where=str(path))
    if recipe.init.induction and config.num_hidden_layers < 2:
        raise RecipeError(f"{path}: [init] induction needs two layers or more; [model] has {config.num_hidden_layers}")


def require_context(recipe: Recipe, config: ModelConfig, *, where: str) -> None:
    """`RecipeError` where the rows of the run are longer than the model's context."""
    longest, context = max(length for _, length in recipe.sequence_plan()), config.max_position_embeddings
    if longest > context:
        raise RecipeError(f"{where}: sequence {longest} is longer than max_position_embeddings {context}")


def token_file_name(path: str) -> str:
    """What a file of text is called in logs and scores: `a/fr.valid.jsonl.gz` is `fr.valid`, `a/b.txt` is `b.txt`."""
    return Path(path).name.split(".jsonl")[0].removesuffix(".parquet")


def expand_path(text: str) -> Path:
    """`$NAME` and `~` filled in; an unset variable is a `DataError` that names it."""
    expanded = _filled_in(text)
    if unset := re.search(r"\$(\w+|\{[^}]*\})", expanded):
        name = unset[1].strip("{}")
        raise DataError(
            f"{text}: the environment variable {name} is not set; set it (export {name}=...) or write the path out"
        )
    return Path(expanded)


def _filled_in(text: str) -> str:
    return os.path.expanduser(os.path.expandvars(text))


def _whole_path(text: str) -> str:
    return os.path.abspath(_filled_in(text))

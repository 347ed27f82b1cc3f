"""The TOML that drives a run, read into one frozen dataclass per section; an unknown section or key names the nearest.

A recipe needs `[data] files` and `[train] steps`; everything else has a default. Paths may name environment variables.
"""

import math
import os
import tomllib
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from coterie.config import ModelConfig
from coterie.errors import DataError, RecipeError, nearest

__all__ = ["Balance", "Data", "Init", "Parallel", "Recipe", "Router", "Run", "Train", "expand_path", "read_recipe"]


@dataclass(frozen=True, kw_only=True)
class Init:
    seed: int = 0
    std: float = 0.02  # of every matrix; those that write to the residual stream get std / √(2 · layers)


@dataclass(frozen=True, kw_only=True)
class Data:
    files: tuple[str, ...]  # .jsonl, .jsonl.gz (a "text" each line) or .txt
    weights: tuple[float, ...] = ()  # how often each file is drawn from; empty: by its tokens
    valid: tuple[str, ...] = ()
    tokenizer: str | dict[str, int] = field(default_factory=lambda: {"vocab_size": 8192})  # a folder, or one to train


@dataclass(frozen=True, kw_only=True)
class Train:
    steps: int
    batch: int = 16  # sequences in a step at the first sequence length; the tokens of a step stay the same
    sequence: int | tuple[tuple[float, int], ...] = 512  # or [[0.0, 512], [0.85, 2048]]: from which part of the run
    accumulate: int = 1  # micro-batches a step is cut into
    dtype: str = "auto"
    seed: int = 0
    optimizer: str = "adamw"
    lr: float = 1e-3
    betas: tuple[float, ...] = (0.9, 0.95)
    warmup: int = 100
    schedule: str = "linear"
    weight_decay: float = 0.1
    clip: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Router:
    kind: str = "topk"


@dataclass(frozen=True, kw_only=True)
class Balance:
    scope: str = "batch"
    load: float = 0.01
    z: float = 0.001
    bias: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Parallel:
    data: int = 1
    expert: int = 1


@dataclass(frozen=True, kw_only=True)
class Run:
    out: str = "runs/out"
    eval_every: int = 500
    save_every: int = 200


@dataclass(frozen=True, kw_only=True)
class Recipe:
    model: dict[str, Any]
    data: Data
    train: Train
    init: Init = Init()
    router: Router = Router()
    balance: Balance = Balance()
    parallel: Parallel = Parallel()
    run: Run = Run()

    def sequence_plan(self) -> list[tuple[int, int]]:
        """[(first step, sequence length), ...] of the run."""
        t = self.train
        phases = ((0.0, t.sequence),) if isinstance(t.sequence, int) else t.sequence
        return [(round(start * t.steps), length) for start, length in phases]


_SECTIONS: dict[str, type] = {
    "data": Data, "train": Train, "init": Init, "router": Router, "balance": Balance, "parallel": Parallel, "run": Run,
}  # fmt: skip
_ONLY = {
    ("train", "optimizer"): ("adamw",),
    ("train", "schedule"): ("linear", "cosine", "constant"),
    ("train", "dtype"): ("auto", "float32", "bfloat16"),
    ("router", "kind"): ("topk",),
    ("balance", "scope"): ("batch",),
    ("balance", "bias"): (0.0,),
    ("parallel", "data"): (1,),
    ("parallel", "expert"): (1,),
}


def read_recipe(path: Path) -> Recipe:
    """Raises `RecipeError` with file, section and key."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        raise RecipeError(f"{path} cannot be read as a recipe: {e}") from None
    known = ["model", *_SECTIONS]
    for name, value in raw.items():
        if name not in known or not isinstance(value, dict):
            raise RecipeError(f"{path}: {name!r} is not a section of a recipe{nearest(name, known)}")
    for name in ("data", "train"):
        if name not in raw:
            raise RecipeError(f"{path} has no section [{name}]; a recipe needs [data] files and [train] steps")
    parts = {name: _section(kind, raw[name], f"{path}: [{name}]") for name, kind in _SECTIONS.items() if name in raw}
    recipe = Recipe(model=raw.get("model", {}), **parts)
    _check(recipe, path)
    return recipe


def _section(kind: type, raw: dict[str, Any], where: str) -> Any:
    known = {f.name: f for f in fields(kind)}
    for key in raw:
        if key not in known:
            raise RecipeError(f"{where} has no key {key!r}{nearest(key, known)}")
    for name, f in known.items():
        if f.default is MISSING and f.default_factory is MISSING and name not in raw:
            raise RecipeError(f"{where} needs the key {name!r}")
    return kind(**{key: _value(known[key].type, value, f"{where} {key}") for key, value in raw.items()})


def _value(annotation: Any, value: Any, where: str) -> Any:
    """`value` as the field wants it: whole numbers pass for floats, arrays become tuples."""
    text = str(annotation)
    if "float" in text and type(value) is int and "tuple[tuple" not in text:
        value = float(value)
    if isinstance(value, list):
        value = tuple(tuple(v) if isinstance(v, list) else v for v in value)
        if "tuple[float" in text and "tuple[tuple" not in text:
            value = tuple(float(v) if type(v) is int else v for v in value)
        ok = "tuple" in text and all(_fits(text, v) for v in value)
    elif isinstance(value, dict):
        ok = "dict" in text and all(type(v) is int for v in value.values())
    else:
        ok = type(value).__name__ in text.replace("tuple[str", "").replace("tuple[float", "")
        ok = ok and type(value) is not bool and (type(value) is not float or math.isfinite(value))
    if not ok:
        raise RecipeError(f"{where} is {value!r}, expected {text.replace('<class ', '').replace('>', '')}")
    return value


def _fits(annotation: str, item: Any) -> bool:
    if isinstance(item, tuple):
        pair = len(item) == 2 and type(item[0]) in (int, float) and type(item[1]) is int
        return "tuple[tuple" in annotation and pair
    return type(item).__name__ in annotation


def _check(recipe: Recipe, path: Path) -> None:
    for (section, key), allowed in _ONLY.items():
        value = getattr(getattr(recipe, section), key)
        if value not in allowed:
            listed = ", ".join(map(repr, allowed))
            raise RecipeError(f"{path}: [{section}] {key} is {value!r}, supported now: {listed}")
    positive: list[tuple[Any, str]] = [(recipe.train, k) for k in ("steps", "batch", "accumulate", "lr", "clip")]
    positive += [(recipe.run, k) for k in ("eval_every", "save_every")]
    for part, key in positive:
        if getattr(part, key) <= 0:
            raise RecipeError(f"{path}: {key} is {getattr(part, key)}, expected more than 0")
    starts = [start for start, _ in recipe.sequence_plan()]
    lengths = [length for _, length in recipe.sequence_plan()]
    if not starts or starts[0] != 0 or starts != sorted(set(starts)) or starts[-1] >= recipe.train.steps:
        raise RecipeError(f"{path}: [train] sequence must start at 0.0 and rise to below 1.0")
    rows = recipe.train.batch
    for length in lengths:
        n, rest = divmod(rows * lengths[0], length) if length > 0 else (0, 1)
        if rest or n < 1 or n % recipe.train.accumulate:
            raise RecipeError(
                f"{path}: [train] batch {rows} of sequence {lengths[0]} cannot be cut into whole sequences of {length} "
                f"in {recipe.train.accumulate} micro-batches"
            )
    if recipe.data.weights and len(recipe.data.weights) != len(recipe.data.files):
        counts = f"{len(recipe.data.weights)} numbers for {len(recipe.data.files)} files"
        raise RecipeError(f"{path}: [data] weights has {counts}")
    ModelConfig.from_fields(recipe.model, where=f"{path}: [model]")
    longest = recipe.model.get("max_position_embeddings", ModelConfig.max_position_embeddings)
    if max(lengths) > longest:
        raise RecipeError(f"{path}: sequence {max(lengths)} is longer than max_position_embeddings {longest}")


def expand_path(text: str) -> Path:
    """`$NAME` and `~` filled in; an unset variable is a `DataError` that names it."""
    expanded = os.path.expanduser(os.path.expandvars(text))
    if "$" in expanded:
        raise DataError(f"{text} names an environment variable that is not set")
    return Path(expanded)

"""The section [init] of a recipe: what the weights of a run start from, and which keys go together."""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from coterie.errors import RecipeError, nearest
from coterie.train.recipe_values import GROUPS, NUMBER, PATHS, TEXT, WHOLE, YES_NO, key

__all__ = ["Init", "check_init"]

METHODS = ("copy", "split", "drop")
SHARED = ("mean", "first")
ROUTERS = ("prompts", "embedding", "random")
_UPCYCLING = ("method", "granularity", "drop")
_MERGING = ("shared", "routers", "prompts")


@dataclass(frozen=True, kw_only=True)
class Init:
    """Random weights, unless `from_` or `upcycle` names models: docs/upcycling.md."""

    seed: int = key(WHOLE, 0)
    std: float = key(NUMBER, 0.02)  # of every matrix; those that write to the residual stream get std / √(2 · layers)
    induction: bool = key(YES_NO, False)  # plant heads that copy (train/induction.py)
    from_: str = key(TEXT, "", name="from")  # a model whose training goes on, with a new learning-rate schedule
    upcycle: tuple[str, ...] = key(PATHS, ())  # a dense model to make experts of; several: one expert of each
    method: str = key(TEXT, "copy")  # of making experts: copy, split or drop
    granularity: int = key(WHOLE, 1)  # segments that a dense block is split into
    drop: float = key(NUMBER, 0.5)  # share of an expert's channels drawn anew
    router_std: float = key(NUMBER, 0.02)
    shared: str = key(TEXT, "mean")  # what is not an expert: the models' mean, or the first one's
    routers: str = key(TEXT, "prompts")  # of a merge: from hidden states of prompts, their embeddings, or random
    prompts: tuple[tuple[str, ...], ...] = key(GROUPS, ())  # texts, or files of them, for each model

    @property
    def is_random(self) -> bool:
        return not (self.from_ or self.upcycle)

    def identity(self) -> dict[str, Any]:
        """What a run cannot change once it has begun, as JSON values: everything but the defaults."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        found: dict[str, Any] = json.loads(json.dumps(given))
        return found


def check_init(init: Init, path: Path) -> None:
    """`RecipeError` for values out of bounds and keys that do not belong together."""
    where = f"{path}: [init]"
    for name, allowed in (("method", METHODS), ("shared", SHARED), ("routers", ROUTERS)):
        value = getattr(init, name)
        if value not in allowed:
            raise RecipeError(f"{where} {name} is {value!r}, expected {', '.join(allowed)}{nearest(value, allowed)}")
    if init.granularity < 1 or not 0 <= init.drop <= 1 or init.router_std < 0:
        raise RecipeError(f"{where} needs granularity 1 or more, drop from 0 to 1 and router_std 0 or more")
    if init.from_ and init.upcycle:
        raise RecipeError(f"{where} has both from and upcycle; name the model to go on with, or the one to upcycle")
    if init.induction and not init.is_random:
        raise RecipeError(f"{where} induction is for random weights; leave it out where a model is named")
    _check_keys(init, where)
    if init.method == "split" and init.granularity < 2:
        raise RecipeError(f"{where} method is 'split' and granularity {init.granularity}, expected 2 segments or more")
    if init.method == "copy" and init.granularity > 1:
        raise RecipeError(f"{where} granularity {init.granularity} splits blocks, and method is 'copy'; use 'split'")
    if len(init.upcycle) > 1 and init.routers != "random" and len(init.prompts) != len(init.upcycle):
        raise RecipeError(
            f"{where} prompts has {len(init.prompts)} groups for {len(init.upcycle)} models; give each model its own "
            "texts, or set routers to 'random'"
        )
    if not all(init.prompts) or not all(text for texts in init.prompts for text in texts):
        raise RecipeError(f"{where} prompts has an empty group or text; each model needs texts of the kind it is for")


def _check_keys(init: Init, where: str) -> None:
    """Keys that would do nothing are refused, because somebody meant something by them."""
    given = {f.name for f in fields(init) if getattr(init, f.name) != f.default}
    if "drop" in given and init.method != "drop":
        raise RecipeError(f"{where} drop is {init.drop} and method is {init.method!r}; set method to 'drop' too")
    if len(init.upcycle) == 1:
        wrong, instead = given & {*_MERGING}, "upcycle names one model; they are for merging several"
    elif init.upcycle:
        wrong, instead = given & {*_UPCYCLING}, "upcycle names several models, each of which becomes one expert"
    else:
        wrong, instead = given & {*_UPCYCLING, *_MERGING, "router_std"}, "there is no upcycle to which they belong"
    if wrong:
        raise RecipeError(f"{where} has {', '.join(sorted(wrong))}, but {instead}")
    unread = "prompts" if init.routers == "random" else "router_std"
    if len(init.upcycle) > 1 and unread in given:
        raise RecipeError(
            f"{where} has {unread}, which routers = {init.routers!r} does not read; leave one of them out"
        )

"""Sentences on a plan that cannot be carried out, or only badly: what to change, the least harmful first."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from coterie.config import ModelConfig
from coterie.train.corpus import Corpus
from coterie.train.footprint import footprint
from coterie.train.recipe import Recipe, Train
from coterie.train.scaling import EPOCHS_WITHOUT_LOSS

__all__ = ["advice", "text_warnings"]


def advice(
    recipe: Recipe,
    config: ModelConfig,
    dtype: torch.dtype,
    *,
    needed: int,
    available: int,
    rows: Sequence[tuple[int, int]],
    device: str = "cpu",
) -> str:
    """What to change so that a step fits; `rows` are the (rows, sequence) of each phase's micro-batches.

    The formula says what a change saves; what was measured beyond it is taken to stay.
    """
    head = f"does not fit: {needed / 1e9:.1f} GB needed, {available / 1e9:.1f} GB there"

    def peak(train: Train, divided: int, to: torch.dtype) -> int:
        return max(footprint(config, train, to, n // divided, sequence, device).peak for n, sequence in rows)

    now = peak(recipe.train, 1, dtype)

    def helps(divided: int = 1, to: torch.dtype = dtype, **changes: bool) -> bool:
        train = replace(recipe.train, accumulate=recipe.train.accumulate * divided, **changes)  # type: ignore[arg-type]
        return now - peak(train, divided, to) >= needed - available

    most = 1
    while all(n % (2 * most) == 0 for n, _ in rows):
        most *= 2
        if helps(most):
            return f"{head}; set [train] accumulate = {recipe.train.accumulate * most}: the same steps, cut finer"
    if helps(recompute=True):
        return f"{head}; set [train] recompute = true: a third more time, the activations of one layer only"
    accumulate = recipe.train.accumulate * most
    if helps(most, recompute=True):
        return f"{head}; set [train] recompute = true and accumulate = {accumulate}"
    if dtype == torch.float32 and helps(most, torch.bfloat16, recompute=True):
        return f'{head}; set [train] dtype = "bfloat16", recompute = true and accumulate = {accumulate}'
    least = needed - now + peak(replace(recipe.train, accumulate=accumulate, recompute=True), most, dtype)
    return (
        f"{head}, and still {least / 1e9:.1f} GB with recompute = true and accumulate = {accumulate}: it needs a "
        "smaller model (fewer experts or layers, less width) or a larger machine"
    )


def text_warnings(corpora: Sequence[Corpus], epochs: Sequence[float | None]) -> list[str]:
    """Text that is read too often, and text that is not there."""
    often = [
        f"{corpus.name} is read {n:.1f} times: what comes more than {EPOCHS_WITHOUT_LOSS:g} times teaches less "
        "and less (arXiv 2305.16264); train fewer steps, or give it more text or less weight"
        for corpus, n in zip(corpora, epochs, strict=True)
        if n is not None and n > EPOCHS_WITHOUT_LOSS
    ]
    return often + [
        f"the tokens of {corpus.name} are not known: {corpus.problem}" for corpus in corpora if corpus.problem
    ]

"""How soon experts come back: reuse distance in tokens and in experts, and how many a window of tokens needs.

The distance in experts (Mattson et al., IBM Systems Journal 9, 1970) is how many others of the layer were used since:
a cache of n experts with LRU has all whose distance is below n, so one pass gives the hit rate of every size. The
working set of w tokens (Denning, CACM 11, 1968) is how many experts the last w tokens asked for.
Shapes: S tokens of a stretch, N stretches, L layers, K experts per token, E experts, W windows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coterie.analysis.scan import shown_layers
from coterie.analysis.section import Plot, Section
from coterie.analysis.stretches import Sample

__all__ = ["WINDOWS", "Reuse", "measure_reuse", "reuse_by_chance", "reuse_sections", "working_set_by_chance"]

WINDOWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # tokens

Ints = NDArray[np.int32]


@dataclass(frozen=True)
class Reuse:
    """Of one layer. `tokens_SNK`: how many tokens ago (1 is the one before), and `others_SNK`: how many other experts
    of the layer since; -1 where the slot is unused, the token not counted, or the expert new to the stretch.
    `is_asked_SNK`: slots that count. `needed`: the mean working set of each window, NaN where none fits.
    """

    tokens_SNK: Ints
    others_SNK: Ints
    is_asked_SNK: NDArray[np.bool_]
    needed: list[float]


def measure_reuse(sample: Sample, layer: int, windows: Sequence[int]) -> Reuse:
    """Of two experts that one token asks for, its second choice counts as the older.

    Experts 0, 1, 0, 2, 1 one a token: tokens -1 -1 2 -1 3, others -1 -1 1 -1 2.
    """
    ids = sample.experts_SNLK[:, :, layer].astype(np.int32)
    is_asked = (ids >= 0) & sample.is_counted_SN[:, :, None]
    K, slots = ids.shape[2], np.maximum(ids, 0)
    stamp = _stamps(ids, sample.n_experts)
    before = np.full_like(stamp, -1)
    before[1:] = stamp[:-1]
    mine = np.take_along_axis(before, slots, axis=2)
    is_known = is_asked & (mine >= 0)
    step = np.arange(len(ids), dtype=np.int32)[:, None, None]
    tokens = np.where(is_known, step - mine // K, -1)
    others = np.stack([(before > mine[..., k, None]).sum(-1, dtype=np.int32) for k in range(K)], axis=-1)
    return Reuse(tokens, np.where(is_known, others, -1), is_asked, _working_sets(stamp // K, sample, windows))


def working_set_by_chance(n_experts: int, top_k: float, windows: Sequence[int]) -> list[float]:
    """What tokens would need that choose K of E at random: E (1 - (1 - K/E)^w)."""
    return [n_experts * (1 - (1 - top_k / n_experts) ** w) for w in windows]


def reuse_by_chance(n_experts: int, top_k: float, distances: Sequence[int]) -> list[float]:
    """The share that such tokens would have used within so many tokens before: 1 - (1 - K/E)^d."""
    return [1 - (1 - top_k / n_experts) ** d for d in distances]


def _stamps(ids_SNK: Ints, n_experts: int) -> Ints:
    """When each expert was last asked for, itself included -> [S, N, E]: place * K + (K - 1 - slot), or -1."""
    S, N, K = ids_SNK.shape
    stamp = np.full((S, N, n_experts + 1), -1, dtype=np.int32)
    rows = np.where(ids_SNK < 0, n_experts, ids_SNK)
    step = np.arange(S, dtype=np.int32)[:, None]
    for slot in reversed(range(K)):  # an expert that a token names twice counts at its better slot
        np.put_along_axis(stamp, rows[..., slot, None], (step * K + K - 1 - slot)[..., None], axis=2)
    return np.maximum.accumulate(stamp[..., :n_experts], axis=0)


def _working_sets(last_SNE: Ints, sample: Sample, windows: Sequence[int]) -> list[float]:
    """Means over the counted tokens that have w tokens up to them in their stretch. `last_SNE` is -1 for never."""
    step = np.arange(len(last_SNE))[:, None]
    begin_N = (sample.token_SN >= 0).argmax(0)
    found = []
    for w in windows:
        fits = sample.is_counted_SN & (step - begin_N + 1 >= w)
        needed = ((last_SNE > (step - w)[..., None]) & (last_SNE >= 0)).sum(-1)
        found.append(float(needed[fits].mean()) if fits.any() else float("nan"))
    return found


def reuse_sections(sample: Sample) -> list[Section]:
    """How long ago an expert was last used, and how many experts a window of tokens needs."""
    measured = [measure_reuse(sample, layer, WINDOWS) for layer in range(sample.n_layers)]
    return [_distances(sample, measured), _working_set(sample, measured)]


def _distances(sample: Sample, measured: Sequence[Reuse]) -> Section:
    within = [_within(reuse) for reuse in measured]
    chance = reuse_by_chance(sample.n_experts, sample.mean_used, WINDOWS)
    rows = [(n, within[n][0], *_quantiles(reuse)) for n, reuse in enumerate(measured)]
    shown = {f"layer {n}": within[n] for n in shown_layers(len(measured))}
    plot = Plot(
        "lines", "Experts that were used within so many tokens before", "tokens", "share of what is asked for",
        [str(w) for w in WINDOWS], {**shown, "routing at random": chance}, baselines=("routing at random",),
    )  # fmt: skip
    before = [row[0] for row in within]
    mean, best = sum(before) / len(before), before.index(max(before))
    return Section(
        "reuse", "How soon experts come back",
        f"{mean:.1%} of the experts that a token asks for were used by the token just before, {chance[0]:.1%} if "
        f"routing were random; most in layer {best} ({before[best]:.1%}).",
        ("layer", "used one token before", "tokens ago, median", "90 %", "99 %", "other experts since, mean"),
        tuple(rows), (plot,),
        note=f"On {sample.n_tokens:,} tokens. Distances go over the ends of documents, as a cache does. Other experts "
        "since: a cache of n experts with LRU has what fewer than n others were used after (Mattson et al. 1970).",
        facts={"one_token_before": mean, "chance": chance[0], "by_layer": before},
    )  # fmt: skip


def _within(reuse: Reuse) -> list[float]:
    """The share of what is asked for that was used within each of the windows."""
    ago = reuse.tokens_SNK[reuse.is_asked_SNK]
    return [float(((ago > 0) & (ago <= w)).sum()) / max(len(ago), 1) for w in WINDOWS]


def _quantiles(reuse: Reuse) -> tuple[float | None, ...]:
    """Of the tokens since (50, 90, 99 %), and the mean of the experts since; None where nothing came back."""
    ago, others = reuse.tokens_SNK[reuse.tokens_SNK > 0], reuse.others_SNK[reuse.others_SNK >= 0]
    if not len(ago):
        return (None,) * 4
    return (*(float(q) for q in np.percentile(ago, (50, 90, 99))), float(others.mean()))


def _working_set(sample: Sample, measured: Sequence[Reuse]) -> Section:
    E, n_layers = sample.n_experts, len(measured)
    chance = working_set_by_chance(E, sample.mean_used, WINDOWS)
    mean = [sum(reuse.needed[i] for reuse in measured) / n_layers for i in range(len(WINDOWS))]
    rows = [(w, mean[i], *(reuse.needed[i] for reuse in measured), chance[i]) for i, w in enumerate(WINDOWS)]
    shown = {f"layer {n}": measured[n].needed for n in shown_layers(n_layers)}
    plot = Plot(
        "lines", "Experts of a layer that the last tokens needed", "tokens", f"experts, of {E}",
        [str(w) for w in WINDOWS], {**shown, "routing at random": chance}, baselines=("routing at random",),
    )  # fmt: skip
    i = max((i for i, w in enumerate(WINDOWS) if w <= 16 and not math.isnan(mean[i])), default=0)
    return Section(
        "working-set", "How many experts a passage needs",
        f"{WINDOWS[i]} tokens in a row need {mean[i]:.2f} of the {E} experts of a layer on average, {chance[i]:.2f} if "
        "routing were random.",
        ("tokens", "mean of layers", *(f"layer {n}" for n in range(n_layers)), "at random"), tuple(rows), (plot,),
        note=f"Denning's working set, on {sample.n_tokens:,} tokens; at random: E (1 - (1 - K/E)^w).",
        facts={"windows": list(WINDOWS), "needed": mean, "chance": chance},
    )  # fmt: skip

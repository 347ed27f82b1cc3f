"""How alike experts are: each with the dense feed-forward block it may come from, and with each other.

A channel of a SwiGLU block is a row of `gate`, the same row of `up` and a column of `down`. The likeness of two blocks
is the cosine of all their numbers, channel by channel: 1 for copies (a factor does not change it), about 0 for blocks
that were trained apart. Beside it stands the same figure with the channels of one block shuffled, which is what weights
of the same statistics give by chance. A block that was reordered looks like chance there, so a sample of channels is
also compared with every channel of the dense block: how well the best one fits, and how often it has the same place. An
expert narrower than the dense block is compared with each segment of it, and the most alike one counts.
Shapes: D model width, F channels of an expert, E experts, N channels of the dense block, n of a sample.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from coterie.config import ModelConfig
from coterie.errors import CheckpointError

__all__ = ["PARTS", "LayerLikeness", "Matches", "between_experts", "check_comparable", "compare_layer", "say"]

PARTS = ("gate", "up", "down")
_SAMPLE = 64  # channels of an expert that look for their best match
_SAME, _TRACE = 0.9, 0.05  # cosines: from here on nearly copies; above chance by this much a trace
Tensors = Callable[[str], Tensor]  # a tensor by canonical name


@dataclass(frozen=True)
class Matches:
    """Of a sample of channels, the mean best cosine with any channel of the dense block; `by_chance` with its width
    shuffled; `in_place` the share whose best match has the same place."""

    best: float
    by_chance: float
    in_place: float


@dataclass(frozen=True)
class LayerLikeness:
    """Cosines by part: of each expert with the dense block, with the block's channels shuffled, of pairs of experts."""

    layer: int
    with_dense: dict[str, list[float]]
    shuffled: dict[str, list[float]]
    each_other: dict[str, float]  # mean over pairs; 1 where there is a single expert
    matches: list[Matches]  # of each expert


def check_comparable(sparse: ModelConfig, dense: ModelConfig, *, names: tuple[str, str]) -> None:
    """`CheckpointError` where two models have no channels to compare."""
    for config, name, is_sparse in ((sparse, names[0], True), (dense, names[1], False)):
        if config.is_sparse != is_sparse:
            kinds = "dense, expected a mixture of experts" if is_sparse else "sparse, expected the dense model"
            raise CheckpointError(f"{name} is {kinds}: inspect SPARSE --against DENSE")
    for key in ("hidden_size", "num_hidden_layers"):
        mine, other = getattr(sparse, key), getattr(dense, key)
        if mine != other:
            raise CheckpointError(
                f"{names[0]} has {key} {mine} and {names[1]} {other}; only models of the same width and depth can be "
                "compared"
            )
    if dense.intermediate_size % sparse.intermediate_size:
        raise CheckpointError(
            f"the experts of {names[0]} have {sparse.intermediate_size} channels and the block of {names[1]} "
            f"{dense.intermediate_size}; expected as many, or a whole number of times as many"
        )


def compare_layer(sparse: Tensors, dense: Tensors, layer: int, *, seed: int = 0) -> LayerLikeness:
    """Compare the experts of a layer with the dense block; `seed` shuffles and samples."""
    generator = torch.Generator().manual_seed(seed)
    block = [dense(f"layers.{layer}.feed_forward.{part}") for part in PARTS]
    block[2] = block[2].T
    experts = _by_part(sparse, layer)
    E, F, _ = experts[0].shape
    shuffle = torch.randperm(len(block[0]), generator=generator)
    mixed, channels_N3D = [part[shuffle] for part in block], _channels(block)
    with_dense: dict[str, list[float]] = {part: [] for part in PARTS}
    shuffled: dict[str, list[float]] = {part: [] for part in PARTS}
    matches = []
    for e in range(E):
        expert = [part[e] for part in experts]
        segment, cosines = _most_alike(expert, block)
        _, by_chance = _most_alike(expert, mixed)
        for part, a, b in zip(PARTS, cosines, by_chance, strict=True):
            with_dense[part].append(a)
            shuffled[part].append(b)
        matches.append(_matches(expert, channels_N3D, segment * F, generator))
    each_other = dict(zip(PARTS, (_mean_of_pairs(part) for part in experts), strict=True))
    return LayerLikeness(layer, with_dense, shuffled, each_other, matches)


def between_experts(tensors: Tensors, layer: int, *, segments: int = 1) -> float:
    """The mean cosine of two experts of a layer over all their numbers: 1 while they are copies of each other.

    Where a block was cut into `segments`, those that hold the same one are compared (expert e holds e mod segments).
    """
    parts = _by_part(tensors, layer)
    per_part = [_mean_of_pairs(part[g::segments]) for part in parts for g in range(segments)]
    return sum(per_part) / len(per_part)


def _by_part(tensors: Tensors, layer: int) -> list[Tensor]:
    """gate, up and down of all experts, each [E, F, D]."""
    gate, up = tensors(f"layers.{layer}.moe.experts.gate_up").chunk(2, 1)
    return [gate, up, tensors(f"layers.{layer}.moe.experts.down").mT]


def _most_alike(expert: Sequence[Tensor], block: Sequence[Tensor]) -> tuple[int, list[float]]:
    """The segment of the block that is most like the expert, and the cosines of the three parts with it."""
    F = len(expert[0])
    pieces = zip(*(torch.split(part, F) for part in block), strict=True)
    found = [[_cosine(mine, theirs) for mine, theirs in zip(expert, piece, strict=True)] for piece in pieces]
    best = max(range(len(found)), key=lambda i: sum(found[i]))
    return best, found[best]


def _cosine(a: Tensor, b: Tensor) -> float:
    a, b = a.float(), b.float()
    lengths = float(a.norm()) * float(b.norm())
    return float((a * b).sum()) / lengths if lengths else 0.0


def _mean_of_pairs(experts: Tensor) -> float:
    """Of the cosines of all pairs: (|Σ_e u_e|² - E) / (E·(E - 1)) for experts u_e of length 1."""
    E = len(experts)
    if E < 2:
        return 1.0
    total = torch.zeros(experts.shape[1:], dtype=torch.float64, device=experts.device)
    for expert in experts:
        wide = expert.double()
        total += wide / wide.norm().clamp(min=1e-300)
    return (float(total.square().sum()) - E) / (E * (E - 1))


def _matches(expert: Sequence[Tensor], theirs: Tensor, first: int, generator: torch.Generator) -> Matches:
    """Channels as rows of length 1, all three parts side by side [n, 3·D], against those of the block [N, 3·D]."""
    chosen = torch.randperm(len(expert[0]), generator=generator)[:_SAMPLE]
    mine = _channels([part[chosen] for part in expert])
    best = (mine @ theirs.T).max(1)
    shuffle = torch.randperm(theirs.shape[1], generator=generator)
    by_chance = (mine[:, shuffle] @ theirs.T).max(1).values
    in_place = (best.indices == chosen + first).float().mean()
    return Matches(float(best.values.mean()), float(by_chance.mean()), float(in_place))


def _channels(parts: Sequence[Tensor]) -> Tensor:
    """Each part to length 1 for itself, so that the scales of gate, up and down do not matter."""
    return torch.cat([functional.normalize(part.float(), dim=1) for part in parts], 1) / math.sqrt(len(parts))


def _mean_of_parts(cosines: dict[str, list[float]], expert: int) -> float:
    return sum(cosines[part][expert] for part in PARTS) / len(PARTS)


def say(layers: Sequence[LayerLikeness]) -> str:
    """What the figures mean, in a sentence or two."""

    def mean(of: Callable[[LayerLikeness], list[float]]) -> float:
        values = [value for layer in layers for value in of(layer)]
        return sum(values) / len(values)

    alike = mean(lambda at: [v for part in PARTS for v in at.with_dense[part]])
    chance = mean(lambda at: [v for part in PARTS for v in at.shuffled[part]])
    best = mean(lambda at: [m.best for m in at.matches])
    by_chance = mean(lambda at: [m.by_chance for m in at.matches])
    figures = f"mean cosine {alike:.2f}, {chance:.2f} with shuffled channels"
    others = mean(lambda at: list(at.each_other.values()))
    apart = f"Two experts of a layer have {others:.2f} with each other."
    own = [_mean_of_parts(at.with_dense, e) for at in layers for e in range(len(at.matches))]
    related = [value for value in own if value > chance + _TRACE]
    if 0 < len(related) < len(own) and max(related) > _SAME:
        return (
            f"{len(related)} of {len(own)} experts come from the dense block (mean cosine "
            f"{sum(related) / len(related):.2f}), the others do not ({chance:.2f} with shuffled channels). {apart}"
        )
    if alike > _SAME:
        return f"The experts are nearly copies of the dense block ({figures}). {apart}"
    if alike > chance + _TRACE:
        return f"The experts come from the dense block and have moved away from it ({figures}). {apart}"
    if best > by_chance + 2 * _TRACE:
        return (
            f"The experts hold channels of the dense block in another order (best matches {best:.2f}, by chance "
            f"{by_chance:.2f}). {apart}"
        )
    return f"Nothing of the dense block can be seen in the experts ({figures}). {apart}"

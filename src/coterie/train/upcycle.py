"""Dense to sparse: each expert is made of the dense feed-forward block of its layer, everything else is kept.

Three ways (`Upcycling.method`): "copy" (arXiv 2212.05055), every expert the whole block; "split" (arXiv 2410.07524),
every expert one of G segments of it; "drop" (arXiv 2502.19261), copies with a share of the channels drawn anew.

Virtual groups: expert e holds segment e mod G of copy e div G, and the G experts of a copy share their router row.
Their logits are equal, so the top K = n·G takes whole copies. Example, E=8, G=4, K=4: experts 0-3 are one copy, 4-7
another; a token that prefers the second gets the experts 4, 5, 6 and 7, which together are the dense block.

What the experts of a token add up to, with FFN = Σ_g FFN_g over the segments, where its weights add up to W and every
copy's is shared by its G experts: W/G · FFN. Experts scaled by G/W make it FFN again.
- Softmax over the K kept logits: W = 1, whatever the router says, so the model equals the dense one exactly.
- Softmax over all E logits, not renormalised: W is the probability of what was chosen, which depends on the token. It
  is K/E for a router that has no opinion (or K = E), and experts are scaled for that: E·G/K.

SwiGLU is down(silu(gate(x)) · up(x)): linear in `up` and in `down`, not in `gate`. So the factor goes into those two,
half of it (as a power) in each, and the function stays exactly the same; a cube root in all three, as in arXiv
2410.07524 (appendix), keeps it only where silu is linear. Powers of two stay powers of two, which no float type rounds.

Shapes: D model width, F width of the dense block, E experts, G segments of a block (here not the key/value heads).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from coterie.config import ModelConfig
from coterie.errors import RecipeError

__all__ = ["Upcycling", "random_router", "sparse_config", "upcycle"]

_TAKES_COPIES = ("topk", "noisy_topk", "sigmoid_bias", "dense")  # routers that give equal logits to the same tokens
_ALWAYS_ONE = ("gshard", "hash", "random", "dense", "soft")
Tensors = Callable[[str], Tensor]  # a tensor by canonical name


@dataclass(frozen=True, kw_only=True)
class Upcycling:
    """How experts are made: `granularity` is G, `drop` the share of channels that "drop" draws anew."""

    method: str = "copy"
    granularity: int = 1
    drop: float = 0.5
    router_std: float = 0.02
    seed: int = 0

    @property
    def redrawn(self) -> float:
        return self.drop if self.method == "drop" else 0.0

    def scale(self, config: ModelConfig) -> float:
        """The factor on what an expert puts out, for a sparse `config`: G/W."""
        return self.granularity / _weight_of_a_token(config)

    def is_exact(self, config: ModelConfig, dtype: torch.dtype) -> bool:
        """Whether experts of this dtype hold the dense block's numbers times the scale without rounding."""
        return not self.redrawn and (dtype == torch.float64 or math.log2(self.scale(config)).is_integer())


def _weight_of_a_token(config: ModelConfig) -> float:
    """W: what the weights of a token add up to, where they depend on the router for one that has no opinion."""
    kind, E, K = config.router.kind, config.num_local_experts, config.num_experts_per_tok
    assert E is not None
    if kind == "sigmoid_bias":
        return config.router.scale * (1 if config.norm_topk_prob else K / 2)
    if kind == "sparsemixer_v2":  # the second is drawn among those that are left
        return sum(1 / (E - slot) for slot in range(K))
    if kind in _ALWAYS_ONE or (kind in _TAKES_COPIES and config.norm_topk_prob):
        return 1.0
    return 0.5 if kind in ("base", "sinkhorn") and K == 1 else K / E


def sparse_config(dense: ModelConfig, fields: dict[str, Any], plan: Upcycling, *, where: str) -> ModelConfig:
    """The configuration of the sparse model: `fields` of a recipe's [model] on top of the dense one.

    Raises `RecipeError` where a field contradicts the dense model or experts do not fit it.
    """
    if dense.is_sparse:
        raise RecipeError(f"{where}: the model to upcycle is sparse already; train it further with [init] from")
    G, F = plan.granularity, dense.intermediate_size
    if F % G:
        raise RecipeError(f"{where}: granularity {G} does not divide the dense model's intermediate_size {F}")
    own = {"num_local_experts", "num_experts_per_tok", "norm_topk_prob", "torch_dtype", "router"}
    agreed = dense.to_fields() | {"intermediate_size": F // G}
    for key, value in fields.items():
        if key in agreed and key not in own and value != agreed[key]:
            raise RecipeError(
                f"{where}: [model] {key} is {value!r} and the dense model makes it {agreed[key]!r}; leave it out"
            )
    experts = {"num_experts_per_tok": 2 * G}
    config = ModelConfig.from_fields({**agreed, **experts, **fields}, where=f"{where}: [model]")
    if config.num_local_experts is None:
        raise RecipeError(f"{where}: [model] needs num_local_experts, the number of experts of each layer")
    if G > 1 and config.router.kind not in _TAKES_COPIES:
        raise RecipeError(
            f"{where}: granularity {G} needs a router that takes the segments of a copy together "
            f"({', '.join(_TAKES_COPIES)}), not {config.router.kind!r}"
        )
    E, K = config.num_local_experts, config.num_experts_per_tok
    for name, n in (("num_local_experts", E), ("num_experts_per_tok", K)):
        if n % G:
            raise RecipeError(
                f"{where}: [model] {name} is {n}, expected a multiple of granularity {G}: experts are whole copies of "
                "the dense block, in that many segments each"
            )
    return replace(config, extra={k: v for k, v in dense.extra.items() if k not in ("model_type", "architectures")})


def upcycle(dense: Tensors, config: ModelConfig, plan: Upcycling) -> Tensors:
    """The tensors of the sparse model `config` by canonical name, made of the dense ones when they are asked for.

    Experts come in the dtype of the dense tensors, routers in float32. The same plan gives the same numbers.
    """

    def tensor(name: str) -> Tensor:
        layer, _, part = name.partition(".moe.")
        if not part:
            return dense(name)
        at = int(layer.removeprefix("layers."))
        if part == "router":
            return random_router(config, plan, at)
        assert part in ("experts.gate_up", "experts.down"), f"{name} is not made of dense tensors"
        parts = ("down",) if part == "experts.down" else ("gate", "up")
        made = torch.cat([_experts(dense(f"{layer}.feed_forward.{p}"), p, config, plan, at) for p in parts], 1)
        n_times = (config.num_local_experts or 0) // len(made)
        return made.expand(n_times, -1, -1) if len(made) == 1 else made.repeat(n_times, 1, 1)

    return tensor


def random_router(config: ModelConfig, plan: Upcycling, layer: int) -> Tensor:
    """Normal rows [E, D], the same within a copy; a soft router has one for each slot of each expert."""
    assert config.num_local_experts is not None
    n_copies = config.num_local_experts * config.router.slots // plan.granularity
    generator = torch.Generator().manual_seed(_seed(plan.seed, layer, 0, "router"))
    rows = torch.empty(n_copies, config.hidden_size).normal_(0.0, plan.router_std, generator=generator)
    return rows.repeat_interleave(plan.granularity, 0)


def _experts(dense: Tensor, part: str, config: ModelConfig, plan: Upcycling, layer: int) -> Tensor:
    """One part of a layer's different experts (G of them, or all where channels are drawn anew): gate and up
    [n, F/G, D], down [n, D, F/G]; channels are rows of the first two."""
    assert config.num_local_experts is not None
    segments = (dense.T if part == "down" else dense).chunk(plan.granularity)
    made = [segments[e % plan.granularity] for e in range(config.num_local_experts if plan.redrawn else len(segments))]
    if plan.redrawn:
        made = [_redraw(segment, part, plan, layer, e) for e, segment in enumerate(made)]
    up, down = _factors(plan.scale(config))
    experts = torch.stack([segment.T for segment in made] if part == "down" else made)
    return experts.mul_({"gate": 1.0, "up": up, "down": down}[part])


def _factors(scale: float) -> tuple[float, float]:
    """(up's, down's) factor, their product the scale: roots, but powers of two where the scale is one. 8 -> 2 and 4."""
    exponent = math.log2(scale)
    if exponent.is_integer():
        up = int(exponent) // 2
        return 2.0**up, 2.0 ** (exponent - up)
    return math.sqrt(scale), scale / math.sqrt(scale)


def _redraw(channels_FD: Tensor, part: str, plan: Upcycling, layer: int, expert: int) -> Tensor:
    """A copy in which some channels, the same in all three parts, are normal with the mean and deviation of what they
    replace (arXiv 2502.19261, section 3)."""
    F = len(channels_FD)
    generator = torch.Generator().manual_seed(_seed(plan.seed, layer, expert, "channels"))
    chosen = torch.randperm(F, generator=generator)[: round(plan.redrawn * F)]
    old = channels_FD[chosen].float()
    generator = torch.Generator().manual_seed(_seed(plan.seed, layer, expert, part))
    new = torch.empty(old.shape).normal_(generator=generator)
    kept = channels_FD.clone()
    if len(chosen):
        kept[chosen] = (old.mean() + old.std(correction=0) * new).to(kept.dtype)
    return kept


def _seed(seed: int, layer: int, expert: int, what: str) -> int:
    """One number for each draw. A hash of whole numbers is the same in every process; one of a string is not."""
    kinds = ("router", "channels", "gate", "up", "down")
    return hash((seed, layer, expert, kinds.index(what))) % 2**63

"""Which router a sparse model has, and its numbers; no torch.

`routing/build.py` makes the module, docs/routers.md explains the kinds. `capacity`, `drop` and `jitter` shape training
only: when a model is used nothing is dropped and nothing is jittered.
Shapes: D model width, E experts.
"""

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from coterie.errors import ConfigError, nearest

__all__ = ["ROUTER_KINDS", "RouterConfig"]

ROUTER_KINDS = (
    "topk", "topk_all", "noisy_topk", "switch", "gshard", "expert_choice", "base", "sinkhorn", "soft", "sparsemixer",
    "sparsemixer_v2", "sigmoid_bias", "hash", "random", "dense",
)  # fmt: skip
_FIXED_TOP_K = {"switch": 1, "base": 1, "sparsemixer": 1, "gshard": 2}  # kinds defined for so many experts only
_OF_ALL = ("soft", "dense")  # kinds that send each token to all experts
_LIMITED = ("topk", "topk_all", "noisy_topk", "switch", "gshard", "sigmoid_bias")  # kinds that take a capacity
_RENORMALISING = ("topk", "noisy_topk", "sigmoid_bias")
_OWN_NUMBERS = {"slots": ("soft",), "epsilon": ("sparsemixer", "sparsemixer_v2"), "scale": ("sigmoid_bias",)}
_NEVER_CAUSAL = ("expert_choice", "soft")
_WITHOUT_WEIGHT = ("hash", "random")
_TRAINING_ONLY = ("capacity", "drop", "jitter")


@dataclass(frozen=True, kw_only=True)
class RouterConfig:
    """The section [router] of a recipe and the key "router" of a config.json. Raises `ConfigError`."""

    kind: str = "topk"
    capacity: float = 0.0  # an expert takes at most ceil(capacity · T·K / E) of the slots; 0: as many as come
    drop: str = "position"  # which slots go where an expert is full: the last in the text, or the least "probability"
    jitter: float = 0.0  # rows are multiplied by a number between 1 - jitter and 1 + jitter before they are routed
    slots: int = 1  # of each expert and sequence; soft only
    epsilon: float = 0.1  # sparsemixer: experts whose logit is further than 2 · epsilon (relative) are never drawn
    scale: float = 1.0  # sigmoid_bias: what the weights of a token add up to where they are renormalised

    def __post_init__(self) -> None:
        for f in fields(self):
            self._check_type(f.name, f.type)
        _need(self.kind in ROUTER_KINDS, "kind", self.kind, f"one of {', '.join(ROUTER_KINDS)}", ROUTER_KINDS)
        _need(self.drop in ("position", "probability"), "drop", self.drop, "position or probability")
        _need(0 <= self.capacity <= 1 << 16, "capacity", self.capacity, "0 (no limit) or more, at most 65536")
        _need(self.capacity == 0 or self.kind in _LIMITED, "capacity", self.capacity, f"0 for the kind {self.kind!r}")
        _need(self.drop == "position" or self.capacity > 0, "drop", self.drop, "a capacity beside it")
        _need(0 <= self.jitter < 1, "jitter", self.jitter, "from 0 to below 1")
        _need(1 <= self.slots <= 1 << 16, "slots", self.slots, "between 1 and 65536")
        _need(0 < self.epsilon <= 1, "epsilon", self.epsilon, "above 0, at most 1")
        _need(self.scale > 0, "scale", self.scale, "more than 0")
        for name, kinds in _OWN_NUMBERS.items():
            value, default = getattr(self, name), getattr(RouterConfig, name)
            _need(value == default or self.kind in kinds, name, value, f"{default} for the kind {self.kind!r}")

    def _check_type(self, name: str, wanted: Any) -> None:
        value = getattr(self, name)
        if wanted is float and type(value) is int:
            value = float(value) if abs(value) < 1 << 53 else math.inf
            object.__setattr__(self, name, value)
        kind = {float: "a number", int: "a whole number", str: "a string"}[wanted]
        _need(type(value) is wanted, name, value, kind)
        _need(wanted is not float or math.isfinite(value), name, value, "a finite number")

    @property
    def is_plain(self) -> bool:
        """Whether a trained model of this kind computes what Mixtral does."""
        return self.kind in ("topk", "topk_all")

    @property
    def can_decode(self) -> bool:
        """False where a token's experts depend on later tokens even when the model is used."""
        return self.kind not in _NEVER_CAUSAL

    @property
    def needs_token_ids(self) -> bool:
        return self.kind in _WITHOUT_WEIGHT

    def top_k_for(self, n_experts: int, top_k: int) -> int:
        """How many experts a token of this kind has: `top_k`, or the only number that it is defined for."""
        if self.kind in _OF_ALL:
            return n_experts
        return min(top_k, 2) if self.kind == "sparsemixer_v2" else _FIXED_TOP_K.get(self.kind, top_k)

    def check_sizes(self, n_experts: int, top_k: int, renormalise: bool) -> None:
        """`ConfigError` where this kind cannot route each token to `top_k` of `n_experts`."""
        wanted = self.top_k_for(n_experts, top_k)
        if top_k != wanted:
            raise ConfigError(
                f"num_experts_per_tok is {top_k}, but the router {self.kind!r} sends each token to {wanted} of "
                f"{n_experts} experts: set it to {wanted}"
            )
        if not self.is_plain:  # a plain model with one expert a token may have been trained elsewhere
            self.check_trainable(top_k, renormalise)

    def check_trainable(self, top_k: int, renormalise: bool) -> None:
        """`ConfigError` where the router would learn nothing: one weight alone, renormalised, is 1 whatever it does."""
        if top_k == 1 and renormalise and self.kind in _RENORMALISING:
            raise ConfigError(
                "norm_topk_prob is true with num_experts_per_tok 1: the one weight is always 1 and the router gets no "
                "gradient; set norm_topk_prob to false, or choose two experts a token"
            )

    def tensor_shapes(self, n_experts: int, width: int) -> dict[str, tuple[int, ...]]:
        """The tensors of one router, by their name after `moe.router`: "" is the weight; in the order of files."""
        shapes: dict[str, tuple[int, ...]] = {}
        if self.kind not in _WITHOUT_WEIGHT:
            shapes[""] = n_experts * self.slots, width
        extra = {
            "noisy_topk": ("noise", (n_experts, width)),
            "sigmoid_bias": ("bias", (n_experts,)),
            "soft": ("scale", (1,)),
            "sparsemixer": ("omega", (1,)),
        }
        return shapes | dict([extra[self.kind]] if self.kind in extra else [])

    @classmethod
    def from_fields(cls, values: Any) -> "RouterConfig":
        """From exactly these keys; an unknown one is an error that names the nearest."""
        if isinstance(values, RouterConfig):
            return values
        if not isinstance(values, dict):
            raise ConfigError(f"router is {values!r}, expected a table with the key 'kind'")
        names = [f.name for f in fields(cls)]
        for key in values:
            if key not in names:
                raise ConfigError(
                    f"router.{key} is unknown and may change what the model computes{nearest(key, names)}"
                )
        return cls(**values)

    def to_fields(self) -> dict[str, Any]:
        """What a config.json must say: the kind and what differs from the defaults, less what only training needs."""
        mine, default = asdict(self), asdict(RouterConfig(kind=self.kind))
        return {k: v for k, v in mine.items() if k == "kind" or (v != default[k] and k not in _TRAINING_ONLY)}


def _need(ok: bool, name: str, value: Any, expected: str, known: tuple[str, ...] = ()) -> None:
    if not ok:
        hint = nearest(value, known) if isinstance(value, str) else ""
        raise ConfigError(f"router.{name} is {value!r}, expected {expected}{hint}")

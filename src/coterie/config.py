"""What a model is: one frozen dataclass with Hugging Face's (version 4) names, checked before anything is allocated.

`num_local_experts=None` means a dense model (Mistral 7B, Llama 2). `head_dim` is filled in when absent.
How each file format spells these fields is the format's business: `checkpoint/huggingface.py`, `checkpoint/mistral.py`.
"""

import math
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from coterie.errors import ConfigError, nearest
from coterie.router_config import RouterConfig

__all__ = ["ModelConfig", "RouterConfig"]

_LARGEST = {  # far above any published model, far below what could exhaust a machine by itself
    "vocab_size": 1 << 22,
    "hidden_size": 1 << 17,
    "intermediate_size": 1 << 19,
    "num_hidden_layers": 1 << 10,
    "num_attention_heads": 1 << 10,
    "num_key_value_heads": 1 << 10,
    "head_dim": 1 << 12,
    "num_local_experts": 1 << 12,
    "num_experts_per_tok": 1 << 12,
    "max_position_embeddings": 1 << 24,
    "sliding_window": 1 << 24,
}
_OPTIONAL = ("sliding_window", "num_local_experts", "bos_token_id", "eos_token_id")
_DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape and constants of a Mixtral-family decoder; the defaults are Mixtral 8x7B v0.1's.

    Raises `ConfigError` on a wrong type, a bound or a combination that cannot be built.
    """

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 14336  # of each expert
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    head_dim: int = 0  # 0: hidden_size / num_attention_heads
    num_local_experts: int | None = 8
    num_experts_per_tok: int = 2
    norm_topk_prob: bool = True  # weights are a softmax over the kept logits; False: over all of them, not renormalised
    max_position_embeddings: int = 32768
    rms_norm_eps: float = 1e-5
    rope_theta: float = 1e6
    sliding_window: int | None = None  # a query sees this many keys, itself included; None: all before it
    tie_word_embeddings: bool = False
    bos_token_id: int | None = 1
    eos_token_id: int | tuple[int, ...] | None = 2
    torch_dtype: str = "bfloat16"
    router: RouterConfig = field(default_factory=RouterConfig)  # its "topk_all" becomes "topk", norm_topk_prob false
    extra: dict[str, Any] = field(default_factory=dict, compare=False)  # harmless keys, kept for writing back

    def __post_init__(self) -> None:
        object.__setattr__(self, "router", RouterConfig.from_fields(self.router))
        if self.router.kind == "topk_all":
            object.__setattr__(self, "router", replace(self.router, kind="topk"))
            object.__setattr__(self, "norm_topk_prob", False)
        for f in fields(self):
            if f.name != "router":
                self._check_type(f.name, f.type)
        if self.head_dim == 0:
            _need(self.num_attention_heads > 0, "num_attention_heads", self.num_attention_heads, "at least 1")
            _need(
                self.hidden_size % self.num_attention_heads == 0,
                "num_attention_heads",
                self.num_attention_heads,
                f"a divisor of hidden_size {self.hidden_size}, or head_dim given",
            )
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)
        self._check_bounds()

    def _check_type(self, name: str, annotation: Any) -> None:
        value = getattr(self, name)
        if name in _OPTIONAL and value is None:
            return
        if name == "eos_token_id" and isinstance(value, list | tuple):
            _need(len(value) > 0 and all(type(v) is int for v in value), name, value, "an id or a list of ids")
            object.__setattr__(self, name, tuple(value))
            return
        wanted = {"extra": dict, "torch_dtype": str, "rms_norm_eps": float, "rope_theta": float}.get(name)
        if wanted is None:
            wanted = bool if annotation is bool or name in ("norm_topk_prob", "tie_word_embeddings") else int
        if wanted is float and type(value) is int:
            try:
                value = float(value)
            except OverflowError:
                value = math.inf
            object.__setattr__(self, name, value)
        _need(type(value) is wanted, name, value, f"{_article(wanted)}")

    def _check_bounds(self) -> None:
        for name, largest in _LARGEST.items():
            value = getattr(self, name)
            if value is None:
                continue
            _need(1 <= value <= largest, name, value, f"between 1 and {largest}")
        for name in ("rms_norm_eps", "rope_theta"):
            value = getattr(self, name)
            _need(math.isfinite(value) and value > 0, name, value, "a positive finite number")
        _need(
            self.num_attention_heads % self.num_key_value_heads == 0,
            "num_key_value_heads",
            self.num_key_value_heads,
            f"a divisor of num_attention_heads {self.num_attention_heads}",
        )
        _need(self.head_dim % 2 == 0, "head_dim", self.head_dim, "even, for the rotary embedding")
        if self.num_local_experts is not None:
            _need(
                self.num_experts_per_tok <= self.num_local_experts,
                "num_experts_per_tok",
                self.num_experts_per_tok,
                f"at most num_local_experts {self.num_local_experts}",
            )
            self.router.check_sizes(self.num_local_experts, self.num_experts_per_tok, self.norm_topk_prob)
        elif not self.router.is_plain:
            raise ConfigError(
                f"router.kind is {self.router.kind!r}, but num_local_experts is None: a dense model has none"
            )
        for name, ids in (("bos_token_id", [self.bos_token_id]), ("eos_token_id", self.eos_ids)):
            for i in ids:
                if i is not None:
                    _need(0 <= i < self.vocab_size, name, i, f"an id below vocab_size {self.vocab_size}")
        _need(self.torch_dtype in _DTYPES, "torch_dtype", self.torch_dtype, "one of " + ", ".join(_DTYPES))

    @property
    def is_sparse(self) -> bool:
        return self.num_local_experts is not None

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Every id that ends a text."""
        if self.eos_token_id is None:
            return ()
        return self.eos_token_id if isinstance(self.eos_token_id, tuple) else (self.eos_token_id,)

    @classmethod
    def from_fields(cls, values: dict[str, Any], *, where: str) -> "ModelConfig":
        """A config from exactly these field names; an unknown one is an error that names the nearest."""
        names = [f.name for f in fields(cls)]
        for key in values:
            if key not in names:
                raise ConfigError(f"{where}: {key!r} is not a field of a model{nearest(key, names)}")
        try:
            return cls(**values)
        except ConfigError as e:
            raise ConfigError(f"{where}: {e}") from None

    def to_fields(self) -> dict[str, Any]:
        """The fields as plain JSON values, without `extra`; without `router` where it is plain."""
        values = asdict(self)
        del values["extra"], values["router"]
        if not self.router.is_plain:
            values["router"] = self.router.to_fields()
        if isinstance(self.eos_token_id, tuple):
            values["eos_token_id"] = list(self.eos_token_id)
        return values


def _need(ok: bool, name: str, value: Any, expected: str) -> None:
    if not ok:
        raise ConfigError(f"{name} is {repr(value)[:60]}, expected {expected}")


def _article(kind: type) -> str:
    return {bool: "true or false", int: "a whole number", float: "a number", str: "a string", dict: "a table"}[kind]

"""Which part of a model gets which format, and how the numbers are found.

Attention is a thirtieth of Mixtral's weights and most of the damage where it loses bits (arXiv 2312.17238, table 1): it
stays at 8 bits whatever the experts get, and so do the head and the embedding. Norms and routers stay float32. A dense
model's feed-forward counts as experts. Recipes are read without torch.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from coterie.errors import CheckpointError, RequestError, nearest
from coterie.quant.formats import FORMATS, SPAN, Format

if TYPE_CHECKING:
    from torch import Tensor

    from coterie.quant.tensor import PackedTensor

__all__ = ["METHODS", "PACKED_PARTS", "TYPES", "Recipe", "why_not"]

TYPES = ("int8", "int6", "int5", "int4", "int3", "int2")
METHODS = ("rtn", "hqq")
PACKED_PARTS = ("attention", "experts", "embedding", "head")


@dataclass(frozen=True)
class Recipe:
    """`type` names the experts' bits; `method` is "rtn" (round to nearest) or "hqq"."""

    type: str
    method: str = "rtn"
    attention: Format = FORMATS["int8"]
    experts: Format = FORMATS["int4"]
    embedding: Format = FORMATS["int8"]
    head: Format = FORMATS["int8"]

    @classmethod
    def of(cls, type: str, method: str = "rtn") -> "Recipe":
        """The default recipe of a type; `RequestError` for a type or method that does not exist."""
        if type not in TYPES:
            raise RequestError(
                f"the type {type!r} is unknown, expected one of {', '.join(TYPES)}{nearest(type, TYPES)}"
            )
        if method not in METHODS:
            raise RequestError(f"the method {method!r} is unknown, expected rtn or hqq{nearest(method, METHODS)}")
        return cls(type, method, experts=FORMATS[type])

    def format_of(self, part: str) -> Format | None:
        """The format of a part of the model; None: it stays float32."""
        found: Format | None = getattr(self, part) if part in PACKED_PARTS else None
        return found

    def quantise(self, w_NK: "Tensor", format: Format, importance_K: "Tensor | None") -> "PackedTensor":
        from coterie.quant import hqq, round_to_nearest

        encoder = {"rtn": round_to_nearest.round_to_nearest, "hqq": hqq.half_quadratic}[self.method]
        return encoder(w_NK, format, importance_K)

    def to_fields(self) -> dict[str, Any]:
        formats = {part: getattr(self, part).to_fields() for part in PACKED_PARTS}
        return {"type": self.type, "method": self.method, "formats": formats}

    @classmethod
    def from_fields(cls, values: Any, where: str) -> "Recipe":
        """The recipe that a file describes; `CheckpointError` for one that makes no sense."""
        if not isinstance(values, dict) or not isinstance(values.get("formats"), dict):
            raise CheckpointError(f"{where}: the recipe is {str(values)[:80]}, expected type, method and formats")
        for name in ("type", "method"):
            if not isinstance(values.get(name), str):
                raise CheckpointError(f"{where}: the recipe's {name} is {values.get(name)!r:.80}, expected a name")
        if sorted(values["formats"]) != sorted(PACKED_PARTS):
            found = ", ".join(map(str, values["formats"]))[:80]
            raise CheckpointError(f"{where}: formats of {found or 'nothing'}, expected {', '.join(PACKED_PARTS)}")
        formats = {part: Format.from_fields(values["formats"][part], f"{where}: {part}") for part in PACKED_PARTS}
        return cls(values["type"], values["method"], **formats)


def why_not(name: str, shape: tuple[int, ...], model_width: int, expert_width: int) -> str | None:
    """Why a matrix [N, K] cannot be packed and stays as it is; None: it can.

    The matrices of an expert are packed together or not at all, and its gate and up rows lie 16 by 16.
    """
    both = {"hidden_size": model_width, "intermediate_size": expert_width}
    for what, n in (both if ".experts." in name else {"the number of inputs": shape[-1]}).items():
        if n % SPAN:
            return f"{what} is {n}, no multiple of {SPAN}"
    return None

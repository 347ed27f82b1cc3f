"""What a quantised matrix may look like: four fields, from which every byte of it follows (`docs/packed.md`).

A weight is an unsigned value u of `bits` bits and the scale of its group. With zero = 2^(bits-1) the weight is
    f16           s (u - zero)              s: one F16 a group of unit·group_units consecutive k
    f16_offset    s u + o                   s, o: one F16 each a group
    super         (d sc) (u - zero)         d: one F16 every 256 k, sc: int8 a unit
    super_min     (d sc) u - (dmin m)       d, dmin: one F16 each every 256 k, sc, m: uint8 a unit
    super_nibble  the same, sc and m 4 bits each in the byte sc | m << 4
GGUF's types are all of this kind, so their numbers move into our layout without loss. Example: int4, super_min with
units of 32, takes 4 + 2·8/32 + 2·16/256 = 4.625 bits a weight. Shapes: N outputs (rows), K inputs of a matrix.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from coterie.errors import CheckpointError, nearest

__all__ = ["BLOCK", "FORMATS", "PANEL", "SPAN", "Format", "Scales", "format_of"]

PANEL = 16  # consecutive outputs that are stored together
SPAN = 32  # consecutive k whose values are stored together
BLOCK = 256  # consecutive k whose scales are stored together
Scales = Literal["f16", "f16_offset", "super", "super_min", "super_nibble"]
_BITS, _UNITS = (2, 3, 4, 5, 6, 8), (16, 32)


@dataclass(frozen=True, slots=True)
class Format:
    """`bits` of a value, `unit` of k at the finest level, `group_units` units to an F16 scale, kind of `scales`."""

    bits: int
    unit: int = 32
    group_units: int = 1
    scales: Scales = "f16"

    @classmethod
    def from_fields(cls, values: Any, where: str) -> "Format":
        """The format that a file describes; `CheckpointError` for one that does not exist."""
        names = [f.name for f in fields(cls)]
        if not isinstance(values, dict) or sorted(values) != sorted(names):
            raise CheckpointError(f"{where}: a format is {str(values)[:80]}, expected exactly {', '.join(names)}")
        allowed = {"bits": _BITS, "unit": _UNITS, "group_units": (1, 2), "scales": get_args(Scales)}
        for name, known in allowed.items():
            if type(values[name]) is bool or values[name] not in known:
                raise CheckpointError(f"{where}: a format's {name} is {values[name]!r:.80}, expected one of {known}")
        if values["group_units"] != 1 and values["scales"].startswith("super"):
            raise CheckpointError(f"{where}: a format's group_units is 2, expected 1 with {values['scales']}")
        return cls(**values)

    def to_fields(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def zero(self) -> int:
        """The value of weight 0 in a symmetric format; 0 in one with an offset."""
        return 1 << (self.bits - 1) if self.scales in ("f16", "super") else 0

    @property
    def is_super(self) -> bool:
        """Whether the scales themselves are quantised, 256 k at a time."""
        return self.scales.startswith("super")

    @property
    def group(self) -> int:
        """How many k share the finest scale."""
        return self.unit if self.is_super else self.unit * self.group_units

    @property
    def label(self) -> str:
        """`4 bit, groups of 32, offset`."""
        kind = {"f16": "", "f16_offset": ", offset", "super": ", 8-bit scales"}
        detail = kind.get(self.scales, f", {4 if self.scales == 'super_nibble' else 8}-bit scales and offsets")
        return f"{self.bits} bit, groups of {self.group}{detail}"

    def scale_bytes(self, n: int) -> int:
        """Bytes before the values of a block of n k: sections 1 and 2."""
        groups = -(-n // self.group)
        per_group = {"f16": 2, "f16_offset": 4, "super": 1, "super_min": 2, "super_nibble": 1}[self.scales]
        return PANEL * (4 * self.is_super + per_group * groups)

    def block_bytes(self, n: int = BLOCK) -> int:
        """Bytes of a block of n k: 16 outputs' scales and values."""
        return self.scale_bytes(n) + PANEL * n * self.bits // 8

    def panel_bytes(self, K: int) -> int:
        """Bytes of 16 outputs."""
        return K // BLOCK * self.block_bytes() + (self.block_bytes(K % BLOCK) if K % BLOCK else 0)

    def matrix_bytes(self, N: int, K: int) -> int:
        """Bytes of a matrix; K is a multiple of 32, N is padded to one of 16."""
        assert K % SPAN == 0, f"K is {K}, expected a multiple of {SPAN}"
        return -(-N // PANEL) * self.panel_bytes(K)


FORMATS: dict[str, Format] = {  # which int name is which: docs/quantization.md has the measurements
    "int8": Format(8),
    "int6": Format(6),
    "int5": Format(5, scales="super_min"),
    "int4": Format(4, scales="super_min"),
    "int3": Format(3, 16, scales="super"),
    "int2": Format(2, 16, scales="super_nibble"),
    "q4_0": Format(4),
    "q4_1": Format(4, scales="f16_offset"),
    "q5_0": Format(5),
    "q5_1": Format(5, scales="f16_offset"),
    "q8_0": Format(8),
    "q2_k": Format(2, 16, scales="super_nibble"),
    "q3_k": Format(3, 16, scales="super"),
    "q4_k": Format(4, scales="super_min"),
    "q5_k": Format(5, scales="super_min"),
    "q6_k": Format(6, 16, scales="super"),
}


def format_of(name: str) -> Format:
    """A format by its name; an unknown one is a `CheckpointError` that names the nearest."""
    if name not in FORMATS:
        raise CheckpointError(f"the format {name!r} is unknown, expected {', '.join(FORMATS)}{nearest(name, FORMATS)}")
    return FORMATS[name]

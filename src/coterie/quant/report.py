"""How many bits each part of a loaded model has, read off the model itself, and whether that is what was asked for.

Quantisers that walk a model's layers have left most of a mixture in 16 bits without a word, since its experts are no
layers of the usual kind. So nothing is taken for granted here: every number of the model is counted, once.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from coterie.errors import CheckpointError
from coterie.kernels.packed import Packed
from coterie.quant.recipe import Recipe

__all__ = ["PartBits", "bits_of", "part_of_module", "require_bits", "table"]

PARTS = ("embedding", "attention", "norms", "router", "experts", "head")


@dataclass(frozen=True, slots=True)
class PartBits:
    """The matrices of one part of a model that have one format ("float32" for plain ones)."""

    part: str
    format: str
    n_weights: int
    nbytes: int

    @property
    def bits_per_weight(self) -> float:
        """Scales and padding included."""
        return 8 * self.nbytes / self.n_weights


def bits_of(model: nn.Module) -> list[PartBits]:
    """Every part and format of a model, plain or packed, in the order of `PARTS`; a tied head is the embedding."""
    found: dict[tuple[str, str], tuple[int, int]] = {}
    seen: set[int] = set()
    for path, matrix in _matrices(model):
        if id(matrix) in seen:
            continue
        seen.add(id(matrix))
        if isinstance(matrix, Tensor):
            label, n, nbytes = str(matrix.dtype).removeprefix("torch."), matrix.numel(), matrix.nbytes
        elif isinstance(matrix, Packed):
            label, n, nbytes = matrix.layout.label, matrix.n_weights, matrix.nbytes
        else:
            label, n, nbytes = matrix.format.label, matrix.shape[0] * matrix.shape[1], matrix.nbytes  # type: ignore[attr-defined]
        before = found.get(key := (part_of_module(path), label), (0, 0))
        found[key] = before[0] + n, before[1] + nbytes
    order = sorted(found.items(), key=lambda item: (PARTS.index(item[0][0]), -item[1][1]))
    return [PartBits(part, label, n, nbytes) for (part, label), (n, nbytes) in order]


def require_bits(model: nn.Module, recipe: Recipe, plain: Mapping[str, str] | Collection[str] = ()) -> list[PartBits]:
    """`bits_of(model)`, or `CheckpointError` where a part is not what the recipe says.

    `plain` names the matrices that could not be packed, as a packed file does; their parts may be plain as well.
    """
    found = bits_of(model)
    may_be_plain = {"experts" if ".experts." in n or ".feed_forward." in n else _outer(n) for n in plain}
    for bits in found:
        format = recipe.format_of(bits.part)
        is_plain = bits.format in ("float32", "float16", "bfloat16")
        if format is None and not (bits.format == "float32" or (is_plain and bits.part == "norms")):
            raise CheckpointError(f"{bits.part} has {bits.format}, expected float32")
        if format is not None and is_plain and bits.part not in may_be_plain:
            raise CheckpointError(f"{bits.part} has {bits.format}, expected {format.label}: it was not quantised")
        if format is not None and not is_plain and bits.format != format.label:
            raise CheckpointError(f"{bits.part} has {bits.format}, expected {format.label}")
    return found


def table(found: list[PartBits]) -> str:
    """The parts as aligned text, for people."""
    rows = [(b.part, b.format, f"{b.bits_per_weight:.3f} bits", f"{b.nbytes:,} bytes") for b in found]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return "\n".join(f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}  {d:>{widths[3]}}" for a, b, c, d in rows)


def part_of_module(path: str) -> str:
    """The part that a module or parameter of a model belongs to, by its path."""
    names = path.split(".")
    if "norm" in names:
        return "norms"
    if names[0] == "embed":
        return "embedding"
    if names[0] == "head":
        return "head"
    if "router" in names:
        return "router"
    return "attention" if "attention" in names else "experts"


def _outer(name: str) -> str:
    return {"embed": "embedding", "head": "head"}.get(name, "attention")


def _matrices(model: nn.Module) -> Iterator[tuple[str, object]]:
    """Every matrix: parameters, and what packed layers hold in tuples."""
    for path, module in model.named_modules():
        for attribute in ("table", "parts", "gate_up", "down"):
            held = module.__dict__.get(attribute)
            for matrix in held if isinstance(held, tuple) else () if held is None else (held,):
                yield f"{path}.{attribute}", matrix
    yield from model.named_parameters()

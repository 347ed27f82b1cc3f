"""Packed weights on their way to a card: re-laid there matrix by matrix, the experts of a layer as one stack.

Never more than the model and a matrix or two are in memory. Numbers stay the same, whatever the file had; a stack whose
experts have different formats, which no common writer makes, becomes plain. Norms come in the type of the activations,
routers as float32. With `fp8`, plain matrices become fp8 with a scale a row.
Shapes: E experts, N outputs, K inputs of a matrix.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from coterie.kernels.packed import FP8, Layout, Packed
from coterie.quant.formats import Format
from coterie.quant.tensor import Codes, PackedTensor, join_halves, unpack

__all__ = ["CardPart", "card_bytes", "join", "layout_of", "to_card"]

CardPart = Tensor | Packed


def layout_of(format: Format) -> Layout:
    return Layout(format.bits, format.unit, format.group, format.scales, format.label)


def card_bytes(layout: Layout | torch.dtype, N: int, K: int) -> int:
    """Bytes of a matrix on a card."""
    if isinstance(layout, torch.dtype):
        return N * K * layout.itemsize
    return Packed.empty(layout, (1, N, K), "meta").nbytes


def to_card(
    parts: Iterable[tuple[str, PackedTensor | Tensor]],
    device: torch.device,
    dtype: torch.dtype,
    n_experts: int | None,
    *,
    fp8: bool = False,
    progress: Callable[[int], None] = lambda n_bytes: None,
) -> dict[str, CardPart]:
    """What `quant.layers.install` puts into a model, by canonical name; experts' parts `...experts.3.down` become
    `...experts.down`, and `gate_up` has its gate rows first. `progress` is told the bytes of each part that is there.
    """
    found: dict[str, CardPart] = {}
    for name, part in parts:
        stem, _, last = name.rpartition(".")
        layer, _, number = stem.rpartition(".")
        if layer.endswith(".experts"):
            assert n_experts is not None
            at = f"{layer}.{last}"
            found[at] = _stacked(found.get(at), int(number), n_experts, part, last == "gate_up", device, dtype, fp8)
        else:
            found[name] = _moved(name, part, device, dtype, fp8)
        progress(part.nbytes)
    return found


def join(parts: Iterable[CardPart]) -> Iterator[CardPart]:
    """Matrices that follow one another, as few as their types allow: one product instead of several."""
    held: list[CardPart] = []
    for part in parts:
        if held and not _is_alike(held[-1], part):
            yield _joined(held)
            held = []
        held.append(part)
    yield _joined(held)


def _is_alike(a: CardPart, b: CardPart) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and a.dtype == b.dtype
    return a.layout == b.layout


def _joined(parts: list[CardPart]) -> CardPart:
    first = parts[0]
    if len(parts) == 1:
        return first
    if isinstance(first, Tensor):
        return torch.cat([part for part in parts if isinstance(part, Tensor)])
    packed = [part for part in parts if isinstance(part, Packed)]
    joined = {
        name: None if getattr(first, name) is None else torch.cat([getattr(part, name) for part in packed], 1)
        for name in ("low", "scale", "high", "sub")
    }
    shape = (1, sum(part.shape[1] for part in packed), first.shape[2])
    return replace(first, shape=shape, **joined)  # type: ignore[arg-type]


def _moved(name: str, part: PackedTensor | Tensor, device: torch.device, dtype: torch.dtype, fp8: bool) -> CardPart:
    if isinstance(part, PackedTensor):
        return _packed(part, device)
    if name.endswith(".router"):
        return part.to(device, torch.float32)
    moved = part.to(device)
    if fp8 and part.ndim == 2 and name != "embed":
        stack = Packed.empty(FP8, (1, part.shape[0], part.shape[1]), device)
        stack.put_fp8(0, 0, moved)
        return stack
    return moved.to(dtype)


def _packed(part: PackedTensor, device: torch.device) -> Packed:
    stack = Packed.empty(layout_of(part.format), (1, *part.shape), device)
    stack.put(0, 0, _codes(part, device, False))
    return stack


def _codes(part: PackedTensor, device: torch.device, has_halves: bool) -> Codes:
    codes = unpack(PackedTensor(part.format, part.shape, part.data.to(device)))
    if not has_halves:
        return codes
    rest = (None if t is None else join_halves(t) for t in (codes.offset, codes.sub_scale, codes.sub_offset))
    return Codes(join_halves(codes.u_NK), join_halves(codes.scale), *rest)


def _stacked(
    stack: CardPart | None,
    e: int,
    n_experts: int,
    part: PackedTensor | Tensor,
    has_halves: bool,
    device: torch.device,
    dtype: torch.dtype,
    fp8: bool,
) -> CardPart:
    """The stack, which is made for the first expert, with one more in it."""
    layout = layout_of(part.format) if isinstance(part, PackedTensor) else FP8 if fp8 else None
    if stack is None:
        shape = (n_experts, part.shape[0], part.shape[1])
        stack = Packed.empty(layout, shape, device) if layout else torch.empty(shape, dtype=dtype, device=device)
    if isinstance(stack, Packed) and stack.layout != layout:
        stack = _plain(stack, dtype)
    if isinstance(stack, Tensor):
        if isinstance(part, PackedTensor):
            numbers = PackedTensor(part.format, part.shape, part.data.to(device)).dequantise()
            stack[e] = join_halves(numbers) if has_halves else numbers
        else:
            stack[e] = part
    elif isinstance(part, PackedTensor):
        stack.put(e, 0, _codes(part, device, has_halves))
    else:
        stack.put_fp8(e, 0, part.to(device))
    return stack


def _plain(stack: Packed, dtype: torch.dtype) -> Tensor:
    """All of a stack, also what is not filled yet and will be."""
    plain = torch.empty(stack.shape, dtype=dtype, device=stack.device)
    for e in range(stack.shape[0]):
        plain[e] = stack.numbers(e)
    return plain

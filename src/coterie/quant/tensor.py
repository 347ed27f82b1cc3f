"""A quantised matrix in the kernels' layout, and the two ways between it and plain numbers: the layout's specification.

16 outputs (a panel) lie together, 256 k of them after each other (a block): scales first, then the values of 32 k (a
span) at a time, in planes of bits. Value b of a span, 0..511, is that of k = b // 64 · 4 + b % 4, output b % 64 // 4:
the four values of one output that an int8 product adds lie side by side, those of the 16 outputs fill a register.
Example, 4 bits: byte 0 of a span holds value 0 (k 0, output 0) and value 256 (k 16, output 0) in its upper half.
Shapes: N outputs, K inputs, P panels, B blocks, n k of a block, S spans, U units, G groups of an F16 scale.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from coterie.quant.formats import BLOCK, PANEL, SPAN, Format

__all__ = ["Codes", "PackedTensor", "alternate_halves", "join_halves", "pack", "unpack"]


@dataclass(frozen=True, slots=True)
class Codes:
    """The numbers of a quantised matrix, row by row, as `formats.py` names them.

    `scale` F16: s [N, G], or d [N, blocks of 256]. `offset` F16: o or dmin. `sub_scale`: sc [N, U], int8 or uint8.
    `sub_offset`: m [N, U], uint8. What a format does not have is None.
    """

    u_NK: Tensor
    scale: Tensor
    offset: Tensor | None = None
    sub_scale: Tensor | None = None
    sub_offset: Tensor | None = None

    def decode(self, format: Format) -> Tensor:
        """The weights, float32 [N, K]."""
        K = self.u_NK.shape[1]
        factor, shift = _factors(format, self)
        w_NK = self.u_NK.float()
        if format.zero:
            w_NK -= format.zero
        w_NK *= _repeat(factor, format.group, K)
        return w_NK if shift is None else w_NK.add_(_repeat(shift, format.group, K))


@dataclass(frozen=True, slots=True)
class PackedTensor:
    """A matrix of true size `shape` (N, K) whose bytes are `data`, flat uint8, perhaps a piece of a mapped file."""

    format: Format
    shape: tuple[int, int]
    data: Tensor

    def __post_init__(self) -> None:
        need = self.format.matrix_bytes(*self.shape)
        assert self.data.dtype == torch.uint8 and self.data.shape == (need,), (
            f"{self.data.shape}, expected {need} bytes"
        )

    @property
    def nbytes(self) -> int:
        return self.data.numel()

    @property
    def bits_per_weight(self) -> float:
        """Scales and padding included."""
        return self.nbytes * 8 / (self.shape[0] * self.shape[1])

    def dequantise(self) -> Tensor:
        """The weights, float32 [N, K]."""
        return unpack(self).decode(self.format)

    def rows(self, ids_T: Tensor) -> Tensor:
        """Rows of the matrix, float32 [T, K]: what an embedding needs. Reads the panels of these rows only."""
        if len(ids_T) == 0:
            return torch.zeros(0, self.shape[1], device=self.data.device)
        panels = self.data.view(-1, self.format.panel_bytes(self.shape[1]))
        chosen, T = panels.index_select(0, ids_T // PANEL), len(ids_T)
        few = PackedTensor(self.format, (T * PANEL, self.shape[1]), chosen.view(-1))
        codes, at_T = unpack(few), torch.arange(T, device=ids_T.device) * PANEL + ids_T % PANEL
        return _map(codes, lambda t: t.index_select(0, at_T)).decode(self.format)


def alternate_halves(w_2FK: Tensor) -> Tensor:
    """Rows of `gate_up` from F gate rows, then F up rows, to 16 gate rows, their 16 up rows, 16 gate rows, ..."""
    return w_2FK.reshape(2, -1, PANEL, w_2FK.shape[1]).transpose(0, 1).reshape(w_2FK.shape)


def join_halves(w_2FK: Tensor) -> Tensor:
    """The inverse of `alternate_halves`."""
    return w_2FK.reshape(-1, 2, PANEL, w_2FK.shape[1]).transpose(0, 1).reshape(w_2FK.shape)


def pack(format: Format, codes: Codes) -> PackedTensor:
    """The numbers in the kernels' layout; rows up to a multiple of 16 are added with scales and values of 0."""
    N, K = codes.u_NK.shape
    assert codes.u_NK.dtype == torch.uint8 and K % SPAN == 0, f"{codes.u_NK.dtype} {codes.u_NK.shape}"
    padded = _map(codes, lambda t: functional.pad(t, (0, 0, 0, -N % PANEL)) if N % PANEL else t)
    whole = K // BLOCK * BLOCK
    parts = [_pack_blocks(format, _slice(format, padded, a, b), n) for a, b, n in _stretches(K, whole)]
    return PackedTensor(format, (N, K), (parts[0] if len(parts) == 1 else torch.cat(parts, 1)).view(-1))


def unpack(packed: PackedTensor) -> Codes:
    """The inverse of `pack`, on the device of the data."""
    format, (N, K) = packed.format, packed.shape
    panels, whole = packed.data.view(-1, format.panel_bytes(K)), K // BLOCK * BLOCK
    split = whole // BLOCK * format.block_bytes()
    parts = [
        _unpack_blocks(format, panels[:, :split] if a == 0 and whole else panels[:, split:], n)
        for a, _, n in _stretches(K, whole)
    ]
    joined = parts[0] if len(parts) == 1 else _join(*parts)
    return _map(joined, lambda t: t[:N])


def _stretches(K: int, whole: int) -> list[tuple[int, int, int]]:
    """(from k, to k, k of a block): the blocks of 256, then the shorter last one."""
    return [s for s in ((0, whole, BLOCK), (whole, K, K - whole)) if s[0] < s[1]]


def _pack_blocks(format: Format, c: Codes, n: int) -> Tensor:
    """Blocks of n k each, as bytes [P, blocks · bytes of one]."""
    P, B = len(c.u_NK) // PANEL, c.u_NK.shape[1] // n
    sections = []
    if format.is_super:
        sections += [
            _by_output(t, P, B) for t in (c.scale, torch.zeros_like(c.scale) if c.offset is None else c.offset)
        ]
    if format.scales == "super_nibble":
        assert c.sub_scale is not None and c.sub_offset is not None
        sections.append(_by_output(c.sub_scale | c.sub_offset << 4, P, B))
    else:
        finest = (c.sub_scale, c.sub_offset) if format.is_super else (c.scale, c.offset)
        per_group = [_by_output(t, P, B) for t in finest if t is not None]  # [P, B, groups, bytes of 16 outputs]
        sections.append(torch.cat(per_group, -1))
    sections += [plane.view(P, B, -1) for plane in _planes(format.bits, _spans(c.u_NK, P, B))]
    return torch.cat([s.reshape(P, B, -1) for s in sections], -1).view(P, -1)


def _unpack_blocks(format: Format, panels: Tensor, n: int) -> Codes:
    P = len(panels)
    blocks = panels.reshape(P, -1, format.block_bytes(n))
    B, at, groups = blocks.shape[1], 0, -(-n // format.group)

    def take(n_bytes: int) -> Tensor:
        nonlocal at
        at += n_bytes
        return blocks[:, :, at - n_bytes : at].contiguous()

    offset = sub_scale = sub_offset = None
    if format.is_super:
        scale, dmin = (_by_row(take(32).view(torch.float16)) for _ in range(2))
        offset = None if format.scales == "super" else dmin
    raw = take(format.scale_bytes(n) - at).view(P, B, groups, -1)
    if format.scales == "super":
        sub_scale = _by_row(raw.view(torch.int8))
    elif format.scales == "super_min":
        sub_scale, sub_offset = _by_row(raw[..., :PANEL]), _by_row(raw[..., PANEL:])
    elif format.scales == "super_nibble":
        sub_scale, sub_offset = _by_row(raw & 15), _by_row(raw >> 4)
    else:
        scale = _by_row(raw[..., : 2 * PANEL].contiguous().view(torch.float16))
        offset = _by_row(raw[..., 2 * PANEL :].contiguous().view(torch.float16)) if raw.shape[-1] > 2 * PANEL else None
    u_NK = _from_spans(_from_planes(format.bits, take(blocks.shape[2] - at).view(P, B, -1), n // SPAN), n)
    return Codes(u_NK, scale, offset, sub_scale, sub_offset)


def _spans(u_NK: Tensor, P: int, B: int) -> Tensor:
    """Rows -> the 512 values of each span, [P, B, S, 512]; the 4 values of one k // 4 move as one number."""
    quads = u_NK.contiguous().view(torch.int32).view(P, PANEL, B, -1, SPAN // 4)
    return quads.permute(0, 2, 3, 4, 1).contiguous().view(torch.uint8).view(P, B, -1, SPAN * PANEL)


def _from_spans(spans_PBSv: Tensor, n: int) -> Tensor:
    P, B = spans_PBSv.shape[:2]
    quads = spans_PBSv.contiguous().view(torch.int32).view(P, B, -1, SPAN // 4, PANEL)
    return quads.permute(0, 4, 1, 2, 3).contiguous().view(torch.uint8).view(P * PANEL, B * n)


def _planes(bits: int, v: Tensor) -> list[Tensor]:
    """The planes of values [..., 512]: 8 or 4 low bits, then two bits, then the one on top."""
    planes = []
    if bits == 8:
        return [v]
    if bits >= 4:
        planes.append(v[..., :256] & 15 | v[..., 256:] << 4)
    if bits in (2, 3, 6):
        t = (v >> 4 if bits == 6 else v & 3).view(*v.shape[:-1], 4, 128)
        planes.append(t[..., 0, :] | t[..., 1, :] << 2 | t[..., 2, :] << 4 | t[..., 3, :] << 6)
    if bits in (3, 5):
        t = (v >> (bits - 1)).view(*v.shape[:-1], 64, 8)
        plane = t[..., 0].clone()
        for i in range(1, 8):
            plane |= t[..., i] << i
        planes.append(plane)
    return planes


def _from_planes(bits: int, planes: Tensor, S: int) -> Tensor:
    """The inverse: bytes [P, B, all planes] -> values [P, B, S, 512]."""
    widths = {8: [512], 6: [256, 128], 5: [256, 64], 4: [256], 3: [128, 64], 2: [128]}[bits]
    pieces = torch.split_with_sizes(planes, [S * w for w in widths], -1)
    first, *more = (t.reshape(*t.shape[:-1], S, -1) for t in pieces)
    if bits == 8:
        return first
    if bits < 4:
        first, more = torch.zeros((), dtype=torch.uint8, device=planes.device), [first, *more]
    else:
        first = torch.cat((first & 15, first >> 4), -1)
    if bits in (2, 3, 6):
        two = torch.cat([more[0] >> f & 3 for f in (0, 2, 4, 6)], -1)
        first = first | (two << 4 if bits == 6 else two)
    if bits in (3, 5):
        steps = torch.arange(8, dtype=torch.uint8, device=planes.device)
        first = first | (more[-1].unsqueeze(-1) >> steps & 1).flatten(-2) << (bits - 1)
    return first


def _by_output(t_NG: Tensor, P: int, B: int) -> Tensor:
    """Scales of rows -> those of 16 outputs together, as bytes [P, B, groups, 16 · size]."""
    return t_NG.reshape(P, PANEL, B, -1).permute(0, 2, 3, 1).contiguous().view(torch.uint8)


def _by_row(t: Tensor) -> Tensor:
    """[P, B, (groups,) 16 outputs] -> [N, B · groups]."""
    t = t.unsqueeze(2) if t.ndim == 3 else t
    P, B, groups, _ = t.shape
    return t.permute(0, 3, 1, 2).reshape(P * PANEL, B * groups)


def _factors(format: Format, c: Codes) -> tuple[Tensor, Tensor | None]:
    """What a value is multiplied by and what is added, float32, one each of the finest groups."""
    if not format.is_super:
        return c.scale.float(), None if c.offset is None else c.offset.float()
    assert c.sub_scale is not None
    per_block, U = BLOCK // format.unit, c.sub_scale.shape[1]
    factor = _repeat(c.scale.float(), per_block, U) * c.sub_scale.float()
    if c.offset is None or c.sub_offset is None:
        return factor, None
    return factor, -(_repeat(c.offset.float(), per_block, U) * c.sub_offset.float())


def _repeat(t_NG: Tensor, times: int, n: int) -> Tensor:
    return t_NG.repeat_interleave(times, 1)[:, :n]


def _slice(format: Format, c: Codes, start: int, stop: int) -> Codes:
    """The codes of k start..stop; start is a multiple of 256."""

    def cut(t: Tensor | None, width: int) -> Tensor | None:
        return None if t is None else t[:, start // width : -(-stop // width)]

    outer = BLOCK if format.is_super else format.group
    scale = c.scale[:, start // outer : -(-stop // outer)]
    sub_scale, sub_offset = cut(c.sub_scale, format.unit), cut(c.sub_offset, format.unit)
    return Codes(c.u_NK[:, start:stop], scale, cut(c.offset, outer), sub_scale, sub_offset)


def _map(c: Codes, f: Callable[[Tensor], Tensor]) -> Codes:
    rest = (None if t is None else f(t) for t in (c.offset, c.sub_scale, c.sub_offset))
    return Codes(f(c.u_NK), f(c.scale), *rest)


def _join(left: Codes, right: Codes) -> Codes:
    def both(a: Tensor | None, b: Tensor | None) -> Tensor | None:
        return None if a is None or b is None else torch.cat((a, b), 1)

    return Codes(
        torch.cat((left.u_NK, right.u_NK), 1),
        torch.cat((left.scale, right.scale), 1),
        both(left.offset, right.offset),
        both(left.sub_scale, right.sub_scale),
        both(left.sub_offset, right.sub_offset),
    )

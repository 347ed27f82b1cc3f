"""Where each part lies in a packed file, and its header: all of it follows from the plan, before a byte is written.

Example, alignment 4096: the header is filled up with spaces so that the data begins at a multiple of 4096; then come
the parts that every token uses, each at a multiple of 64, then the experts' records, each at a multiple of 4096; gaps
are tensors `_pad.0`, `_pad.1`, ..., since a safetensors file may have no holes.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from coterie.checkpoint.huggingface import config_to_json
from coterie.checkpoint.packed import FORMAT, LINE, PAGE, VERSION
from coterie.checkpoint.quantise import Planned
from coterie.checkpoint.safetensors import TensorSpec
from coterie.config import ModelConfig

__all__ = ["Layout", "lay_out"]


@dataclass(frozen=True)
class Layout:
    """`places`: part -> byte of the file; `units`: what is written together, one for each layer, in file order."""

    header: bytes
    nbytes: int
    places: dict[str, int]
    units: dict[str, list[Planned]]


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A tensor of the file: what it holds at which of its bytes."""

    spec: TensorSpec
    alignment: int
    parts: dict[str, int]


def lay_out(config: ModelConfig, planned: list[Planned], about: dict[str, Any]) -> Layout:
    """The file for these parts; `about` is what it says of how it was made."""
    tensors = [*_always_used(planned), *_records(planned)]
    specs, starts, end = [], [], 0
    for n, tensor in enumerate([*tensors, None]):  # the last pad fills the last page
        if gap := -end % (PAGE if tensor is None else tensor.alignment):
            specs.append(TensorSpec(f"_pad.{n}", "U8", (gap,)))
            end += gap
        if tensor is not None:
            specs.append(tensor.spec)
            starts.append(end)
            end += tensor.spec.nbytes
    shapes = {p.name: list(p.shape) for p in planned if p.format is not None}
    table = {
        name: {"tensor": tensor.spec.name, "offset": offset, "shape": shapes[name]}
        for tensor in tensors
        for name, offset in tensor.parts.items()
        if name in shapes
    }
    header = _header(config, about | {"parts": table}, specs)
    places = {
        name: len(header) + start + offset
        for tensor, start in zip(tensors, starts, strict=True)
        for name, offset in tensor.parts.items()
    }
    return Layout(header, len(header) + end, places, _units(planned))


def _always_used(planned: list[Planned]) -> Iterator[_Tensor]:
    """One tensor a part: all but the experts of a sparse model."""
    for p in planned:
        if not _is_record(p):
            spec = TensorSpec(p.name, p.dtype, p.shape) if p.format is None else TensorSpec(p.name, "U8", (p.nbytes,))
            yield _Tensor(spec, LINE, {p.name: 0})


def _records(planned: list[Planned]) -> Iterator[_Tensor]:
    """One tensor an expert: gate_up, then down, each at a multiple of 64 of its bytes."""
    experts: dict[str, list[Planned]] = {}
    for p in planned:
        if _is_record(p):
            experts.setdefault(p.name.rpartition(".")[0], []).append(p)
    for name, (gate_up, down) in experts.items():
        at = gate_up.nbytes + -gate_up.nbytes % LINE
        yield _Tensor(TensorSpec(name, "U8", (at + down.nbytes,)), PAGE, {gate_up.name: 0, down.name: at})


def _is_record(p: Planned) -> bool:
    return ".experts." in p.name and p.format is not None


def _units(planned: list[Planned]) -> dict[str, list[Planned]]:
    """`layers.3` -> its parts; embedding, last norm and head are units of their own."""
    units: dict[str, list[Planned]] = {}
    for p in planned:
        name = ".".join(p.name.split(".")[:2]) if p.name.startswith("layers.") else p.name
        units.setdefault(name, []).append(p)
    return units


def _header(config: ModelConfig, about: dict[str, Any], specs: list[TensorSpec]) -> bytes:
    """The first bytes of the file, a multiple of a page."""
    plain = replace(config, extra={k: v for k, v in config.extra.items() if k != "quantization_config"})
    metadata = {"format": FORMAT, "version": VERSION, "config": json.dumps(config_to_json(plain))}
    header: dict[str, Any] = {"__metadata__": metadata | {"recipe": json.dumps(about)}}
    end = 0
    for spec in specs:
        header[spec.name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [end, end + spec.nbytes]}
        end += spec.nbytes
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-(len(raw) + 8) % PAGE)
    return len(raw).to_bytes(8, "little") + raw

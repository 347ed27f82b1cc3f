"""Files -> model: every byte is read once, straight into the memory where the model keeps it.

The peak is the model plus a few pieces of `PIECE_BYTES`. NaN and Inf are looked for in the bytes while they are still
in the processor's cache. A model that does not fit is refused before anything is allocated. Files of a quarter of the
free memory or more are not left in the system's page cache, which would push out the model that was just loaded.
"""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from coterie.checkpoint.expect import what_to_expect
from coterie.checkpoint.folder import open_checkpoint
from coterie.checkpoint.gguf import GgufCheckpoint
from coterie.checkpoint.names import canonical_shapes
from coterie.checkpoint.numbers import FILE_DTYPES, as_torch, convert_into, plain, require_finite, size_text
from coterie.checkpoint.opened import Checkpoint
from coterie.checkpoint.packed import PackedCheckpoint
from coterie.checkpoint.pieces import Files, Piece, cut, half_split
from coterie.checkpoint.safetensors import ITEM_BITS
from coterie.checkpoint.tied import require_tied_equal
from coterie.config import ModelConfig
from coterie.device import available_memory, choose_device, choose_dtype, total_memory
from coterie.errors import RequestError, ResourceError
from coterie.quant.recipe import Recipe

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from coterie.model import Transformer

__all__ = ["fill", "load_model"]

Progress = Callable[[int, int], None]
_THREADS = 4
_RESERVE = 64 << 20  # bytes: the pieces in flight


def load_model(
    path: Path,
    *,
    dtype: str = "auto",
    device: "str | torch.device" = "auto",
    progress: Progress | None = None,
    check: Callable[[ModelConfig], None] = lambda config: None,
    quantize: str | None = None,
    note: Callable[[str], None] = lambda sentence: None,
) -> "Transformer":
    """The model of a checked folder, its weights on `device` as `dtype` ("auto": the file's type where that is fast).

    `quantize` ("int8" ... "int2", on a card also "fp8") packs them as they are read. Packed folders and quantised GGUF
    files stay packed where `dtype` is "auto" (mapped or interleaved; on a card re-laid); else they become plain.
    `check(config)` may raise before any weight is read; `progress(done, total)` is called with bytes. Raises
    `ConfigError`, `CheckpointError` (NaN and Inf included) and `ResourceError` where memory does not suffice; nothing
    half loaded is ever returned. `note` is told beforehand what to expect of a model that memory does not hold.
    """
    from coterie.model import Transformer

    checkpoint = open_checkpoint(Path(path))
    check(checkpoint.config)
    chosen_device = choose_device(str(device))
    if chosen_device.type == "cuda":
        from coterie.checkpoint.card_load import load_packed_on_card, load_quantised_on_card, stays_packed

        if quantize is not None:
            return load_quantised_on_card(checkpoint, quantize, dtype, chosen_device, progress)
        if stays_packed(checkpoint, dtype):
            return load_packed_on_card(checkpoint, chosen_device, progress)
    if quantize is not None:
        from coterie.checkpoint.packed_load import load_quantised

        if quantize == "fp8":
            raise RequestError(f"fp8 is computed with on a CUDA GPU and the device is {chosen_device}; use int8")
        return load_quantised(checkpoint, Recipe.of(quantize), dtype, chosen_device, progress)
    is_on_cpu = str(device) == "auto" or chosen_device.type == "cpu"
    if isinstance(checkpoint, PackedCheckpoint) and dtype == "auto" and is_on_cpu:
        from coterie.checkpoint.packed_load import load_packed

        _expect(checkpoint, note)
        return load_packed(checkpoint)
    if isinstance(checkpoint, GgufCheckpoint):
        from coterie.checkpoint.gguf_load import load_gguf, stays_quantised

        if stays_quantised(checkpoint, dtype, chosen_device):
            _expect(checkpoint, note)
            return load_gguf(checkpoint, progress)
    chosen_dtype = choose_dtype(dtype, checkpoint.file_dtype, chosen_device)
    require_memory(checkpoint, chosen_dtype, chosen_device)
    try:
        model = Transformer(checkpoint.config, chosen_dtype, chosen_device)
    except (MemoryError, RuntimeError) as e:  # the system promised more than it had
        raise ResourceError(
            f"{path} cannot be loaded: out of memory on {chosen_device} ({str(e).split(chr(10))[0]})"
        ) from e
    if isinstance(checkpoint, PackedCheckpoint):
        from coterie.checkpoint.packed_plain import fill_plain

        fill_plain(checkpoint, model.tensors(), progress)
    else:
        fill(checkpoint, model.tensors(), progress)
    return model.eval()


def _expect(checkpoint: Checkpoint, note: Callable[[str], None]) -> None:
    if sentence := what_to_expect(checkpoint):
        note(sentence)


def require_memory(checkpoint: Checkpoint, dtype: "torch.dtype", device: "torch.device") -> None:
    """`ResourceError` with the need, what is there and what would help, where the model does not fit."""
    n_parameters = sum(int(np.prod(shape, dtype=np.int64)) for _, shape in canonical_shapes(checkpoint.config))
    need, there = n_parameters * dtype.itemsize + _RESERVE, available_memory(device)
    if need <= there:
        return
    if device.type == "cuda":
        from coterie.checkpoint.card_memory import require_card_memory

        return require_card_memory(
            checkpoint.path, checkpoint.config, n_parameters * dtype.itemsize, str(dtype)[6:], device
        )
    helps = "close other programs, " if need <= total_memory(device) else ""
    if dtype.itemsize > 2 and n_parameters * 2 + _RESERVE <= there:
        helps = f"load it as bf16 ({size_text(n_parameters * 2)}), "
    name = str(dtype).removeprefix("torch.")
    raise ResourceError(
        f"{checkpoint.path} needs {size_text(need)} of memory as {name} and {device} has {size_text(there)} free; "
        f"{helps}use a machine with more memory, or a smaller model"
    )


def fill(checkpoint: Checkpoint, tensors: "dict[str, Tensor]", progress: Progress | None = None) -> None:
    """Fill every tensor, given by canonical name, from the files; conversion to the tensor's type on the way."""
    if missing := {place.name for place in checkpoint.places} ^ tensors.keys():
        raise AssertionError(f"the model and the name tables differ in {sorted(missing)[:3]}")
    flat = {name: tensor.view(-1) for name, tensor in tensors.items()}
    pieces = [p for entry, place in zip(checkpoint.entries, checkpoint.places, strict=True) for p in cut(entry, place)]
    with Files(checkpoint.files) as files:
        keep = checkpoint.nbytes < available_memory("cpu") // 4
        _run(pieces, _Reader(files, flat, keep), progress, checkpoint.nbytes)
        require_tied_equal(checkpoint, files)


class _Reader:
    """Reads one piece to its place; called from several threads, each with a buffer of its own."""

    def __init__(self, files: Files, flat: "dict[str, Tensor]", keep_cached: bool):
        self._files, self._flat, self._keep_cached = files, flat, keep_cached
        self._local = threading.local()

    def __call__(self, piece: Piece) -> int:
        import torch

        first = piece.place.first + piece.first
        target = self._flat[piece.place.name][first : first + piece.n_elements]
        code = piece.entry.dtype
        is_same = code in FILE_DTYPES and target.dtype == getattr(torch, FILE_DTYPES[code])
        is_direct = is_same and target.device.type == "cpu" and not piece.place.n_heads
        raw = target.view(torch.uint8).numpy() if is_direct else self._buffer(piece.nbytes)
        self._files.read(piece, raw)
        raw, code = plain(raw, code)
        require_finite(raw, code, piece.label)
        if not is_direct:
            rows = half_split(raw, piece.place, ITEM_BITS[code] // 8) if piece.place.n_heads else raw
            convert_into(target, as_torch(rows, code), piece.label)
        if not self._keep_cached:
            self._files.forget(piece)
        return piece.nbytes

    def _buffer(self, nbytes: int) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
        held = getattr(self._local, "buffer", None)
        if held is None or held.nbytes < nbytes:
            held = self._local.buffer = np.empty(nbytes, np.uint8)
        part: np.ndarray[tuple[int, ...], np.dtype[np.uint8]] = held[:nbytes]
        return part


def _run(pieces: Iterable[Piece], read: Callable[[Piece], int], progress: Progress | None, total: int) -> None:
    """Read all pieces, about in file order, on a few threads; the first error or Ctrl-C stops the others."""
    done = 0
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="load") as pool:
        try:
            for future in as_completed([pool.submit(read, piece) for piece in pieces]):
                done += future.result()
                if progress is not None:
                    progress(done, total)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise

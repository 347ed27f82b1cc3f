"""Tied embeddings that a file repeats under the head's name: accepted only where both are the same numbers.

transformers 5 silently unties such a model, transformers 4 silently drops the copy. We do neither.
"""

import numpy as np

from coterie.checkpoint.opened import Checkpoint
from coterie.checkpoint.pieces import Files, Piece, cut
from coterie.errors import CheckpointError

__all__ = ["require_tied_equal"]


def require_tied_equal(checkpoint: Checkpoint, files: Files) -> None:
    """`CheckpointError` where the repetition of tied embeddings differs from them in type or in any byte."""
    copy = checkpoint.tied_copy
    if copy is None:
        return
    place = next(p for p in checkpoint.places if p.name == "embed")
    embed = checkpoint.entries[checkpoint.places.index(place)]
    is_equal = copy.dtype == embed.dtype and all(
        np.array_equal(_read(files, Piece(copy, place, piece.start, piece.nbytes)), _read(files, piece))
        for piece in cut(embed, place)
    )
    if not is_equal:
        raise CheckpointError(
            f"{copy.file}: {copy.name!r} differs from the embedding although the configuration ties them; set "
            "tie_word_embeddings to false if the file is right"
        )


def _read(files: Files, piece: Piece) -> "np.ndarray[tuple[int], np.dtype[np.uint8]]":
    raw = np.empty(piece.nbytes, np.uint8)
    files.read(piece, raw)
    return raw

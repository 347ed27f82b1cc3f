"""Importance from a text: the model reads it one layer at a time, so the peak is a layer and the text's hidden states.

Each layer is read from the files, wrapped so that it notes what its matrices are given, applied to all windows, and let
go. Windows start with BOS. Shapes: S positions of a window, D model width.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch.nn import functional

from coterie.checkpoint.by_name import TensorReader
from coterie.checkpoint.opened import Checkpoint
from coterie.device import choose_dtype
from coterie.errors import DataError
from coterie.kernels import rms_norm, rotary_tables
from coterie.model import Transformer
from coterie.model.attention import WholeSequences
from coterie.quant.importance import Importance, observe

__all__ = ["CALIBRATION_TOKENS", "measure_importance"]

Progress = Callable[[int, int], None]
CALIBRATION_TOKENS = 16384
_WINDOW = 512


@torch.inference_mode()
def measure_importance(checkpoint: Checkpoint, ids: Sequence[int], progress: Progress | None = None) -> Importance:
    """What every packed matrix but the embedding sees of a text (its first `CALIBRATION_TOKENS` ids).

    `progress(done, total)` counts bytes read. Raises `DataError` where there is no text.
    """
    if len(ids) == 0:
        raise DataError("the calibration text is empty; expected a text like those that the model is for")
    c, importance = checkpoint.config, Importance()
    dtype = choose_dtype("auto", checkpoint.file_dtype, "cpu")
    with TensorReader(checkpoint, progress) as reader:
        embed = torch.empty(c.vocab_size, c.hidden_size, dtype=dtype)
        reader.fill("embed", embed)
        hidden = [functional.embedding(window, embed) for window in _windows(ids, c.bos_token_id or 0)]
        for i in range(c.num_hidden_layers):
            one = Transformer(replace(c, num_hidden_layers=1), dtype)
            for name, tensor in one.tensors().items():
                if name.startswith("layers.0."):
                    reader.fill(name.replace("layers.0.", f"layers.{i}.", 1), tensor)
            block = observe(one.layers[0], f"layers.{i}", importance)
            for at, x_SD in enumerate(hidden):
                rotary = rotary_tables(torch.arange(len(x_SD)), c.head_dim, c.rope_theta, dtype)
                hidden[at], _ = block(x_SD, rotary, WholeSequences(1, c.sliding_window), None)
        norm = torch.empty(c.hidden_size, dtype=dtype)
        reader.fill("norm", norm)
    for x_SD in hidden:
        importance.add("embed" if c.tie_word_embeddings else "head", rms_norm(x_SD, norm, c.rms_norm_eps))
    return importance


def _windows(ids: Sequence[int], bos: int) -> list[torch.Tensor]:
    kept = torch.tensor(list(ids[:CALIBRATION_TOKENS]))
    return [torch.cat((torch.tensor([bos]), window[:-1])) for window in kept.split(_WINDOW)]  # type: ignore[no-untyped-call]

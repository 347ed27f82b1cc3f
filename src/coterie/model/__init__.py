"""A plain decoder: no `if` about quantization, offload, LoRA or ranks."""

from coterie.model.transformer import Output, Transformer

__all__ = ["Output", "Transformer"]

"""The operations a model is made of, chosen by op and device; `reference` is the specification of each."""

from coterie.kernels.reference import attention, gated_ffn, rms_norm, rotary_tables, rotate

__all__ = ["attention", "gated_ffn", "rms_norm", "rotary_tables", "rotate"]

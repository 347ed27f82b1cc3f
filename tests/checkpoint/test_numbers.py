import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.checkpoint.numbers import FILE_DTYPES, as_torch, file_bytes, file_type, require_finite
from coterie.errors import CheckpointError, ConfigError


@given(st.sampled_from(list(FILE_DTYPES)), st.binary(min_size=4, max_size=64))
@settings(max_examples=100, deadline=None)
def test_the_test_on_bits_agrees_with_torch(code, raw):
    raw = np.frombuffer(raw[: len(raw) // 4 * 4], np.uint8).copy()
    is_finite = bool(as_torch(raw, code).isfinite().all())
    if is_finite:
        require_finite(raw, code, "x")
    else:
        with pytest.raises(CheckpointError, match="x contains"):
            require_finite(raw, code, "x")


@pytest.mark.parametrize("code", FILE_DTYPES)
def test_counts_of_nan_and_inf(code):
    dtype = getattr(torch, FILE_DTYPES[code])
    values = torch.tensor([1.0, float("nan"), float("inf"), -float("inf"), -float("nan"), float("nan")], dtype=dtype)
    with pytest.raises(CheckpointError, match="w contains 3 NaN and 2 Inf"):
        require_finite(values.view(torch.uint8).numpy(), code, "w")


def test_every_pattern_of_16_bits():
    patterns = np.arange(1 << 16, dtype=np.uint16)
    for code in ("F16", "BF16"):
        finite = as_torch(patterns.view(np.uint8), code).isfinite().numpy()
        require_finite(patterns[finite].view(np.uint8), code, "x")
        for bits in patterns[~finite][::37]:
            with pytest.raises(CheckpointError):
                require_finite(np.array([0, bits, 0], np.uint16).view(np.uint8), code, "x")


def test_types_by_any_of_their_names():
    assert file_type("bf16") == file_type("bfloat16") == ("bfloat16", "BF16")
    with pytest.raises(ConfigError, match="did you mean 'float32'"):
        file_type("flaot32")


def test_file_bytes_of_a_view_in_pieces(monkeypatch):
    monkeypatch.setattr("coterie.checkpoint.numbers._PIECE", 7)
    x = torch.randn(40)
    raw = b"".join(bytes(piece) for piece in file_bytes(x[3:], "BF16", "x"))
    assert torch.equal(torch.frombuffer(bytearray(raw), dtype=torch.bfloat16), x[3:].bfloat16())
    x[20] = 1e5
    with pytest.raises(CheckpointError, match="beyond float16"):
        list(file_bytes(x, "F16", "x"))

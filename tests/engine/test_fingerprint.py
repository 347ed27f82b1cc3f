from collections.abc import Callable

import pytest
import torch

from coterie.api import load
from coterie.engine import fingerprint as module
from coterie.engine.fingerprint import fingerprint, text_digest
from coterie.model import Transformer


def test_the_same_model_has_the_same_and_any_other_another(make_model: Callable[..., Transformer]) -> None:
    first = fingerprint(make_model())
    assert len(first) == 32 and first == fingerprint(make_model())
    assert first != fingerprint(make_model(seed=1))
    assert first != fingerprint(make_model(rope_theta=5e5))
    for name, _ in make_model().named_parameters():
        changed = make_model()
        with torch.no_grad():
            changed.get_parameter(name).view(-1)[-1] += 1
        assert first != fingerprint(changed), name


def test_of_a_large_matrix_pieces_up_to_its_end(
    make_model: Callable[..., Transformer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PIECE", 8)
    monkeypatch.setattr(module, "_PIECES", 4)
    model = make_model()
    first = fingerprint(model)
    with torch.no_grad():
        next(model.parameters()).view(-1)[-1] += 1
    assert first != fingerprint(model)


def test_packed_weights_count() -> None:
    packed = {fingerprint(load("demo", quantize=bits).model) for bits in ("int8", "int4", "int3")}
    assert len(packed) == 3
    assert fingerprint(load("demo").model) == fingerprint(load("demo").model)


def test_texts_have_bounds() -> None:
    assert text_digest(["ab", "c"]) != text_digest(["a", "bc"])

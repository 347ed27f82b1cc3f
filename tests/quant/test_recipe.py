"""Which part gets what, recipes as a file holds them, and why a matrix cannot be packed."""

from typing import Any

import pytest
import torch

from coterie.errors import CheckpointError, RequestError
from coterie.quant.formats import FORMATS
from coterie.quant.recipe import METHODS, TYPES, Recipe, why_not


@pytest.mark.parametrize("kind", TYPES)
def test_the_type_names_the_bits_of_the_experts_alone(kind: str) -> None:
    recipe = Recipe.of(kind)
    formats = {part: recipe.format_of(part) for part in ("experts", "attention", "embedding", "head")}
    assert formats.pop("experts") == FORMATS[kind] and FORMATS[kind].bits == int(kind[3:])
    assert all(f is not None and f.bits == 8 for f in formats.values())
    assert recipe.format_of("router") is None and recipe.format_of("norms") is None


def test_bits_per_weight_are_honest() -> None:
    for kind, most in {"int8": 8.5, "int6": 6.5, "int5": 5.625, "int4": 4.625, "int3": 3.625, "int2": 2.625}.items():
        assert FORMATS[kind].matrix_bytes(4096, 4096) * 8 / 4096**2 == most


def test_a_name_that_does_not_exist_is_answered_with_the_nearest() -> None:
    with pytest.raises(RequestError, match="did you mean 'int4'"):
        Recipe.of("int44")
    with pytest.raises(RequestError, match="expected rtn or hqq"):
        Recipe.of("int4", "gptq")


@pytest.mark.parametrize("method", METHODS)
def test_fields_there_and_back(method: str) -> None:
    recipe = Recipe.of("int3", method)
    assert Recipe.from_fields(recipe.to_fields() | {"more": 1}, "here") == recipe


@pytest.mark.parametrize(
    "change", [{"type": 4}, {"method": None}, {"formats": []}, {"formats": {}}, {"formats": {"experts": 1}}]
)
def test_a_recipe_that_makes_no_sense_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="here"):
        Recipe.from_fields(Recipe.of("int4").to_fields() | change, "here")
    with pytest.raises(CheckpointError, match="here"):
        Recipe.from_fields([], "here")


def test_why_not() -> None:
    assert why_not("layers.0.moe.experts.1.down", (64, 96), 64, 96) is None
    assert why_not("layers.0.moe.experts.1.down", (72, 96), 72, 96) == "hidden_size is 72, no multiple of 32"
    assert why_not("layers.0.moe.experts.1.gate_up", (96, 64), 64, 48) == "intermediate_size is 48, no multiple of 32"
    assert why_not("layers.0.attention.o", (64, 18), 64, 48) == "the number of inputs is 18, no multiple of 32"
    assert why_not("layers.0.attention.q", (18, 64), 64, 48) is None  # outputs are padded


@pytest.mark.parametrize("method", METHODS)
def test_quantise_uses_the_method(method: str) -> None:
    w = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    packed = Recipe.of("int4", method).quantise(w, FORMATS["int4"], None)
    assert packed.format == FORMATS["int4"] and float((packed.dequantise() - w).abs().max()) < 0.4

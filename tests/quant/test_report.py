"""Every weight of a model is counted once, under its part; what is not as the recipe says is an error."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from coterie.checkpoint.huggingface import save_huggingface
from coterie.checkpoint.load import load_model
from coterie.errors import CheckpointError
from coterie.model import Transformer
from coterie.quant.layers import PackedLinear
from coterie.quant.recipe import Recipe
from coterie.quant.report import bits_of, part_of_module, require_bits, table


@pytest.fixture(params=[{}, {"tie_word_embeddings": True}, {"num_local_experts": None}])
def both(
    request: pytest.FixtureRequest, make_model: Callable[..., Transformer], tmp_path: Path
) -> tuple[Transformer, Transformer]:
    """A plain model and the same at int4."""
    model = make_model(hidden_size=64, intermediate_size=96, **request.param)
    save_huggingface(tmp_path / "m", model.config, model.tensors(), dtype="float32")
    return model, load_model(tmp_path / "m", quantize="int4")


def test_the_same_weights_are_counted_in_both(both: tuple[Transformer, Transformer]) -> None:
    counts = [{b.part: b.n_weights for b in bits_of(model)} for model in both]
    assert counts[0] == counts[1]
    assert sum(counts[0].values()) == sum(p.numel() for p in both[0].parameters())


def test_bits_of_each_part(both: tuple[Transformer, Transformer]) -> None:
    found = {b.part: b for b in bits_of(both[1])}
    assert found["experts"].format == "4 bit, groups of 32, 8-bit scales and offsets"
    assert 4.6 < found["experts"].bits_per_weight < 5  # the last blocks are short
    assert found["attention"].format == found["embedding"].format == "8 bit, groups of 32"
    assert found["norms"].bits_per_weight == 32
    assert require_bits(both[1], Recipe.of("int4")) == list(found.values())
    assert table(bits_of(both[1])).count("\n") == len(found) - 1


def test_what_was_not_quantised_is_found(both: tuple[Transformer, Transformer]) -> None:
    plain, packed = both
    with pytest.raises(CheckpointError, match="embedding has float32, expected 8 bit"):
        require_bits(plain, Recipe.of("int4"))
    with pytest.raises(CheckpointError, match="experts has 4 bit"):
        require_bits(packed, Recipe.of("int3"))
    packed.layers[1].attention.o = PackedLinear([torch.zeros(64, 64)])
    with pytest.raises(CheckpointError, match="attention has float32"):
        require_bits(packed, Recipe.of("int4"))
    require_bits(packed, Recipe.of("int4"), ["layers.1.attention.o"])


def test_parts_by_path() -> None:
    paths = {
        "embed.table": "embedding",
        "head.linear.parts": "head",
        "head.norm.weight": "norms",
        "layers.0.attention.qkv.norm.weight": "norms",
        "layers.0.attention.qkv.linear.parts": "attention",
        "layers.0.feed_forward.router.weight": "router",
        "layers.0.feed_forward.experts.gate_up": "experts",
        "layers.0.feed_forward.gate_up.linear.parts": "experts",
    }
    assert {path: part_of_module(path) for path in paths} == paths

"""Where things lie in a file of Mixtral's true size, which is made of holes: it opens and loads at once."""

import time
from pathlib import Path

import pytest
import torch

from coterie.checkpoint.load import load_model
from coterie.checkpoint.names import places
from coterie.checkpoint.opened import Checkpoint
from coterie.checkpoint.packed import open_packed
from coterie.checkpoint.packed_layout import Layout, lay_out
from coterie.checkpoint.quantise import plan_parts
from coterie.checkpoint.safetensors import Entry
from coterie.config import ModelConfig
from coterie.quant.recipe import Recipe

RECIPE = Recipe.of("int4")


@pytest.fixture(scope="module")
def mixtral() -> Layout:
    config, entries, at = ModelConfig(), list[Entry](), 0
    named = list(places(config, "huggingface"))
    for name, place in named:
        entries.append(Entry(name, "BF16", place.shape, Path("x"), at, 2 * place.n_elements))
        at += 2 * place.n_elements
    filled = tuple(place for _, place in named)
    checkpoint = Checkpoint(Path("x"), "huggingface", "huggingface", config, tuple(entries), filled)
    return lay_out(config, plan_parts(checkpoint, RECIPE), RECIPE.to_fields() | {"calibration": None, "plain": {}})


def test_mixtral_takes_27_8_gb_and_its_records_pages(mixtral: Layout) -> None:
    assert 27.7e9 < mixtral.nbytes < 27.8e9 and len(mixtral.header) % 4096 == mixtral.nbytes % 4096 == 0
    experts = [at for name, at in mixtral.places.items() if name.endswith(".gate_up")]
    assert len(experts) == 256 and all(at % 4096 == 0 for at in experts) and experts == sorted(experts)
    at = mixtral.places
    assert at["layers.3.moe.experts.5.down"] - at["layers.3.moe.experts.5.gate_up"] == 67_895_296  # docs/packed.md
    assert max(at[name] for name in at if ".experts." not in name) < experts[0]
    assert list(mixtral.units) == ["embed", *(f"layers.{i}" for i in range(32)), "norm", "head"]


def test_a_file_of_27_8_gb_is_ready_at_once(mixtral: Layout, tmp_path: Path) -> None:
    with open(tmp_path / "model.safetensors", "wb") as f:
        f.write(mixtral.header)
        f.truncate(mixtral.nbytes)
    start = time.perf_counter()
    model = load_model(tmp_path)
    assert time.perf_counter() - start < 1
    assert not model.layers[31].feed_forward.experts.down[7].data[:1000].any()
    parts = {p.name: p for p in open_packed(tmp_path).parts}
    assert all(parts[name].offset == at for name, at in mixtral.places.items())
    assert model.head.norm.weight.dtype == torch.float32

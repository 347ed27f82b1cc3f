"""The arithmetic of a plan, on measurements that are made up; `test_measure` makes real ones."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from coterie.config import ModelConfig
from coterie.sizes import active_parameters
from coterie.train.corpus import Corpus
from coterie.train.footprint import footprint
from coterie.train.plan import make_plan, planned_memory, planned_seconds
from coterie.train.plan_advice import advice, text_warnings
from coterie.train.recipe import Data, Recipe, Train
from coterie.train.sample import Sample
from coterie.train.scaling import chinchilla_loss, effective_tokens

SHAPE: dict[str, Any] = dict(
    vocab_size=256, hidden_size=64, intermediate_size=96, num_hidden_layers=6, num_attention_heads=4,
    num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=512,
)  # fmt: skip
CONFIG = ModelConfig(**SHAPE)
KEPT = {"attention": 10_000, "experts": 20_000, "norms": 5_000, "loss": 3_000}
GB = 1_000_000_000


def recipe(**train: Any) -> Recipe:
    train = {"steps": 10, "batch": 8, "sequence": 128} | train
    return Recipe(model=SHAPE, data=Data(files=("a", "b"), weights=(0.25, 0.75)), train=Train(**train))


def made_up(
    layers: int, micro: float, update: float = 0.0, rows: int = 8, sequence: int = 128, peak: int = GB
) -> Sample:
    return Sample(
        layers=layers, rows=rows, sequence=sequence, micro_seconds=micro, optimizer_seconds=update, micro_batches=3,
        framework=100_000_000, peak=peak, is_settled=peak <= GB, kept=KEPT,
    )  # fmt: skip


def test_time_is_linear_in_layers_rows_and_micro_batches() -> None:
    assert planned_seconds([made_up(1, 2.0), made_up(3, 4.0)], 6, 8, 1) == pytest.approx(7.0)
    assert planned_seconds([made_up(6, 2.0, 0.5)], 6, 8, 4) == pytest.approx(8.5)
    assert planned_seconds([made_up(6, 2.0, rows=2)], 6, 8, 1) == pytest.approx(8.0)
    assert planned_seconds([made_up(1, 2.0)], 6, 8, 1) == pytest.approx(12.0)  # a single layer knows no more
    assert planned_seconds([made_up(1, 2.0), made_up(2, 1.9)], 6, 8, 1) == pytest.approx(
        1.9
    )  # noise, not less than that


def test_at_full_depth_the_planned_peak_is_the_measured_one() -> None:
    found = planned_memory(recipe(), CONFIG, torch.float32, 8, 128, 2 * GB, [made_up(6, 1.0)])
    assert found.peak == GB and found.is_measured and found.fits
    assert found.framework + found.rest + found.parts.peak == found.peak
    assert found.parts.activations.experts == KEPT["experts"]


def test_beyond_the_formula_grows_with_the_layers() -> None:
    def at(layers: int, beyond: int) -> Sample:
        config = replace(CONFIG, num_hidden_layers=layers)
        parts = footprint(config, recipe(recompute=True).train, torch.float32, 8, 128)  # where the formula is taken
        return made_up(layers, 1.0, peak=100_000_000 + parts.peak + beyond)

    found = planned_memory(
        recipe(recompute=True), CONFIG, torch.float32, 8, 128, GB, [at(1, 1_000_000), at(2, 3_000_000)]
    )
    assert found.rest == 11_000_000


def test_a_plan_counts_what_the_recipe_says() -> None:
    corpora = [Corpus(name="a", tokens=2560, is_counted=True), Corpus(name="b", tokens=1536, is_counted=False)]
    run = recipe(sequence=((0.0, 128), (0.5, 256)))
    samples = [[made_up(6, 1.0)], [made_up(6, 3.0, rows=4, sequence=256, peak=2 * GB)]]
    plan = make_plan(run, CONFIG, torch.float32, available=GB, corpora=corpora, valid_tokens=1024, samples=samples)
    assert (
        plan.tokens == 10_240 and [p.steps for p in plan.phases] == [5, 5] and [p.rows for p in plan.phases] == [8, 4]
    )
    assert plan.epochs == [1.0, 5.0]
    assert plan.active == active_parameters(CONFIG).total
    assert plan.memory.peak == 2 * GB and not plan.memory.fits
    assert plan.timing is not None and plan.timing.steps == pytest.approx(20.0)
    assert plan.timing.scoring == pytest.approx(1024 * 20 / 10_240 / 3)
    assert any("does not fit: 2.0 GB needed, 1.0 GB there" in w for w in plan.warnings)
    assert any(w.startswith("b is read 5.0 times") for w in plan.warnings)
    assert any(w.startswith("memory was still rising") for w in plan.warnings)  # the second sample says so


def test_operations_are_six_for_each_active_weight_and_attention() -> None:
    """By hand: 6 for each weight of a product that a token meets, 12 · layers · width of all heads · (S + 1) / 2."""
    plan = make_plan(recipe(), CONFIG, torch.float32, available=GB)
    layer = 64 * (64 + 2 * 32) + 64 * 64 + 64 * 4 + 2 * 3 * 64 * 96
    by_hand = 6 * (6 * layer + 256 * 64) + 12 * 6 * 64 * 129 / 2
    assert plan.operations / plan.tokens == pytest.approx(by_hand)
    assert plan.timing is None and not plan.memory.is_measured and plan.phases[0].seconds is None


def test_repeated_text_predicts_a_higher_loss() -> None:
    fresh = make_plan(recipe(), CONFIG, torch.float32, available=GB).predictions[0]
    few = [Corpus(name="a", tokens=64, is_counted=True), Corpus(name="b", tokens=192, is_counted=True)]
    again = make_plan(recipe(), CONFIG, torch.float32, available=GB, corpora=few).predictions[0]
    worth = effective_tokens(10_240, 256)  # of text read 40 times: some 14 times itself
    assert again.loss == pytest.approx(chinchilla_loss(active_parameters(CONFIG).total, worth)) and worth < 4000
    assert again.loss > fresh.loss


@pytest.mark.parametrize(("cut", "words"), [(2, "accumulate = 2:"), (4, "accumulate = 4:"), (0, "smaller model")])
def test_advice_names_the_smallest_change_that_is_enough(cut: int, words: str) -> None:
    needed = footprint(CONFIG, recipe().train, torch.float32, 8, 128).peak
    smaller = footprint(CONFIG, recipe(accumulate=cut).train, torch.float32, 8 // cut, 128).peak if cut else 1000
    text = advice(recipe(), CONFIG, torch.float32, needed=needed, available=smaller, rows=[(8, 128)])
    assert words in text, text


def test_what_fits_in_no_way_says_what_the_smallest_would_take() -> None:
    """Mixtral 8x7B in steps of 4 M tokens: nearly all of it activations, and without them still too much."""
    run, config = recipe(batch=1024, sequence=4096), ModelConfig()
    needed = footprint(config, run.train, torch.bfloat16, 1024, 4096).peak
    text = advice(run, config, torch.bfloat16, needed=needed, available=64 * GB, rows=[(1024, 4096)])
    smallest = footprint(config, recipe(accumulate=1024, recompute=True).train, torch.bfloat16, 1, 4096).peak
    assert f"and still {smallest / 1e9:.1f} GB with recompute = true and accumulate = 1024" in text, text


def test_advice_for_rows_that_cannot_be_cut_is_recompute() -> None:
    run = recipe(batch=1, sequence=512)
    needed = footprint(CONFIG, run.train, torch.float32, 1, 512).peak
    text = advice(run, CONFIG, torch.float32, needed=needed, available=round(0.7 * needed), rows=[(1, 512)])
    assert "recompute = true" in text and "accumulate" not in text


def test_text_that_is_missing_is_a_warning() -> None:
    lost = Corpus(name="$X/a", tokens=0, is_counted=False, problem="no $X")
    assert text_warnings([lost], [None]) == ["the tokens of $X/a are not known: no $X"]

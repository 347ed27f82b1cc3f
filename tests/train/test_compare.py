import json
import math
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest

from coterie.config import ModelConfig, RouterConfig
from coterie.errors import RecipeError
from coterie.router_config import ROUTER_KINDS
from coterie.train.compare import Row, as_json, chart, markdown, parse_kinds, recipe_for, smooth
from coterie.train.recipe import Balance, Data, Init, Recipe, Train

MODEL = {
    "vocab_size": 64, "hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "num_local_experts": 4, "num_experts_per_tok": 2, "max_position_embeddings": 64,
}  # fmt: skip
PLAN = Recipe(model=MODEL, data=Data(files=("x",)), train=Train(steps=40), balance=Balance(noisy_load=0.1))


def test_kinds_with_commas_between() -> None:
    assert parse_kinds("topk, switch,") == ["topk", "switch"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("topk,swich", "'swich' is not a router.*did you mean 'switch'"),
        ("topk,topk", "'topk' twice"),
        (" , ", "is empty, expected routers with commas"),
    ],
)
def test_a_mistake_is_named(text: str, sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        parse_kinds(text)


@pytest.mark.parametrize("kind", ROUTER_KINDS)
def test_every_kind_makes_a_model(kind: str) -> None:
    recipe = recipe_for(PLAN, kind)
    config = ModelConfig.from_fields(recipe.model | {"router": recipe.router}, where="test")
    assert recipe.router.kind == kind and recipe.train == PLAN.train and recipe.data == PLAN.data
    assert (recipe.balance.bias > 0) == (kind == "sigmoid_bias")
    assert (recipe.balance.noisy_load > 0) == (kind == "noisy_topk")
    assert config.num_experts_per_tok == {"switch": 1, "base": 1, "sparsemixer": 1, "dense": 4, "soft": 4}.get(kind, 2)


def test_the_capacity_of_the_recipe_is_kept_where_a_kind_takes_one() -> None:
    plan = Recipe(**{**PLAN.__dict__, "router": RouterConfig(capacity=1.25, drop="probability", jitter=0.01)})
    assert recipe_for(plan, "topk").router == plan.router
    assert recipe_for(plan, "switch").router.capacity == 1.25
    assert recipe_for(plan, "soft").router == RouterConfig(kind="soft", jitter=0.01)


def test_an_upcycling_into_segments_is_compared_with_as_many_experts_as_it_trains() -> None:
    """Two whole copies where the recipe does not say; it was two segments."""
    fields = {"num_local_experts": 8}
    plan = Recipe(**{**PLAN.__dict__, "model": fields, "init": Init(upcycle=("a",), method="split", granularity=4)})
    assert recipe_for(plan, "topk").model["num_experts_per_tok"] == 8
    assert recipe_for(replace(plan, init=Init()), "topk").model["num_experts_per_tok"] == 2


def test_without_valid_files_the_lowest_loss_comes_first() -> None:
    table = markdown([Row(kind="switch", loss=3.0), Row(kind="topk", loss=2.0)], 5)
    assert table.index("| topk | - | 2.000") < table.index("| switch | - | 3.000")


def test_a_dense_model_has_no_routers_to_compare() -> None:
    with pytest.raises(RecipeError, match="num_local_experts"):
        recipe_for(Recipe(**{**PLAN.__dict__, "model": MODEL | {"num_local_experts": None}}), "topk")


def test_the_table_is_sorted_and_says_what_flatters() -> None:
    rows = [
        Row(kind="topk", bits_per_byte=2.0, loss=3.0, dropped=0.0, tokens_per_s=1000.0, active=10),
        Row(kind="soft", bits_per_byte=1.0, loss=2.0, dropped=0.0, can_decode=False, active=10),
        Row(kind="switch", error="ConfigError: no"),
    ]
    text = markdown(rows, 40)
    lines = text.splitlines()
    assert [line.split(" | ")[0] for line in lines if line.startswith("| ")] == ["| router", r"| soft \*", "| topk"]
    assert "flattered" in text and "switch failed: ConfigError: no" in text and "same active parameters" not in text
    assert "flattered" not in markdown(rows[:1], 40)
    assert "same active parameters" in markdown([rows[0], Row(kind="switch", active=5)], 40)


def test_rows_as_json_have_no_nan() -> None:
    assert json.loads(json.dumps(as_json([Row(kind="topk")]), allow_nan=False))[0]["loss"] is None


def test_the_picture_cuts_off_the_steep_start() -> None:
    log = [{"step": i, "loss": 2 + 8 * math.exp(-i)} for i in range(100)]
    root = ElementTree.fromstring(chart({"topk": log, "soft": log}, tokens_per_step=1000))
    texts = [t.text for t in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"topk", "soft"} <= set(texts) and "10" not in texts
    assert chart({}, 1000).startswith("<svg")


def test_smoothing_is_a_mean_over_what_was() -> None:
    log = [{"loss": float(i)} for i in range(80)]
    assert smooth(log)[:3] == [0.0, 0.5, 1.5] and smooth(log[:3]) == [0.0, 1.0, 2.0]


def test_a_table_of_nothing(tmp_path: Path) -> None:
    assert "| router" in markdown([], 1)

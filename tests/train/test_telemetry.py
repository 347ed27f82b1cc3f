import math
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from coterie.config import ModelConfig, RouterConfig
from coterie.sizes import active_parameters
from coterie.train.recipe import Data, Recipe, Train
from coterie.train.telemetry import Telemetry, mean_bytes_per_token, measure_load, training_operations

CONFIG = ModelConfig(
    vocab_size=64, hidden_size=16, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=64,
)  # fmt: skip


def test_a_load_by_hand() -> None:
    load = measure_load([torch.tensor([6.0, 2.0, 0.0, 0.0]), torch.full((4,), 2.0)])
    half = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(4)
    assert load.max_vio == pytest.approx(2.0) and load.idle == 2
    assert load.entropy == pytest.approx((half + 1) / 2)
    assert load.shares_LE.tolist() == [[3, 1, 0, 0], [1, 1, 1, 1]]


def test_what_a_capacity_dropped() -> None:
    assert measure_load([torch.full((4,), 3.0)], pairs=16).dropped == pytest.approx(0.25)
    assert measure_load([torch.full((4,), 4.0)], pairs=16).dropped == 0.0
    assert measure_load([torch.full((4,), 4.0)]).dropped == 0.0


@pytest.mark.parametrize("n", [1, 2, 64])
def test_extremes(n: int) -> None:
    alone = torch.zeros(n)
    alone[0] = 100
    one, even = measure_load([alone]), measure_load([torch.ones(n)])
    assert one.max_vio == pytest.approx(n - 1) and one.idle == n - 1
    assert even.max_vio == pytest.approx(0.0) and even.entropy == pytest.approx(1.0)
    assert one.entropy == pytest.approx(0.0 if n > 1 else 1.0, abs=1e-9)


def test_a_dense_model_and_a_step_without_tokens() -> None:
    assert measure_load([]).record() == {"max_vio": 0.0, "entropy": 1.0, "idle": 0, "dropped": 0.0}
    nothing = measure_load([torch.zeros(4)], pairs=8)
    assert nothing.idle == 4 and nothing.dropped == 1.0 and np.isfinite(nothing.max_vio)


def test_operations_are_six_per_active_weight_and_attention() -> None:
    p = active_parameters(CONFIG)
    weights = p.attention + p.router + p.feedforward + CONFIG.vocab_size * CONFIG.hidden_size
    keys, per_key = (1 + 2 + 3 + 4) / 4, 12 * 2 * 2 * 8  # layers, heads, head width
    assert training_operations(CONFIG, 4) == pytest.approx(6 * weights + per_key * keys)


def test_a_window_leaves_keys_out() -> None:
    windowed = ModelConfig.from_fields(CONFIG.to_fields() | {"sliding_window": 2}, where="test")
    difference = training_operations(CONFIG, 4) - training_operations(windowed, 4)
    assert difference == pytest.approx(12 * 2 * 2 * 8 * (10 - 7) / 4)
    assert training_operations(windowed, 2) == training_operations(CONFIG, 2)


def test_soft_experts_read_slots_not_tokens() -> None:
    soft = replace(CONFIG, num_experts_per_tok=4, router=RouterConfig(kind="soft", slots=2))
    experts, mixing = 2 * 2 * 4 * 3 * 16 * 8, 2 * 2 * 2 * 8 * 16
    attention_and_head = training_operations(CONFIG, 8) / 3 - experts / 2 - 2 * 2 * 4 * 16
    router = 2 * active_parameters(soft).router
    expected = attention_and_head + router + experts * 2 / 8 + mixing
    assert training_operations(soft, 8) == pytest.approx(3 * expected)


def test_bytes_of_a_mixture() -> None:
    files = [(100, 400), (300, 600)]
    assert mean_bytes_per_token(files, ()) == pytest.approx(2.5)
    assert mean_bytes_per_token(files, (1.0, 1.0)) == pytest.approx(3.0)
    assert mean_bytes_per_token([*files, (0, 0)], (0.5, 0.5, 0.0)) == pytest.approx(3.0)


def test_a_record_is_completed() -> None:
    telemetry = Telemetry(
        Recipe(model={}, data=Data(files=("x",)), train=Train(steps=99)), CONFIG, peak=1e9, bytes_per_token=4.0
    )
    record = {"step": 0, "sequence": 4, "loss": 3.0, "grad_norm": 1.0}
    telemetry.add(record, [torch.full((4,), 50.0)] * 2, tokens=220, seconds=0.55, n_counted=200)
    rate = 400 * training_operations(CONFIG, 4)
    assert record["tokens_per_s"] == pytest.approx(400) and record["operations_per_s"] == pytest.approx(rate)
    assert record["peak_share"] == pytest.approx(rate / 1e9)
    assert record["bits_per_byte"] == pytest.approx(3.0 / math.log(2) / 4)
    assert record["dropped"] == 0.5 and record["max_vio"] == 0.0 and "alarms" not in record


def test_alarms_are_recorded() -> None:
    telemetry = Telemetry(
        Recipe(model={}, data=Data(files=("x",)), train=Train(steps=99)), CONFIG, peak=1e9, bytes_per_token=4.0
    )
    said = []
    for step in range(99):
        record = {"step": step, "sequence": 4, "loss": 3.0, "grad_norm": 1.0}
        telemetry.add(record, [torch.tensor([9.0, 9.0, 9.0, 0.0])] * 2, tokens=220, seconds=0.55, n_counted=200)
        said += record.get("alarms", [])
    assert len(said) == 1 and said[0].startswith("experts 3 of layer 0, 3 of layer 1 got no token")


def test_telemetry_of_mixtral_takes_less_than_a_millisecond() -> None:
    counts = [torch.rand(8) for _ in range(32)]
    taken = []
    for _ in range(20):
        started = time.perf_counter()
        measure_load(counts)
        taken.append(time.perf_counter() - started)
    assert sorted(taken)[10] < 5e-3  # 0.2 ms on a quiet core; machines of tests are not quiet

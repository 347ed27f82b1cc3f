import torch

from coterie.engine.stats import EngineStats
from coterie.routing import Assignment


def layer(*rows: list[int]) -> Assignment:
    ids = torch.tensor(rows, dtype=torch.int32)
    return Assignment(ids, ids.float(), ids.float(), {})


def test_rows_of_experts_are_counted_by_layer() -> None:
    stats = EngineStats.of(2, 4)
    stats.add_pass([layer([0, 1], [1, -1]), layer([3, 2], [3, 0])])
    stats.add_pass([layer([1, 2]), layer([3, 1])])
    stats.count()
    assert stats.expert_tokens_LE.tolist() == [[1, 3, 1, 0], [1, 1, 1, 3]] and stats.passes == 2


def test_many_passes_are_counted_together_and_a_reader_keeps_its_array() -> None:
    stats = EngineStats.of(1, 2)
    before = stats.expert_tokens_LE
    for _ in range(100):
        stats.add_pass([layer([0])])
    assert 0 < stats.expert_tokens_LE.sum() <= 100 and before.sum() == 0
    stats.count()
    stats.count()
    assert stats.expert_tokens_LE.tolist() == [[100, 0]]


def test_layers_may_choose_different_numbers_of_experts() -> None:
    stats = EngineStats.of(2, 3)
    stats.add_pass([layer([0, 1, 2]), layer([2])])
    stats.count()
    assert stats.expert_tokens_LE.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_a_dense_model_has_no_experts() -> None:
    stats = EngineStats.of(0, 0)
    for _ in range(40):
        stats.add_pass([])
    stats.count()
    assert stats.expert_tokens_LE.shape == (0, 0) and stats.passes == 40

"""Planted likenesses: copies, reordered copies, segments, parts that were changed, and weights of their own."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from coterie.analysis.likeness import between_experts, check_comparable, compare_layer, say
from coterie.config import ModelConfig
from coterie.errors import CheckpointError

D, F, E = 32, 64, 4
Tensors = dict[str, Tensor]


def dense(seed: int = 0) -> Tensors:
    g = torch.Generator().manual_seed(seed)
    shapes = {"gate": (F, D), "up": (F, D), "down": (D, F)}
    return {f"layers.0.feed_forward.{n}": torch.empty(s).normal_(generator=g) for n, s in shapes.items()}


def sparse(make: Callable[[int], Tensors]) -> Callable[[str], Tensor]:
    """Experts 0..3, each from the gate, up and down that `make(e)` gives."""
    made = [{n.rpartition(".")[2]: t for n, t in make(e).items()} for e in range(E)]
    gate_up = torch.stack([torch.cat((m["gate"], m["up"])) for m in made])
    down = torch.stack([m["down"] for m in made])
    return {"layers.0.moe.experts.gate_up": gate_up, "layers.0.moe.experts.down": down}.__getitem__


def test_copies_are_1_also_when_scaled_and_shuffled_channels_are_0() -> None:
    block = dense()
    found = compare_layer(sparse(lambda e: {n: (e + 1) * t for n, t in block.items()}), block.__getitem__, 0)
    for part in ("gate", "up", "down"):
        assert found.with_dense[part] == pytest.approx([1.0] * E, abs=1e-5)
        assert max(map(abs, found.shuffled[part])) < 0.1
        assert found.each_other[part] == pytest.approx(1.0, abs=1e-6)
    assert all(m.best == pytest.approx(1, abs=1e-5) and m.in_place == 1 and m.by_chance < 0.6 for m in found.matches)
    assert "nearly copies of the dense block (mean cosine 1.00" in say([found])


def test_weights_of_their_own_are_0_beside_a_chance_of_0() -> None:
    found = compare_layer(sparse(lambda e: dense(e + 1)), dense().__getitem__, 0)
    assert all(abs(v) < 0.1 for part in found.with_dense.values() for v in part)
    assert all(abs(v) < 0.1 for v in found.each_other.values())
    assert all(abs(m.best - m.by_chance) < 0.08 for m in found.matches)
    assert say([found]).startswith("Nothing of the dense block can be seen")


def test_a_common_mean_is_told_from_a_likeness_by_the_shuffled_channels() -> None:
    """Weights around 2 have a cosine of 0.8 with any others around 2."""
    block = {n: t + 2 for n, t in dense().items()}
    found = compare_layer(sparse(lambda e: {n: t + 2 for n, t in dense(e + 1).items()}), block.__getitem__, 0)
    assert all(v > 0.7 for v in found.with_dense["gate"])
    assert found.shuffled["gate"] == pytest.approx(found.with_dense["gate"], abs=0.1)
    assert say([found]).startswith("Nothing of the dense block")


def test_reordered_channels_are_found_by_their_best_match_only() -> None:
    block, order = dense(), torch.randperm(F, generator=torch.Generator().manual_seed(9))
    mixed = {n: t[:, order] if n.endswith("down") else t[order] for n, t in block.items()}
    found = compare_layer(sparse(lambda e: mixed), block.__getitem__, 0)
    assert all(abs(v) < 0.15 for v in found.with_dense["up"])
    assert all(m.best > 0.999 and m.in_place < 0.2 for m in found.matches)
    assert "in another order" in say([found])


def test_what_was_trained_on_lies_between() -> None:
    block = dense()
    found = compare_layer(sparse(lambda e: {n: t + dense(e + 1)[n] for n, t in block.items()}), block.__getitem__, 0)
    assert all(v == pytest.approx(0.5**0.5, abs=0.05) for part in found.with_dense.values() for v in part)
    assert all(v == pytest.approx(0.5, abs=0.05) for v in found.each_other.values())
    assert say([found]).startswith("The experts come from the dense block and have moved away")


def test_one_expert_of_a_merge_comes_from_the_block_and_the_others_do_not() -> None:
    """A mean over experts called these four "come from the dense block and have moved away"."""
    block = dense()
    found = compare_layer(sparse(lambda e: block if e == 1 else dense(e + 1)), block.__getitem__, 0)
    assert say([found]).startswith("1 of 4 experts come from the dense block (mean cosine 1.00), the others do not")


def test_experts_that_are_segments_are_compared_with_theirs() -> None:
    block = dense()

    def segment(e: int) -> Tensors:
        at = slice(16 * e, 16 * (e + 1))
        return {n: t[:, at] if n.endswith("down") else t[at] for n, t in block.items()}

    found = compare_layer(sparse(segment), block.__getitem__, 0)
    assert found.with_dense["down"] == pytest.approx([1.0] * E, abs=1e-5)
    assert all(m.in_place == 1 for m in found.matches) and abs(found.each_other["gate"]) < 0.1


def test_between_experts_is_the_mean_over_pairs_of_the_same_segment() -> None:
    tensors = sparse(lambda e: dense(e % 2))  # segments 0 and 1 of two copies
    assert between_experts(tensors, 0, segments=2) == pytest.approx(1, abs=1e-6)
    assert between_experts(tensors, 0) == pytest.approx(1 / 3, abs=0.03)  # 2 of 6 pairs are equal
    gate = torch.cat([dense(e % 2)["layers.0.feed_forward.gate"].flatten()[None] for e in range(E)])
    pairs = [float(torch.cosine_similarity(gate[i], gate[j], dim=0)) for i in range(E) for j in range(i)]
    found = compare_layer(tensors, dense().__getitem__, 0)
    assert found.each_other["gate"] == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)


@pytest.mark.parametrize(
    ("sparse_fields", "dense_fields", "message"),
    [
        ({"num_local_experts": None}, {}, "a is dense, expected a mixture"),
        ({}, {"num_local_experts": 8}, "b is sparse, expected the dense model"),
        ({"hidden_size": 64}, {}, "a has hidden_size 64 and b 128"),
        ({"num_hidden_layers": 3}, {}, "a has num_hidden_layers 3 and b 32"),
        ({"intermediate_size": 100}, {}, "have 100 channels .* 256; expected as many"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    sparse_fields: dict[str, int], dense_fields: dict[str, int], message: str
) -> None:
    shape = {"hidden_size": 128, "intermediate_size": 256}
    a = ModelConfig(**{**shape, **sparse_fields})
    b = ModelConfig(**{**shape, "num_local_experts": None, **dense_fields})
    with pytest.raises(CheckpointError, match=message):
        check_comparable(a, b, names=("a", "b"))

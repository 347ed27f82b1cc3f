from collections.abc import Callable

import pytest
import torch

from coterie.model import Transformer
from coterie.model.attention import WholeSequences


def logits(model: Transformer, ids: list[int], n_sequences: int = 1, shift: int = 0) -> torch.Tensor:
    S = len(ids) // n_sequences
    positions_T = torch.arange(S).repeat(n_sequences) + shift
    cache = WholeSequences(n_sequences, model.config.sliding_window)
    with torch.inference_mode():
        return model.head(model(torch.tensor(ids), positions_T, cache).hidden_TD)


def test_names_point_at_the_memory_the_model_uses(make_model: Callable[..., Transformer]) -> None:
    model = make_model()
    before = logits(model, [1, 2, 3])
    for name, tensor in model.tensors().items():
        old = tensor.clone()
        tensor.mul_(1.5).add_(0.1)
        assert not torch.allclose(logits(model, [1, 2, 3]), before, atol=1e-6), name
        tensor.copy_(old)
    assert torch.equal(logits(model, [1, 2, 3]), before)


@pytest.mark.parametrize("fields", [{}, {"num_local_experts": None}, {"tie_word_embeddings": True}])
def test_every_parameter_has_a_name(make_model: Callable[..., Transformer], fields: dict[str, object]) -> None:
    model = make_model(**fields)
    assert sum(t.numel() for t in model.tensors().values()) == sum(p.numel() for p in model.parameters())


def test_one_routing_for_each_sparse_layer(make_model: Callable[..., Transformer]) -> None:
    ids, positions = torch.tensor([1, 2]), torch.arange(2)
    output = make_model()(ids, positions, WholeSequences(1, None))
    assert [r.ids_TK.shape for r in output.routings] == [(2, 2)] * 3
    assert make_model(num_local_experts=None)(ids, positions, WholeSequences(1, None)).routings == []


def test_a_later_token_changes_no_earlier_one(make_model: Callable[..., Transformer]) -> None:
    model = make_model()
    torch.testing.assert_close(logits(model, [5, 6, 7, 8])[:3], logits(model, [5, 6, 7, 200])[:3], atol=1e-5, rtol=0)


def test_texts_of_a_batch_do_not_see_each_other(make_model: Callable[..., Transformer]) -> None:
    model = make_model(sliding_window=3)
    together = logits(model, [5, 6, 7, 8, 15, 16, 17, 18], n_sequences=2)
    alone = torch.cat([logits(model, [5, 6, 7, 8]), logits(model, [15, 16, 17, 18])])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_only_distances_between_positions_matter(make_model: Callable[..., Transformer]) -> None:
    model = make_model()
    torch.testing.assert_close(logits(model, [5, 6, 7], shift=0), logits(model, [5, 6, 7], shift=40), atol=1e-4, rtol=0)


LAYER = {
    "attention.q": (32, 32), "attention.k": (16, 32), "attention.v": (16, 32), "attention.o": (32, 32),
    "attention_norm": (32,), "moe_norm": (32,),
}  # fmt: skip
SPARSE = {"moe.router": (4, 32), "moe.experts.gate_up": (4, 96, 32), "moe.experts.down": (4, 32, 48)}
DENSE = {"feed_forward.gate": (48, 32), "feed_forward.up": (48, 32), "feed_forward.down": (32, 48)}


@pytest.mark.parametrize(
    ("fields", "inner", "ends"),
    [
        ({}, SPARSE, {"embed", "norm", "head"}),
        ({"num_local_experts": None}, DENSE, {"embed", "norm", "head"}),
        ({"tie_word_embeddings": True}, SPARSE, {"embed", "norm"}),
    ],
)
def test_the_canonical_names_and_shapes(
    make_model: Callable[..., Transformer], fields: dict[str, object], inner: dict[str, tuple[int, ...]], ends: set[str]
) -> None:
    named = {name: tuple(t.shape) for name, t in make_model(**fields).tensors().items()}
    expected = {f"layers.{i}.{name}": shape for i in range(3) for name, shape in (LAYER | inner).items()}
    expected |= {name: (32,) if name == "norm" else (259, 32) for name in ends}
    assert named == expected


def test_queries_keys_and_values_are_rows_of_one_weight(make_model: Callable[..., Transformer]) -> None:
    model = make_model()
    fused, named = model.get_parameter("layers.1.attention.qkv.linear.weight"), model.tensors()
    rows = [named[f"layers.1.attention.{part}"] for part in "qkv"]
    assert torch.equal(torch.cat(rows), fused) and rows[0].data_ptr() == fused.data_ptr()

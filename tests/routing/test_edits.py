from collections.abc import Callable

import pytest
import torch

from coterie.config import ModelConfig
from coterie.engine.runner import Runner
from coterie.errors import RequestError
from coterie.kernels import cpu
from coterie.model import Transformer
from coterie.router_config import RouterConfig
from coterie.routing import ExpertEdits, Rows, TopKRouter
from coterie.routing.edits import row_edits

CONFIG = ModelConfig(num_hidden_layers=2, num_local_experts=4, num_experts_per_tok=2)


def route(edits: ExpertEdits, *logits: float, layer: int = 0) -> tuple[list[int], list[float]]:
    """Identity rows: the logits are x. The second row has no edits."""
    x_TD = torch.tensor([logits, logits])
    rows = Rows(edits=row_edits([edits, None], [1, 1], CONFIG))
    routing = TopKRouter(torch.eye(4), 2, layer=layer)(x_TD, rows)
    plain = TopKRouter(torch.eye(4), 2)(x_TD)
    assert torch.equal(routing.ids_TK[1, :2], plain.ids_TK[1]) and (routing.ids_TK[1, 2:] == -1).all()
    assert torch.equal(routing.weights_TK[1, :2], plain.weights_TK[1]) and not routing.weights_TK[1, 2:].any()
    assert torch.equal(routing.logits_TE, x_TD), "raw"
    return routing.ids_TK[0].tolist(), routing.weights_TK[0].tolist()


@pytest.mark.parametrize("kernels", ["native", "reference"])
def test_the_answer_in_one_line(kernels: str) -> None:
    half = [0.5, 0.5]
    with cpu.use(cpu.names()[0] if kernels == "native" else "reference"), torch.inference_mode():
        assert route(ExpertEdits(), 1, 3, 2, 2) == ([1, 2], pytest.approx([0.7311, 0.2689], abs=1e-4))
        assert route(ExpertEdits(ban=((0, 1),)), 1, 3, 2, 2) == ([2, 3], half)
        assert route(ExpertEdits(ban=((0, 1),)), 1, 3, 2, 2, layer=1)[0] == [1, 2], "of layer 0"
        assert route(ExpertEdits(bias=((0, 0, 1.5), (0, 0, 0.5))), 1, 3, 2, 2) == ([0, 1], half)
        assert route(ExpertEdits(top_k=1), 1, 3, 2, 2) == ([1, -1], [1, 0])
        assert route(ExpertEdits(top_k=4), 0, 0, 0, 0) == ([0, 1, 2, 3], [0.25] * 4)
        assert route(ExpertEdits(ban=((0, 0), (0, 1), (0, 2)), top_k=1), 1, 3, 2, 2) == ([3, -1], [1, 0])


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        (ExpertEdits(ban=((2, 0),)), "experts.ban names layer 2, expert 0, expected layers 0 to 1 and experts 0 to 3"),
        (ExpertEdits(bias=((0, 4, 1.0),)), "experts.bias names layer 0, expert 4"),
        (ExpertEdits(bias=((0, 0, float("nan")),)), "experts.bias is nan, expected a number"),
        (ExpertEdits(bias=((0, 0, 1e9),)), "from -10000 to 10000"),
        (ExpertEdits(top_k=0), "experts.top_k is 0, expected a whole number from 1 to 4"),
        (ExpertEdits(top_k=5), "experts.top_k is 5"),
        (ExpertEdits(ban=((1, 0), (1, 1), (1, 3), (1, 3))), "leaves 1 of 4 experts in layer 1, but a token takes 2"),
        (ExpertEdits(ban=((1, 0),), top_k=4), "leaves 3 of 4 experts in layer 1, but a token takes 4"),
        (ExpertEdits(ban=((0, 0),) * 17), "more entries than twice"),
    ],
)
def test_what_cannot_be_is_one_sentence(edits: ExpertEdits, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        edits.check(CONFIG)


def test_only_the_top_k_router_and_only_experts_that_are_there() -> None:
    ExpertEdits(ban=((0, 1), (1, 1)), bias=((1, 2, -3),), top_k=3).check(CONFIG)
    with pytest.raises(RequestError, match="dense"):
        ExpertEdits(top_k=1).check(ModelConfig(num_local_experts=None))
    for router in (RouterConfig(kind="sigmoid_bias"), RouterConfig(capacity=1.0)):
        with pytest.raises(RequestError, match="only be edited with the top-k router"):
            ExpertEdits(top_k=1).check(ModelConfig(router=router))


def test_equal_edits_are_one() -> None:
    found = row_edits([ExpertEdits(top_k=1), None, ExpertEdits(top_k=3), ExpertEdits(top_k=1)], [2, 1, 1, 1], CONFIG)
    assert found is not None and found.of_row_T.tolist() == [0, 0, -1, 1, 0] and found.n_slots == 3
    assert found.bias_NLE.shape == (2, 2, 4) and row_edits([None], [1], CONFIG) is None


EDITS = (
    None,
    ExpertEdits(ban=((0, 1), (1, 0))),
    ExpertEdits(bias=((0, 2, 5.0), (1, 3, -5.0)), top_k=1),
    ExpertEdits(top_k=4),
)


@pytest.mark.skipif(cpu.used() == "reference", reason="the native kernels are not built")
def test_a_pass_as_one_call_is_bitwise_the_modules_and_each_row_keeps_its_bits(
    make_model: Callable[..., Transformer],
) -> None:
    model = make_model(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_local_experts=4)
    texts = torch.randint(3, 30, (4, 20), generator=torch.Generator().manual_seed(3)).tolist()
    fused, walked = Runner(model), Runner(model)
    assert fused._native is not None
    walked._native = None
    work = list(enumerate(texts))
    a, b = fused.feed(work, EDITS), walked.feed(work, EDITS)
    for x, y in zip(a.routings, b.routings, strict=True):
        assert torch.equal(x.ids_TK, y.ids_TK) and torch.equal(x.weights_TK, y.weights_TK)
    assert torch.equal(a.hidden_TD, b.hidden_TD)
    assert not (a.routings[0].ids_TK[20:40] == 1).any() and ((a.routings[1].ids_TK[40:60] >= 0).sum(1) == 1).all()
    step = fused.step([5, 6, 7, 8], EDITS).hidden_TD
    for slot, edits in enumerate(EDITS):
        alone = Runner(model)
        assert torch.equal(alone.feed([(0, texts[slot])], [edits]).hidden_TD, a.hidden_TD[20 * slot : 20 * slot + 20])
        assert torch.equal(alone.step([5 + slot], [edits]).hidden_TD, step[slot : slot + 1])
    plain = Runner(model)
    assert torch.equal(plain.feed(work[:1]).hidden_TD, a.hidden_TD[:20])
    with cpu.use("reference"):
        torch.testing.assert_close(Runner(model).feed(work, EDITS).hidden_TD, a.hidden_TD, rtol=1e-4, atol=1e-4)

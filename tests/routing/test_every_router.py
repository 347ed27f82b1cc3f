"""What holds of routers of every kind. What is special to one is in a file of its own."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from coterie.model.experts import Experts
from coterie.model.moe import MoE
from coterie.router_config import ROUTER_KINDS
from coterie.routing import Assignment, Mixture, Rows
from coterie.routing.balance import LoadBalance, expert_counts, importance_loss, load_balancing_loss, z_loss
from coterie.routing.measures import max_violation

LEARNED = [kind for kind in ROUTER_KINDS if kind not in ("hash", "random")]
DRAWS_EXPERTS = ("sparsemixer", "sparsemixer_v2")  # their gradient is not that of what they return: see their own tests
LOOKS_AHEAD = {"expert_choice": (True, False), "soft": (True, False), "base": (True,), "sinkhorn": (True,)}
EVEN_WHILE_TRAINING = {  # how far the busiest expert may be above its share when all tokens want the same one
    "expert_choice": 0.0, "base": 0.0, "soft": 0.0, "dense": 0.0, "sinkhorn": 0.2, "hash": 0.15, "random": 0.15,
}  # fmt: skip


def moe(router: nn.Module) -> MoE:
    generator = torch.Generator().manual_seed(2)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return MoE(nn.Identity(), router, Experts(randn(4, 16, 6), randn(4, 6, 8)))


@pytest.fixture(params=ROUTER_KINDS)
def kind(request: pytest.FixtureRequest) -> Iterator[str]:
    yield request.param


@pytest.fixture(params=[True, False], ids=["training", "in_use"])
def training(request: pytest.FixtureRequest) -> Iterator[bool]:
    yield request.param


def test_what_comes_out(kind: str, training: bool, make_router: Callable, x_TD: Tensor, rows_for: Callable) -> None:
    """Best first, each expert once, unused slots -1 with weight 0, logits [T, E]; types as the model wants them."""
    routing = make_router(kind, dtype=torch.float32).train(training)(x_TD.float(), rows_for(x_TD))
    ids, weights = routing.ids_TK, routing.weights_TK
    assert ids.dtype == torch.int32 and weights.dtype == routing.logits_TE.dtype == torch.float32
    assert ids.shape == weights.shape and routing.logits_TE.shape == (12, 4)
    assert ((ids >= -1) & (ids < 4)).all() and (weights[ids < 0] == 0).all() and (weights >= 0).all()
    for row in ids.tolist():
        used = [i for i in row if i >= 0]
        assert len(set(used)) == len(used) and row == used + [-1] * (len(row) - len(used))
    if kind not in (*DRAWS_EXPERTS, "sinkhorn"):  # these choose by other numbers than they weigh by
        assert (weights.diff(dim=1) <= 0).all()


@pytest.mark.parametrize("options", [{}, {"jitter": 0.1}])
@pytest.mark.parametrize("learned", LEARNED)
def test_gradients(
    learned: str, training: bool, options: dict, make_router: Callable, x_TD: Tensor, rows_for: Callable
) -> None:
    """Weights, logits and losses against finite differences in float64, noise held fixed."""
    if learned in DRAWS_EXPERTS and training:
        pytest.skip("an estimate of another gradient, under test in test_sparsemixer.py")
    router = make_router(learned, **options).train(training)
    names = [name for name, _ in router.named_parameters()]

    def outputs(x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        rows = rows_for(x_TD)
        routing = torch.func.functional_call(router, dict(zip(names, parameters, strict=True)), (x, rows))
        soft = (routing.dispatch_TM, routing.combine_TM) if isinstance(routing, Mixture) else (routing.weights_TK,)
        balance = [LoadBalance(scope).losses([routing], rows) for scope in ("sequence", "micro", "global")]
        losses = [load_balancing_loss(routing), z_loss(routing), importance_loss(routing), *balance]
        return (*soft, routing.logits_TE, *losses, *routing.losses.values())

    values = [p.detach().clone().requires_grad_() for p in router.parameters()]
    assert torch.autograd.gradcheck(outputs, (x_TD.clone().requires_grad_(), *values), atol=1e-7, fast_mode=True)


@pytest.mark.parametrize("learned", LEARNED)
def test_the_router_learns(learned: str, make_router: Callable, x_TD: Tensor, rows_for: Callable) -> None:
    """The loss of the model alone reaches every parameter."""
    block = moe(make_router(learned).train())
    y_TD, _ = block(x_TD, rows_for(x_TD))
    y_TD.square().sum().backward()
    for name, p in block.router.named_parameters():
        assert p.grad is not None and p.grad.abs().max() > 1e-6, name


def test_prefix_invariance(kind: str, training: bool, make_router: Callable, x_TD: Tensor, rows_for: Callable) -> None:
    """Another token t + 1 changes nothing up to t, of routers that say so; of the others it does, for some t."""
    block = moe(make_router(kind).train(training))
    is_ahead = training in LOOKS_AHEAD.get(kind, ())
    assert block.router.is_causal is not is_ahead
    y_TD, routing = block(x_TD, rows_for(x_TD))
    n_changed = 0
    for t in range(11):
        other_TD = x_TD.clone()
        other_TD[t + 1] = -3 * other_TD[t + 1].flip(0)
        ids = torch.arange(12)
        ids[t + 1] = 77
        new_TD, new = block(other_TD, rows_for(x_TD, token_ids_T=ids))
        same_logits = torch.equal(new.logits_TE[: t + 1], routing.logits_TE[: t + 1])
        same_ids = new.ids_TK.shape == routing.ids_TK.shape and torch.equal(
            new.ids_TK[: t + 1], routing.ids_TK[: t + 1]
        )
        same_y = torch.allclose(new_TD[: t + 1], y_TD[: t + 1], rtol=0, atol=1e-12)
        assert same_logits
        if not is_ahead:
            torch.testing.assert_close(new.weights_TK[: t + 1], routing.weights_TK[: t + 1], rtol=0, atol=0)
            assert same_ids and same_y
        n_changed += not same_y
    assert (n_changed > 0) is is_ahead


def test_a_replay_gives_the_same_again(
    kind: str, training: bool, make_router: Callable, x_TD: Tensor, rows_for: Callable
) -> None:
    """Ids, weights, the output and all gradients, bit by bit, as recomputation needs them."""
    block = moe(make_router(kind).train(training))

    def run(rows: Rows) -> tuple[Tensor, list[Tensor]]:
        y_TD, routing = block(x_TD, rows)
        y_TD.square().sum().backward()
        gradients = [p.grad.clone() for p in block.parameters() if p.grad is not None]
        block.zero_grad()
        return routing.ids_TK, [y_TD, routing.weights_TK, *gradients]

    ids_TK, first = run(rows_for(x_TD))
    again_TK, second = run(rows_for(x_TD, replay_ids_TK=ids_TK))
    assert torch.equal(ids_TK, again_TK)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


def test_a_replay_of_other_ids(
    kind: str, training: bool, make_router: Callable, x_TD: Tensor, rows_for: Callable
) -> None:
    """Taken as they are, slots of -1 too, which get weight 0; weights are finite."""
    if kind == "soft":
        pytest.skip("sends no token anywhere")
    router = make_router(kind).train(training)
    K = router(x_TD, rows_for(x_TD)).ids_TK.shape[1]
    replay_TK = torch.arange(12 * K).view(12, K) % 4
    replay_TK[::3, -1] = -1
    routing = router(x_TD, rows_for(x_TD, replay_ids_TK=replay_TK))
    assert torch.equal(routing.ids_TK, replay_TK.int())
    assert (routing.weights_TK[replay_TK < 0] == 0).all() and routing.weights_TK.isfinite().all()


def test_padding_does_not_matter(
    kind: str, training: bool, make_router: Callable, x_TD: Tensor, rows_for: Callable
) -> None:
    """Whatever stands in the padding: the other rows, all losses and counts are the same."""
    block = moe(make_router(kind).train(training))
    mask_T = torch.tensor([True] * 4 + [False] * 2 + [True] * 5 + [False])
    results = []
    for filler in (0.0, 5.0):
        padded_TD = torch.where(mask_T[:, None], x_TD, filler * x_TD.flip(0))
        ids = torch.where(mask_T, torch.arange(12), int(filler))
        rows = rows_for(x_TD, mask_T=mask_T, token_ids_T=ids)
        y_TD, routing = block(padded_TD, rows)
        losses = [LoadBalance(scope).losses([routing], rows) for scope in ("sequence", "micro", "global")]
        losses += [z_loss(routing, mask_T), importance_loss(routing, mask_T), *routing.losses.values()]
        results.append([y_TD[mask_T], *losses, expert_counts(routing, mask_T)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("learned", [k for k in LEARNED if k not in ("soft", "expert_choice")])
def test_equal_logits_go_to_the_lowest_id(
    learned: str, make_router: Callable, x_TD: Tensor, rows_for: Callable
) -> None:
    router = make_router(learned).eval()
    nn.init.zeros_(router.weight)
    ids_TK = router(x_TD, rows_for(x_TD)).ids_TK
    assert ids_TK.tolist() == [list(range(ids_TK.shape[1]))] * 12


@pytest.mark.parametrize(("even", "bound"), EVEN_WHILE_TRAINING.items())
def test_balance_where_all_tokens_want_the_same(even: str, bound: float, make_router: Callable) -> None:
    """Every token's first wish is expert 0: routers that share tokens out do so all the same, top-k does not."""
    x_TD = torch.randn(400, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).abs()
    load = {}
    for kind in (even, "topk"):
        router = make_router(kind, top_k=1).train()
        if kind not in ("hash", "random"):
            with torch.no_grad():
                router.weight[0] += 3.0
        routing = router(x_TD, Rows(torch.arange(400), generator=torch.Generator().manual_seed(0)))
        load[kind] = max_violation(expert_counts(routing))
    assert load[even] <= bound + 1e-6 and load["topk"] > 2


def test_one_token_alone(kind: str, training: bool, make_router: Callable, x_TD: Tensor, rows_for: Callable) -> None:
    block = moe(make_router(kind).train(training))
    y_TD, routing = block(x_TD[:1], rows_for(x_TD[:1]))
    assert y_TD.shape == (1, 6) and y_TD.isfinite().all() and (routing.ids_TK >= 0).any()


def test_in_use_rows_do_not_depend_on_their_company(
    kind: str, make_router: Callable, x_TD: Tensor, rows_for: Callable
) -> None:
    """What makes decoding agree with reading a whole text."""
    router = make_router(kind).eval()
    if not router.is_causal:
        pytest.skip("refused for decoding")
    together = router(x_TD, rows_for(x_TD))
    for t in range(12):
        alone = router(x_TD[t : t + 1], Rows(token_ids_T=torch.tensor([t])))
        assert torch.equal(alone.ids_TK[0], together.ids_TK[t])
        torch.testing.assert_close(alone.weights_TK[0], together.weights_TK[t], rtol=0, atol=1e-12)


@pytest.mark.parametrize("limited", ["topk", "noisy_topk", "switch", "gshard", "sigmoid_bias"])
@pytest.mark.parametrize("drop", ["position", "probability"])
def test_capacity(limited: str, drop: str, make_router: Callable, x_TD: Tensor, rows_for: Callable) -> None:
    """No expert gets more than its room, what finds none passes by; nothing is dropped when the model is used."""
    block = moe(make_router(limited, capacity=0.5, drop=drop).train())
    y_TD, routing = block(x_TD, rows_for(x_TD))
    K = routing.ids_TK.shape[1]
    assert expert_counts(routing).max() <= -(-12 * K // 8)
    passed_by_T = (routing.ids_TK < 0).all(-1)
    assert passed_by_T.any() and (y_TD[passed_by_T] == 0).all()
    assert block.router.is_causal is (drop == "position")
    block.eval()
    y_TD, routing = block(x_TD, rows_for(x_TD))
    assert isinstance(routing, Assignment) and (routing.ids_TK >= 0).all() and block.router.is_causal

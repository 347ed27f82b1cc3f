import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from coterie.errors import ConfigError
from coterie.routing import Assignment, Rows
from coterie.routing.balance import (
    CONVENTIONS,
    SCOPES,
    LoadBalance,
    expert_counts,
    importance_loss,
    load_balancing_loss,
    translate_coefficient,
    z_loss,
)


def routing(ids: list[list[int]], logits: torch.Tensor) -> Assignment:
    ids_TK = torch.tensor(ids, dtype=torch.int32)
    return Assignment(ids_TK, torch.ones(ids_TK.shape), logits, {})


def test_counts_leave_out_unused_slots_and_padding() -> None:
    r = routing([[0, 2], [2, -1], [1, 2]], torch.zeros(3, 4))
    assert expert_counts(r).tolist() == [1, 1, 3, 0]
    assert expert_counts(r, torch.tensor([True, True, False])).tolist() == [1, 0, 2, 0]


def test_balanced_routing_has_loss_one_whatever_k() -> None:
    assert load_balancing_loss(routing([[0, 1], [2, 3]], torch.zeros(2, 4))).item() == pytest.approx(1.0)
    assert load_balancing_loss(routing([[0], [1], [2], [3]], torch.zeros(4, 4))).item() == pytest.approx(1.0)


def test_collapsed_routing_has_loss_e_over_k() -> None:
    """All tokens to experts 0 and 1 of 8 with all the probability there: 8 · (½·½ + ½·½) = 4 = E/K."""
    logits = torch.full((5, 8), -100.0)
    logits[:, :2] = 0.0
    assert load_balancing_loss(routing([[0, 1]] * 5, logits)).item() == pytest.approx(4.0)


def test_padding_changes_nothing() -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 4)
    ids = logits.topk(2).indices.tolist()
    mask = torch.tensor([True] * 4 + [False] * 2)
    for loss in (load_balancing_loss, z_loss):
        whole = loss(routing(ids[:4], logits[:4]))
        assert loss(routing(ids, logits), mask).item() == pytest.approx(whole.item())


def test_gradient_pushes_the_busy_expert_down() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0]] * 4, requires_grad=True)
    load_balancing_loss(routing([[0]] * 4, logits)).backward()
    assert logits.grad is not None
    assert (logits.grad[:, 0] > 0).all() and (logits.grad[:, 1:] < 0).all()


def test_z_loss_of_equal_logits_is_the_squared_log_of_their_number() -> None:
    assert z_loss(routing([[0]], torch.zeros(1, 8))).item() == pytest.approx(math.log(8) ** 2)


def layer(n_tokens: int, seed: int, dtype: torch.dtype = torch.float64) -> Assignment:
    """A skewed layer of 4 experts: its own top 2."""
    logits = torch.randn(n_tokens, 4, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    logits = logits + torch.tensor([1.0, 0.0, 0.0, -1.0], dtype=dtype)
    return Assignment(logits.topk(2).indices.int(), logits.topk(2).values.softmax(-1), logits, {})


def rows_of(routing: Assignment, n_sequences: int) -> Rows:
    n_tokens = len(routing.ids_TK)
    return Rows(sequence_T=torch.arange(n_tokens) // (n_tokens // n_sequences))


def cut(routing: Assignment, start: int, stop: int) -> Assignment:
    return Assignment(routing.ids_TK[start:stop], routing.weights_TK[start:stop], routing.logits_TE[start:stop], {})


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_ideal_and_collapsed_values_of_every_scope(scope: str, top_k: int) -> None:
    """Even: 1 whatever K; K experts with everything: E/K."""
    even = [[(t + k) % 4 for k in range(top_k)] for t in range(8)]
    rows = Rows(sequence_T=torch.arange(8) // 4)
    assert LoadBalance(scope).losses([routing(even, torch.zeros(8, 4))], rows).item() == pytest.approx(1)
    logits = torch.full((8, 4), -100.0)
    logits[:, :top_k] = 0
    collapsed = LoadBalance(scope)
    assert collapsed.losses([routing([list(range(top_k))] * 8, logits)], rows).item() == pytest.approx(4 / top_k)
    assert collapsed.exact() == [pytest.approx(4 / top_k)]


@pytest.mark.parametrize("scope", SCOPES)
def test_padding_invariance_of_every_scope(scope: str) -> None:
    whole = layer(12, 0)
    padded = Assignment(*(torch.cat([t[:6], t[:3], t[6:], t[:3]]) for t in whole[:3]), {})
    mask_T = torch.tensor([True] * 6 + [False] * 3 + [True] * 6 + [False] * 3)
    a, b = LoadBalance(scope), LoadBalance(scope)
    plain = a.losses([whole], rows_of(whole, 2))
    same = b.losses([padded], Rows(sequence_T=torch.arange(18) // 9, mask_T=mask_T))
    assert same.item() == pytest.approx(plain.item(), rel=1e-6) and a.exact() == pytest.approx(b.exact())
    assert torch.equal(a.counts[0], b.counts[0])


def test_a_sequence_by_itself() -> None:
    """The mean over sequences of what each would have alone; the micro-batch as one is something else."""
    whole = layer(12, 0)
    alone = [load_balancing_loss(cut(whole, i, i + 4)).item() for i in (0, 4, 8)]
    found = LoadBalance("sequence").losses([whole], rows_of(whole, 3)).item()
    assert found == pytest.approx(sum(alone) / 3)
    assert found != pytest.approx(load_balancing_loss(whole).item(), abs=1e-3)


class SumOverThreads:
    """What a sum over ranks is, for ranks that are threads."""

    def __init__(self, n_ranks: int):
        self._barrier, self._given, self._rank = (
            threading.Barrier(n_ranks),
            [torch.empty(0)] * n_ranks,
            threading.local(),
        )

    def enter(self, rank: int) -> None:
        self._rank.number = rank

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        self._given[self._rank.number] = tensor
        self._barrier.wait(20)
        total = torch.stack(self._given).sum(0)
        self._barrier.wait(20)
        return total


def split_step(scope: str, n_ranks: int, n_micro: int) -> tuple[float, list[float], torch.Tensor, torch.Tensor]:
    """A step of 24 tokens in 12 sequences, cut so: its loss, the exact value, the counts, the gradient to logits."""
    whole, n_parts = layer(24, 1), n_ranks * n_micro
    add = SumOverThreads(n_ranks)

    def run(rank: int) -> tuple[float, list[float], torch.Tensor, torch.Tensor]:
        add.enter(rank)
        balance, total, gradient = LoadBalance(scope, add), 0.0, torch.zeros_like(whole.logits_TE)
        for micro in range(n_micro):
            start = (rank * n_micro + micro) * 24 // n_parts
            part = cut(whole, start, start + 24 // n_parts)
            logits = part.logits_TE.clone().requires_grad_()
            loss = balance.losses([part._replace(logits_TE=logits)], rows_of(part, 12 // n_parts)) / n_parts
            loss.backward()
            assert logits.grad is not None
            gradient[start : start + len(logits)] = logits.grad
            total += loss.item()
        return total, balance.exact(), balance.counts[0], gradient

    with ThreadPoolExecutor(n_ranks) as pool:
        found = list(pool.map(run, range(n_ranks)))
    return sum(f[0] for f in found), found[0][1], found[0][2], torch.stack([f[3] for f in found]).sum(0)


SPLITS = [(1, 2), (1, 4), (2, 1), (3, 1), (2, 2)]


@pytest.mark.parametrize(("n_ranks", "n_micro"), SPLITS)
def test_sequence_scope_is_the_same_however_a_step_is_cut(n_ranks: int, n_micro: int) -> None:
    value, exact, counts, gradient = split_step("sequence", 1, 1)
    value_cut, exact_cut, counts_cut, gradient_cut = split_step("sequence", n_ranks, n_micro)
    assert value_cut == pytest.approx(value) and exact_cut == pytest.approx(exact)
    torch.testing.assert_close(counts_cut, counts)
    torch.testing.assert_close(gradient_cut, gradient)


@pytest.mark.parametrize("n_ranks", [2, 3])
def test_global_scope_is_the_same_on_several_ranks(n_ranks: int) -> None:
    value, exact, counts, gradient = split_step("global", 1, 1)
    value_cut, exact_cut, counts_cut, gradient_cut = split_step("global", n_ranks, 1)
    assert value_cut == pytest.approx(value) and exact_cut == pytest.approx(exact)
    torch.testing.assert_close(counts_cut, counts)
    torch.testing.assert_close(gradient_cut, gradient)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize(("n_ranks", "n_micro"), SPLITS)
def test_the_exact_value_is_that_of_the_step_as_one(scope: str, n_ranks: int, n_micro: int) -> None:
    _, exact, counts, _ = split_step(scope, n_ranks, n_micro)
    whole = layer(24, 1)
    assert exact == [pytest.approx(load_balancing_loss(whole).item())]
    assert torch.equal(counts, expert_counts(whole))


def test_global_scope_uses_the_load_of_the_step_so_far() -> None:
    """The second micro-batch's loss has the counts of both and its own probabilities; the next step starts anew."""
    first, second = layer(8, 2), layer(8, 3)
    balance = LoadBalance("global")
    balance.losses([first], Rows())
    found = balance.losses([second], Rows())
    share = (expert_counts(first) + expert_counts(second)) / 32
    assert found.item() == pytest.approx((4 * (share * second.logits_TE.softmax(-1).mean(0)).sum()).item())
    balance.start_step()
    assert balance.losses([second], Rows()).item() == pytest.approx(load_balancing_loss(second).item())
    assert balance.exact() == [pytest.approx(load_balancing_loss(second).item())]


@pytest.mark.parametrize("scope", SCOPES)
def test_layers_count_alike_and_a_bad_one_shows(scope: str) -> None:
    """The mean over layers, not of all layers' tokens in one heap: a collapsed layer beside a good one is seen."""
    layers = [layer(12, seed) for seed in (4, 5, 6)]
    rows = rows_of(layers[0], 2)
    each = [LoadBalance(scope).losses([r], rows).item() for r in layers]
    balance = LoadBalance(scope)
    assert balance.losses(layers, rows).item() == pytest.approx(sum(each) / 3)
    assert len(balance.exact()) == len(balance.counts) == 3


def test_a_model_without_sparse_layers_and_a_batch_of_padding() -> None:
    assert LoadBalance("global").losses([], Rows()).item() == 0 and LoadBalance("micro").exact() == []
    r = layer(6, 0)
    for scope in SCOPES:
        balance = LoadBalance(scope)
        nothing = Rows(sequence_T=torch.zeros(6, dtype=torch.int64), mask_T=torch.zeros(6, dtype=torch.bool))
        assert balance.losses([r], nothing).item() == 0 and balance.exact() == [0]
    mask_T = torch.zeros(6, dtype=torch.bool)
    assert load_balancing_loss(r, mask_T).item() == z_loss(r, mask_T).item() == 0


def test_importance_of_even_weights_is_zero_and_of_one_expert_e_minus_1() -> None:
    assert importance_loss(routing([[0, 1], [2, 3]], torch.zeros(2, 4))).item() == pytest.approx(0, abs=1e-6)
    assert importance_loss(routing([[2], [2]], torch.zeros(2, 4))).item() == pytest.approx(3)


@pytest.mark.parametrize(("top_k", "n_layers"), [(2, 1), (2, 3)])
def test_a_coefficient_of_transformers_pushes_as_hard_as_there(top_k: int, n_layers: int) -> None:
    """Against transformers' own loss, on layers that are alike: it takes them in one heap."""
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    r = layer(40, 7, torch.float32)
    theirs = 0.02 * load_balancing_loss_func((r.logits_TE,) * n_layers, 4, top_k)
    coefficient = translate_coefficient(0.02, "transformers", top_k, n_layers)
    ours = coefficient * LoadBalance("micro").losses([r] * n_layers, Rows())
    assert ours.item() == pytest.approx(float(theirs), rel=1e-5)


def test_conventions() -> None:
    """Of 0.01 with 2 experts a token and 32 layers: K times, as it is, or once for each layer of a sum."""
    found = {name: translate_coefficient(0.01, name, 2, 32) for name in ("coterie", *CONVENTIONS)}
    assert found == {
        "coterie": 0.01, "transformers": 0.02, "megablocks": 0.01, "switch": 0.32, "megatron": 0.32, "deepspeed": 0.32,
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"'megatrn' .* did you mean 'megatron'"):
        translate_coefficient(0.01, "megatrn", 2, 32)
    with pytest.raises(ConfigError, match="scope of balance is 'batch', expected one of sequence, micro, global"):
        LoadBalance("batch")

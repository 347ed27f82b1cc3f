import torch

from coterie.routing.adaptive_mixture import competitive_loss, cooperative_loss, likelihood_loss, posterior


def case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits, outputs, target = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((5, 3), (5, 3, 2), (5, 2))
    )
    return logits.requires_grad_(), outputs.requires_grad_(), target


def test_the_gradient_of_the_likelihood_is_weighed_by_the_posterior() -> None:
    """dE/do_i = -h_i (d - o_i) and dE/ds_i = p_i - h_i, the claim of the paper."""
    logits_TE, outputs_TED, target_TD = case()
    likelihood_loss(logits_TE, outputs_TED, target_TD).sum().backward()
    h_TE = posterior(logits_TE, outputs_TED, target_TD).detach()
    torch.testing.assert_close(outputs_TED.grad, -h_TE[..., None] * (target_TD[:, None] - outputs_TED.detach()))
    torch.testing.assert_close(logits_TE.grad, logits_TE.detach().softmax(-1) - h_TE)


def test_gradients() -> None:
    for loss in (cooperative_loss, competitive_loss, likelihood_loss):
        assert torch.autograd.gradcheck(loss, case())


def test_the_competitive_gradient_is_weighed_by_the_prior() -> None:
    """What the likelihood improves on: dE/do_i = -2 p_i (d - o_i), whoever explains the case best."""
    logits_TE, outputs_TED, target_TD = case()
    competitive_loss(logits_TE, outputs_TED, target_TD).sum().backward()
    p_TE = logits_TE.detach().softmax(-1)
    torch.testing.assert_close(outputs_TED.grad, -2 * p_TE[..., None] * (target_TD[:, None] - outputs_TED.detach()))


def test_far_targets_stay_finite() -> None:
    loss = likelihood_loss(torch.zeros(1, 2), torch.zeros(1, 2, 3), torch.full((1, 3), 1e3))
    assert loss.isfinite().all()


def test_experts_specialise_on_a_planted_mixture() -> None:
    """Two experts that are a constant each, targets of two clusters: each takes one."""
    target_TD = torch.cat([torch.full((20, 1), -2.0), torch.full((20, 1), 2.0)]).double()
    outputs_ED = torch.tensor([[-0.1], [0.1]], dtype=torch.float64, requires_grad=True)
    for _ in range(200):
        likelihood_loss(torch.zeros(40, 2).double(), outputs_ED.expand(40, 2, 1), target_TD).mean().backward()
        with torch.no_grad():
            outputs_ED -= 0.5 * outputs_ED.grad
        outputs_ED.grad = None
    torch.testing.assert_close(outputs_ED.detach(), torch.tensor([[-2.0], [2.0]]).double(), rtol=0, atol=0.01)

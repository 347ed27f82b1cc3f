"""The adaptive mixture of local experts (Jacobs, Jordan, Nowlan, Hinton, Neural Computation 3, 1991) as a special case.

Its gate is the router "dense"; what made experts specialise is its loss. Where y = Σ p·o is compared with the target
(`cooperative_loss`), an expert's gradient depends on what the others leave over, and all work on every case. In
`likelihood_loss` each expert answers for the whole target, and its gradient is weighed by the posterior h_i, the share
it had in explaining this case: dE/do_i = -h_i (d - o_i), and dE/ds_i = p_i - h_i for the gate's logits s.
Shapes: T cases, E experts, D numbers of a target.
"""

from torch import Tensor

__all__ = ["competitive_loss", "cooperative_loss", "likelihood_loss", "posterior"]


def cooperative_loss(logits_TE: Tensor, outputs_TED: Tensor, target_TD: Tensor) -> Tensor:
    """|d - Σ p_i o_i|² of each case (the paper's equation 1): [T]."""
    mixed_TD = (logits_TE.softmax(-1).unsqueeze(-1) * outputs_TED).sum(1)
    return (target_TD - mixed_TD).square().sum(-1)


def competitive_loss(logits_TE: Tensor, outputs_TED: Tensor, target_TD: Tensor) -> Tensor:
    """Σ p_i |d - o_i|² of each case (equation 2): [T]."""
    return (logits_TE.softmax(-1) * _distance(outputs_TED, target_TD)).sum(-1)


def likelihood_loss(logits_TE: Tensor, outputs_TED: Tensor, target_TD: Tensor) -> Tensor:
    """-log Σ p_i exp(-|d - o_i|² / 2) of each case (equation 3): [T]."""
    return -(logits_TE.log_softmax(-1) - _distance(outputs_TED, target_TD) / 2).logsumexp(-1)


def posterior(logits_TE: Tensor, outputs_TED: Tensor, target_TD: Tensor) -> Tensor:
    """h_i = p_i e_i / Σ p_j e_j with e_i = exp(-|d - o_i|² / 2): how likely each expert made the target, [T, E]."""
    return (logits_TE.log_softmax(-1) - _distance(outputs_TED, target_TD) / 2).softmax(-1)


def _distance(outputs_TED: Tensor, target_TD: Tensor) -> Tensor:
    return (target_TD.unsqueeze(1) - outputs_TED).square().sum(-1)

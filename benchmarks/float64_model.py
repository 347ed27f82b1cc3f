"""A sparse decoder in float64, written out: what the logits of a file's weights would be without any rounding.

Shapes: T tokens, V vocabulary, D width, F expert width, H heads, G key/value heads, P head width, E experts, K chosen.
"""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention, silu

import coterie

__all__ = ["Float64Model"]


class Float64Model:
    """`model(ids)` -> logits [T, V] and the narrowest choice [T]: over the layers, the least difference between the
    logit of the last chosen expert and of the first that is not."""

    def __init__(self, path: Path):
        model = coterie.load(path, device="cpu", dtype="float32").model
        self.config = model.config
        self.weights = {name: tensor.double() for name, tensor in model.tensors().items()}

    @torch.inference_mode()
    def __call__(self, ids: list[int]) -> tuple[Tensor, Tensor]:
        w, c = self.weights, self.config
        x_TD = w["embed"][torch.tensor(ids)]
        margin_T = torch.full((len(ids),), torch.inf, dtype=torch.float64)
        for i in range(c.num_hidden_layers):
            at = f"layers.{i}"
            x_TD = x_TD + self._attention(self._norm(x_TD, w[f"{at}.attention_norm"]), f"{at}.attention")
            y_TD, layer_margin_T = self._moe(self._norm(x_TD, w[f"{at}.moe_norm"]), f"{at}.moe")
            x_TD, margin_T = x_TD + y_TD, torch.minimum(margin_T, layer_margin_T)
        return self._norm(x_TD, w["norm"]) @ w.get("head", w["embed"]).T, margin_T

    def _norm(self, x_TD: Tensor, weight_D: Tensor) -> Tensor:
        return x_TD * (x_TD.square().mean(-1, keepdim=True) + self.config.rms_norm_eps).rsqrt() * weight_D

    def _attention(self, x_TD: Tensor, at: str) -> Tensor:
        w, c, T = self.weights, self.config, len(x_TD)
        q, k, v = ((x_TD @ w[f"{at}.{name}"].T).view(T, -1, c.head_dim).transpose(0, 1) for name in "qkv")
        half = torch.arange(0, c.head_dim, 2, dtype=torch.float64) / c.head_dim
        angle_TP = (torch.arange(T, dtype=torch.float64)[:, None] * c.rope_theta**-half).repeat(1, 2)

        def turned(x_HTP: Tensor) -> Tensor:
            a, b = x_HTP.chunk(2, -1)
            return x_HTP * angle_TP.cos() + torch.cat((-b, a), -1) * angle_TP.sin()

        k, v = (t.repeat_interleave(len(q) // len(t), 0) for t in (turned(k), v))
        y_HTP = scaled_dot_product_attention(turned(q), k, v, is_causal=True)
        return y_HTP.transpose(0, 1).reshape(T, -1) @ w[f"{at}.o"].T

    def _moe(self, x_TD: Tensor, at: str) -> tuple[Tensor, Tensor]:
        w, K = self.weights, self.config.num_experts_per_tok
        logits_TE = x_TD @ w[f"{at}.router"].T
        sorted_TE, order_TE = logits_TE.sort(-1, descending=True)
        weights_TK = sorted_TE[:, :K].softmax(-1)
        y_TD = torch.zeros_like(x_TD)
        for e in range(logits_TE.shape[1]):
            rows, slots = (order_TE[:, :K] == e).nonzero(as_tuple=True)
            gate, up = (x_TD[rows] @ w[f"{at}.experts.gate_up"][e].T).chunk(2, -1)
            y_TD[rows] += weights_TK[rows, slots, None] * ((silu(gate) * up) @ w[f"{at}.experts.down"][e].T)
        if logits_TE.shape[1] == K:
            return y_TD, torch.full_like(sorted_TE[:, 0], torch.inf)
        return y_TD, sorted_TE[:, K - 1] - sorted_TE[:, K]

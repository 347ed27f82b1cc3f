"""Several dense models of one shape into one sparse model: each brings an expert, routers are made from prompts.

No training: the cheap merge of frankenstein experts that mergekit made popular, with the shared weights averaged as in
branch-train-mix (arXiv 2403.07816) or taken from the first model. A model's prompts are texts of the kind that its
expert is for. They go through the merged model layer by layer, each through its own expert, as they would with routers
that were right; what the router of a layer sees of them is averaged over the tokens (all but BOS).

The row of expert e is what sets it apart: mean of its own prompts minus mean of all, without the part along the mean of
all (so that what tokens have in common decides nothing), length 1. All rows of a layer get one factor, such that a
token of the right kind leads by `_LEAD` on average. Where prompts are too much alike there is nothing to set an expert
apart: `PromptRouters.degenerate` names the layers in which an expert's own tokens hardly find it.

Shapes: D model width, E experts (models), T tokens of an expert's prompts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from coterie.config import ModelConfig
from coterie.errors import RecipeError
from coterie.kernels import rms_norm, rotary_tables
from coterie.model import Transformer
from coterie.model.attention import WholeSequences
from coterie.train.upcycle import Upcycling, sparse_config

__all__ = ["PromptRouters", "Tensors", "embedding_routers", "merge", "merged_config", "prompt_routers"]

_LEAD = 4.0  # of the right expert's logit: e^4 : 1 for two of them
_HARDLY = 1.25  # times the share that chance gives
Tensors = Callable[[str], Tensor]  # a tensor by canonical name
Prompts = Sequence[Sequence[Sequence[int]]]  # token ids of each prompt of each model


@dataclass(frozen=True)
class PromptRouters:
    """`rows_ED` by layer; `shares` by layer and expert: how many of its own tokens have the expert as their first."""

    rows_ED: list[Tensor]
    shares: list[list[float]]

    @property
    def degenerate(self) -> list[int]:
        """The layers where an expert gets little more of its own tokens than of any."""
        n_experts = len(self.shares[0])
        return [at for at, shares in enumerate(self.shares) if min(shares) <= _HARDLY / n_experts]


def merged_config(
    dense: Sequence[ModelConfig], names: Sequence[str], fields: dict[str, Any], *, where: str
) -> ModelConfig:
    """The sparse configuration of models that agree; `RecipeError` names the first one and field that do not."""
    first = dense[0]
    ignored = ("torch_dtype", "bos_token_id", "eos_token_id", "max_position_embeddings")
    for config, name in zip(dense, names, strict=True):
        if config.is_sparse:
            raise RecipeError(f"{where}: {name} is sparse already, expected dense models to merge")
        for key, value in config.to_fields().items():
            wanted = first.to_fields()[key]
            if key not in ignored and value != wanted:
                raise RecipeError(
                    f"{where}: {name} has {key} {value!r} and {names[0]} {wanted!r}; only models of one shape merge"
                )
    n = fields.get("num_local_experts", len(dense))
    if n != len(dense) or len(dense) < 2:
        raise RecipeError(
            f"{where}: {len(dense)} models to merge make as many experts, expected two or more and [model] "
            f"num_local_experts the same (it is {n!r})"
        )
    return sparse_config(first, {"num_local_experts": n, **fields}, Upcycling(), where=where)


def merge(models: Sequence[Tensors], shared: str, rows_ED: Sequence[Tensor]) -> Tensors:
    """The tensors of the merged model by canonical name, made when they are asked for."""

    def tensor(name: str) -> Tensor:
        layer, _, part = name.partition(".moe.")
        if part == "router":
            return rows_ED[int(layer.removeprefix("layers."))]
        if part:
            at = f"{layer}.feed_forward"
            parts = ("down",) if part == "experts.down" else ("gate", "up")
            return torch.stack([torch.cat([model(f"{at}.{p}") for p in parts]) for model in models])
        return _shared(models, shared, name)

    return tensor


def _shared(models: Sequence[Tensors], how: str, name: str) -> Tensor:
    first = models[0](name)
    if how == "first":
        return first
    total = first.float()
    for model in models[1:]:
        total = total + model(name).float()
    return (total / len(models)).to(first.dtype)


@torch.no_grad()
def prompt_routers(models: Sequence[Tensors], config: ModelConfig, shared: str, prompts: Prompts) -> PromptRouters:
    """Rows from the hidden states of the prompts; `config` is a dense model's. One layer in memory at a time."""
    embed = _shared(models, shared, "embed").float()
    hidden = [[functional.embedding(torch.tensor(list(ids)), embed) for ids in mine] for mine in prompts]
    found = PromptRouters([], [])
    one = Transformer(
        replace(config, num_hidden_layers=1, vocab_size=1, bos_token_id=None, eos_token_id=None), torch.float32
    ).eval()
    tensors = {name: t for name, t in one.tensors().items() if name.startswith("layers.0.")}
    for layer in range(config.num_hidden_layers):
        for name in tensors.keys() - _FEED_FORWARD:
            tensors[name].copy_(_shared(models, shared, _at(name, layer)))
        seen = []
        for e, model in enumerate(models):
            for name in _FEED_FORWARD:
                tensors[name].copy_(model(_at(name, layer)))
            passed = [_through(one, x_SD) for x_SD in hidden[e]]
            hidden[e] = [y_SD for y_SD, _ in passed]
            seen.append(torch.cat([normed_SD[1:] for _, normed_SD in passed]))
        _add(found, seen)
    return found


_FEED_FORWARD = frozenset(f"layers.0.feed_forward.{part}" for part in ("gate", "up", "down"))


def _at(name: str, layer: int) -> str:
    return name.replace("layers.0.", f"layers.{layer}.", 1)


@torch.no_grad()
def embedding_routers(models: Sequence[Tensors], config: ModelConfig, shared: str, prompts: Prompts) -> PromptRouters:
    """The same from the embeddings of the prompts' tokens alone, normed as each layer does: no model is run."""
    embed = _shared(models, shared, "embed").float()
    tokens = [functional.embedding(torch.tensor([i for ids in mine for i in ids[1:]]), embed) for mine in prompts]
    found = PromptRouters([], [])
    for layer in range(config.num_hidden_layers):
        norm_D = _shared(models, shared, f"layers.{layer}.moe_norm").float()
        _add(found, [rms_norm(x_TD, norm_D, config.rms_norm_eps) for x_TD in tokens])
    return found


def _through(one: Transformer, x_SD: Tensor) -> tuple[Tensor, Tensor]:
    """A prompt after the layer, and what the layer's router would see of it."""
    c = one.config
    attention, norm, feed_forward = (
        one.get_submodule(f"layers.0.{name}") for name in ("attention", "feed_forward.gate_up.norm", "feed_forward")
    )
    rotary = rotary_tables(torch.arange(len(x_SD)), c.head_dim, c.rope_theta, x_SD.dtype)
    between_SD = x_SD + attention(x_SD, rotary, WholeSequences(1, c.sliding_window))
    return between_SD + feed_forward(between_SD), norm(between_SD)


def _add(found: PromptRouters, seen: Sequence[Tensor]) -> None:
    """The rows of a layer that saw these tokens [T, D] of each expert, and how many of them find their own."""
    mean_ED = torch.stack([x_TD.mean(0) for x_TD in seen])
    common_D = functional.normalize(mean_ED.mean(0), dim=0)
    apart_ED = mean_ED - mean_ED.mean(0)
    rows_ED = functional.normalize(apart_ED - (apart_ED @ common_D)[:, None] * common_D, dim=1)
    logits = [x_TD @ rows_ED.T for x_TD in seen]
    lead = sum(float(_lead(of_own, e)) for e, of_own in enumerate(logits)) / len(logits)
    found.rows_ED.append(rows_ED * (_LEAD / lead if lead > 1e-6 else 0.0))
    found.shares.append([float((of_own.argmax(1) == e).float().mean()) for e, of_own in enumerate(logits)])


def _lead(logits_TE: Tensor, own: int) -> Tensor:
    """How far the logit of the right expert is above the mean of the others."""
    others = logits_TE.sum(1) - logits_TE[:, own]
    return (logits_TE[:, own] - others / max(1, logits_TE.shape[1] - 1)).mean()

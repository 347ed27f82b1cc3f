"""Models with every router: they train, they are written and read, they decode what they read as a whole."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import coterie
from coterie.checkpoint.convert import convert
from coterie.checkpoint.huggingface import config_to_json, save_huggingface
from coterie.errors import ConfigError, RequestError
from coterie.model import Transformer
from coterie.model.attention import WholeSequences
from coterie.router_config import ROUTER_KINDS, RouterConfig
from coterie.routing import Rows
from coterie.routing.balance import LoadBalance, z_loss

IDS = torch.arange(1, 13)
DECODING = [kind for kind in ROUTER_KINDS if RouterConfig(kind=kind).can_decode]
LOOKING_AHEAD = ["expert_choice", "soft"]


@pytest.fixture
def make_routed(make_model: Callable[..., Transformer]) -> Callable[..., Transformer]:
    """A random model of 2 layers and 4 experts with the router of a kind, buffers included."""

    def make(kind: str, **options: Any) -> Transformer:
        router = RouterConfig(kind=kind, **options)
        model = make_model(
            num_hidden_layers=2, num_local_experts=4, num_experts_per_tok=router.top_k_for(4, 2), router=router
        )
        generator = torch.Generator().manual_seed(4)
        for name, tensor in model.tensors().items():
            if ".moe.router" in name:
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
        return model

    return make


def whole_pass(model: Transformer, rows: Rows | None = None) -> tuple[torch.Tensor, list[Any]]:
    output = model(IDS, torch.arange(12), WholeSequences(1, None), rows)
    return model.head(output.hidden_TD), output.routings


@pytest.mark.parametrize("kind", ROUTER_KINDS)
def test_gradients_reach_every_parameter(kind: str, make_routed: Callable) -> None:
    model = make_routed(kind).train().requires_grad_()
    rows = Rows(sequence_T=IDS // 7, generator=torch.Generator().manual_seed(0))
    with torch.enable_grad():
        logits, routings = whole_pass(model, rows)
        loss = logits.logsumexp(-1).mean() + LoadBalance("global").losses(routings, rows)
        (loss + torch.stack([z_loss(r) for r in routings]).mean()).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.abs().max() > 0, name


@pytest.mark.parametrize("kind", ROUTER_KINDS)
def test_a_folder_gives_the_same_model_back(kind: str, make_routed: Callable, tmp_path: Path) -> None:
    """Through save, load and a conversion, bit by bit, with a type that other programs do not take for Mixtral."""
    model = make_routed(kind).eval()
    save_huggingface(tmp_path / "a", model.config, model.tensors(), dtype="float32")
    convert(tmp_path / "a", tmp_path / "b", to="huggingface")
    values = config_to_json(model.config)
    assert values["model_type"] == ("mixtral" if kind == "topk" else "coterie")
    assert ("router" in values) is not model.config.router.is_plain
    for folder in ("a", "b"):
        again = coterie.load(tmp_path / folder)
        assert again.config.router == model.config.router and again.config == model.config
        for name, tensor in model.tensors().items():
            assert torch.equal(again.model.tensors()[name], tensor), name


def test_a_routers_own_numbers_stay_float32(make_routed: Callable, tmp_path: Path) -> None:
    model = make_routed("sigmoid_bias")
    save_huggingface(tmp_path / "a", model.config, model.tensors(), dtype="bfloat16")
    convert(tmp_path / "a", tmp_path / "b", to="huggingface", type="f16")
    for folder in ("a", "b"):
        tensors = coterie.load(tmp_path / folder).model.tensors()
        assert torch.equal(tensors["layers.1.moe.router.bias"], model.tensors()["layers.1.moe.router.bias"])


@pytest.mark.parametrize("kind", DECODING)
def test_what_is_decoded_is_what_a_whole_pass_says(kind: str, make_routed: Callable) -> None:
    lm = coterie.LanguageModel(make_routed(kind).eval())
    found = lm.generate(IDS.tolist(), max_tokens=6, routing=True)
    ids = [*IDS.tolist(), *found.token_ids]
    logits = lm.logits(ids)
    assert logits[11:-1].argmax(-1).tolist() == list(found.token_ids)
    assert torch.equal(lm.route(ids).experts[12:], found.routing.experts)


@pytest.mark.parametrize("kind", LOOKING_AHEAD)
def test_routers_that_look_ahead_read_but_do_not_write(kind: str, make_routed: Callable, tmp_path: Path) -> None:
    model = make_routed(kind).eval()
    lm = coterie.LanguageModel(model)
    with torch.inference_mode():
        torch.testing.assert_close(lm.logits(IDS.tolist()), whole_pass(model)[0])
    ids = IDS.tolist()
    trace = lm.route(ids)
    assert trace.experts.shape == trace.weights.shape and trace.experts.shape[:2] == (12, 2)
    for ask in (
        lambda: lm.generate(ids, max_tokens=2),
        lambda: lm.generate_many([ids], max_tokens=2),
        lambda: lm.stream(ids, max_tokens=2),
        lambda: lm.score(ids, [[1, 2]]),
    ):
        with pytest.raises(
            RequestError, match=f"the router '{kind}' of this model chooses experts by looking at later"
        ):
            ask()


@pytest.mark.parametrize("to", ["mistral", "gguf", "packed"])
def test_formats_without_a_word_for_a_router_are_not_written(to: str, make_routed: Callable, tmp_path: Path) -> None:
    model = make_routed("switch")
    save_huggingface(tmp_path / "a", model.config, model.tensors(), dtype="float32")
    target = tmp_path / ("b.gguf" if to == "gguf" else "b")
    with pytest.raises(RequestError, match=r"has the router 'switch', and .* hold only models with Mixtral's own"):
        convert(tmp_path / "a", target, to=to, type="int8" if to == "packed" else None)
    assert not target.exists()
    with pytest.raises(RequestError, match="packed weights hold only models with Mixtral's own"):
        coterie.load(tmp_path / "a", quantize="int8")


def test_a_mixtral_config_with_a_router_is_refused(make_routed: Callable) -> None:
    from coterie.checkpoint.huggingface import config_from_json

    values = config_to_json(make_routed("switch").config) | {"model_type": "mixtral", "architectures": None}
    with pytest.raises(ConfigError, match="router is given, which only the model_type 'coterie' has"):
        config_from_json(values, "config.json")

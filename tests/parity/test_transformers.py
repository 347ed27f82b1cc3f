"""The authority on what a Mixtral or a Mistral computes is transformers: tiny random models, float32, the same weights.

Three things are compared: logits (1e-5), greedy text (200 tokens, identical), and the cache after feeding a prompt in
chunks of any size (1e-5; the last bits of a matrix product depend on how many rows it has).
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from coterie.config import ModelConfig
from coterie.engine import Engine, Request, SamplingParams
from coterie.engine.runner import Runner
from coterie.model import Transformer

transformers = pytest.importorskip("transformers")

SHAPE = dict(
    vocab_size=97,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    rms_norm_eps=1e-5,
    bos_token_id=1,
    eos_token_id=None,
)
FAMILIES = {
    "mixtral": dict(num_local_experts=4, num_experts_per_tok=2),
    "mixtral-top3-of-5": dict(num_local_experts=5, num_experts_per_tok=3),
    "mixtral-window": dict(num_local_experts=4, num_experts_per_tok=2, sliding_window=7),
    "mixtral-tied": dict(num_local_experts=4, num_experts_per_tok=2, tie_word_embeddings=True),
    "mistral": dict(sliding_window=None),
    "mistral-window": dict(sliding_window=7),
    "mistral-head-dim": dict(sliding_window=None, head_dim=16),
    "llama": dict(),
}


def authority(family: str, seed: int = 0) -> Any:
    """A random model of transformers. Weights are large enough for routing and attention to be far from uniform."""
    kind = family.partition("-")[0]
    names = {"mixtral": "Mixtral", "mistral": "Mistral", "llama": "Llama"}
    config = getattr(transformers, names[kind] + "Config")(
        **SHAPE,
        **FAMILIES[family],
        attn_implementation="eager",
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    )
    torch.manual_seed(seed)
    model = getattr(transformers, names[kind] + "ForCausalLM")(config).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, mean=1.0 if p.ndim == 1 else 0.0, std=0.15)
    model.tie_weights()
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = None
    return model


def ours(theirs: Any, family: str) -> Transformer:
    """A coterie model with the same weights, copied by name."""
    extra = {"num_local_experts": None, "rope_theta": 1e4, "torch_dtype": "float32", **SHAPE, **FAMILIES[family]}
    config = ModelConfig(**extra)
    model = Transformer(config, torch.float32)
    state = theirs.state_dict()
    for name, tensor in model.tensors().items():
        tensor.copy_(state[_theirs(name)])
    return model


def _theirs(name: str) -> str:
    """Our name of a tensor -> transformers 5's."""
    tops = {"embed": "model.embed_tokens.weight", "norm": "model.norm.weight", "head": "lm_head.weight"}
    if name in tops:
        return tops[name]
    _, layer, rest = name.split(".", 2)
    parts = {
        "attention_norm": "input_layernorm.weight",
        "moe_norm": "post_attention_layernorm.weight",
        "moe.router": "mlp.gate.weight",
        "moe.experts.gate_up": "mlp.experts.gate_up_proj",
        "moe.experts.down": "mlp.experts.down_proj",
    }
    for p in "qkvo":
        parts[f"attention.{p}"] = f"self_attn.{p}_proj.weight"
    for p in ("gate", "up", "down"):
        parts[f"feed_forward.{p}"] = f"mlp.{p}_proj.weight"
    return f"model.layers.{layer}.{parts[rest]}"


def logits_of(model: Transformer, ids: list[int], chunk: int | None = None) -> torch.Tensor:
    runner = Runner(model)
    step = chunk or len(ids)
    outs = [runner.feed([(0, ids[i : i + step])]) for i in range(0, len(ids), step)]
    return torch.cat([runner.logits(o.hidden_TD) for o in outs])


def random_ids(n: int, seed: int = 0) -> list[int]:
    return torch.randint(0, SHAPE["vocab_size"], (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def greedy(model: Transformer, prompts: list[list[int]], n: int) -> list[list[int]]:
    texts: list[list[int]] = [[] for _ in prompts]
    requests = [Request(tuple(p), SamplingParams(max_tokens=n)) for p in prompts]
    for event in Engine(model).run(requests):
        assert event.token_id is not None
        texts[event.request].append(event.token_id)
    return texts


@pytest.mark.parametrize("family", FAMILIES)
def test_logits(family: str) -> None:
    theirs = authority(family)
    model, ids = ours(theirs, family), random_ids(60)
    with torch.inference_mode():
        expected = theirs(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(logits_of(model, ids), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_text_of_200_tokens(family: str) -> None:
    theirs = authority(family, seed=1)
    model, ids = ours(theirs, family), random_ids(11, seed=1)
    with torch.inference_mode():
        text = theirs.generate(
            torch.tensor([ids]), max_new_tokens=200, do_sample=False, attention_mask=torch.ones(1, 11)
        )
    assert greedy(model, [ids], 200) == [text[0, 11:].tolist()]


@pytest.mark.parametrize("family", ["mixtral", "mixtral-window", "mistral-window"])
def test_ragged_prompts_decoded_together(family: str) -> None:
    theirs = authority(family, seed=2)
    model, prompts = ours(theirs, family), [random_ids(n, seed=n) for n in (1, 19, 6, 7, 40)]
    expected = []
    for ids in prompts:
        with torch.inference_mode():
            text = theirs.generate(
                torch.tensor([ids]), max_new_tokens=60, do_sample=False, attention_mask=torch.ones(1, len(ids))
            )
        expected.append(text[0, len(ids) :].tolist())
    assert greedy(model, prompts, 60) == expected


@pytest.mark.parametrize("family", ["mixtral", "mixtral-window", "mistral-window"])
@pytest.mark.parametrize("chunk", [1, 2, 3, 6, 7, 8, 25, 59])
def test_a_prompt_in_chunks_is_the_prompt_at_once(family: str, chunk: int) -> None:
    theirs = authority(family)
    model, ids = ours(theirs, family), random_ids(60)
    at_once, in_chunks = Runner(model), Runner(model)
    whole = at_once.logits(at_once.feed([(0, ids)]).hidden_TD)
    parts = [in_chunks.feed([(0, ids[i : i + chunk])]) for i in range(0, 60, chunk)]
    chunked = torch.cat([in_chunks.logits(o.hidden_TD) for o in parts])
    torch.testing.assert_close(chunked, whole, atol=1e-5, rtol=0)
    for layer in range(SHAPE["num_hidden_layers"]):
        for a, b in zip(at_once.cache.held(layer, 0), in_chunks.cache.held(layer, 0), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["mixtral", "mixtral-window", "mixtral-tied", "mistral-head-dim", "llama"])
def test_a_folder_that_transformers_wrote(family: str, tmp_path: Path) -> None:
    from coterie.checkpoint.load import load_model

    theirs, ids = authority(family, seed=4), random_ids(40, seed=4)
    theirs.save_pretrained(tmp_path)
    model = load_model(tmp_path, dtype="float32", device="cpu")
    with torch.inference_mode():
        expected = theirs(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(logits_of(model, ids), expected, atol=1e-5, rtol=0)

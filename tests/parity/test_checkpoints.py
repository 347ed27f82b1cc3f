"""Checkpoints against transformers: what it writes we read, what we write it reads, tensor for tensor."""

import json

import pytest
import torch

from coterie.checkpoint.convert import convert
from coterie.checkpoint.folder import open_checkpoint
from coterie.checkpoint.huggingface import config_from_json, read_config, save_huggingface
from coterie.checkpoint.load import load_model
from coterie.config import ModelConfig
from coterie.model import Transformer

transformers = pytest.importorskip("transformers", reason="the oracle: pip install transformers")

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
MODELS = {
    "mixtral": lambda **more: transformers.MixtralConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=2, **more),
    "mistral": lambda **more: transformers.MistralConfig(**SHAPE, sliding_window=8, **more),
    "llama": lambda **more: transformers.LlamaConfig(**SHAPE, **more),
}


def random_model(kind: str, **more):
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(MODELS[kind](**more)).eval()


def canonical(model) -> dict[str, torch.Tensor]:
    """transformers' own parameters under our names, written out by hand."""
    base, named = model.model, {}
    named["embed"], named["norm"] = base.embed_tokens.weight, base.norm.weight
    if not model.config.tie_word_embeddings:
        named["head"] = model.lm_head.weight
    for i, layer in enumerate(base.layers):
        at = f"layers.{i}"
        named |= {f"{at}.attention.{x}": getattr(layer.self_attn, f"{x}_proj").weight for x in "qkvo"}
        named[f"{at}.attention_norm"] = layer.input_layernorm.weight
        named[f"{at}.moe_norm"] = layer.post_attention_layernorm.weight
        if model.config.model_type == "mixtral":
            named[f"{at}.moe.router"] = layer.mlp.gate.weight
            named[f"{at}.moe.experts.gate_up"] = layer.mlp.experts.gate_up_proj
            named[f"{at}.moe.experts.down"] = layer.mlp.experts.down_proj
        else:
            named |= {f"{at}.feed_forward.{x}": getattr(layer.mlp, f"{x}_proj").weight for x in ("gate", "up", "down")}
    return named


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", MODELS)
def test_what_transformers_writes_we_read(kind, tied, tmp_path):
    model = random_model(kind, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path, dtype="float32", device="cpu")
    assert_same(loaded.tensors(), canonical(model))
    assert loaded.config.rms_norm_eps == model.config.rms_norm_eps
    assert loaded.config.rope_theta == model.config.rope_parameters["rope_theta"]
    assert loaded.config.sliding_window == getattr(model.config, "sliding_window", None)


@pytest.mark.parametrize("shard", ["5GB", "10KB"])
def test_the_fused_names_of_version_5_are_read_sharded_or_not(shard, tmp_path):
    model = random_model("mixtral")
    model.save_pretrained(tmp_path, save_original_format=False, max_shard_size=shard)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.naming == "huggingface_fused"
    assert (len(checkpoint.files) > 1) == (shard == "10KB")
    assert_same(load_model(tmp_path, dtype="float32", device="cpu").tensors(), canonical(model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", MODELS)
def test_what_we_write_transformers_reads(kind, dtype, tmp_path):
    random_model(kind).save_pretrained(tmp_path / "theirs")
    config = read_config(tmp_path / "theirs")
    ours = Transformer(config, dtype)
    generator = torch.Generator().manual_seed(1)
    tensors = {n: torch.randn(t.shape, generator=generator).to(dtype) for n, t in ours.tensors().items()}
    save_huggingface(tmp_path / "ours", config, tensors, dtype=str(dtype).removeprefix("torch."))
    found, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", dtype="auto", output_loading_info=True
    )
    assert not any(report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert found.dtype == dtype
    assert_same(canonical(found), tensors)
    original = MODELS[kind]()
    for key in (*SHAPE, "rms_norm_eps", "rope_parameters", "sliding_window", "num_experts_per_tok", "eos_token_id"):
        assert getattr(found.config, key, None) == getattr(original, key, None), key
    assert found.generation_config.eos_token_id == 2


def test_a_round_trip_through_mistrals_format_ends_where_transformers_began(tmp_path):
    model = random_model("mixtral")
    model.save_pretrained(tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "mistral", to="mistral")
    convert(tmp_path / "mistral", tmp_path / "back", to="huggingface")
    found = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    assert_same(canonical(found), canonical(model))
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(found(ids).logits, model(ids).logits)


@pytest.mark.parametrize("kind", MODELS)
def test_what_a_missing_key_means_is_what_transformers_says(kind):
    shape = {k: v for k, v in SHAPE.items() if k not in ("num_key_value_heads", "max_position_embeddings")}
    shape |= {"num_attention_heads": 8}
    ours = config_from_json({**shape, "model_type": kind}, "config.json")
    theirs = type(MODELS[kind]())(**shape)
    for key in (
        "num_key_value_heads",
        "max_position_embeddings",
        "rms_norm_eps",
        "tie_word_embeddings",
        "eos_token_id",
    ):
        assert getattr(ours, key) == getattr(theirs, key), key
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    assert ours.sliding_window == getattr(theirs, "sliding_window", None)
    assert ours.num_local_experts == getattr(theirs, "num_local_experts", None)


@pytest.mark.parametrize("kind", MODELS)
def test_every_key_that_transformers_writes_is_known(kind):
    """All keys, not only those that differ from the defaults; a new release may add one."""
    theirs = MODELS[kind]()
    ours = config_from_json(json.loads(theirs.to_json_string(use_diff=False)), "config.json")
    assert isinstance(ours, ModelConfig)

import json

import pytest
import torch

from coterie.checkpoint.load import load_model
from coterie.checkpoint.mistral import config_from_params, config_to_params, read_params
from coterie.config import ModelConfig
from coterie.errors import ConfigError

MIXTRAL = {
    "dim": 4096, "n_layers": 32, "head_dim": 128, "hidden_dim": 14336, "n_heads": 32, "n_kv_heads": 8,
    "norm_eps": 1e-05, "vocab_size": 32000, "moe": {"num_experts_per_tok": 2, "num_experts": 8},
}  # fmt: skip


def read(values) -> ModelConfig:
    return config_from_params(values, "params.json")


def test_the_published_mixtral_is_the_default_configuration():
    assert read(MIXTRAL) == ModelConfig()


def test_rope_theta_follows_the_window_where_the_file_does_not_say():
    assert read(MIXTRAL).rope_theta == 1e6
    assert read({**MIXTRAL, "sliding_window": 4096}).rope_theta == 1e4
    assert read({**MIXTRAL, "sliding_window": 4096, "rope_theta": 5e5}).rope_theta == 5e5


def test_published_extras_are_read():
    extras = {"max_seq_len": 1024, "model_type": "transformer", "tied_embeddings": True, "use_biases": False}
    config = read({**MIXTRAL, **extras})
    assert (config.max_position_embeddings, config.tie_word_embeddings) == (1024, True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dim": "4096"}, "dim is '4096'"),
        ({"n_heads": 30}, "n_kv_heads is 8, expected a divisor of n_heads 30"),
        ({"dim": None}, "'dim' is missing"),
        ({"moe": 8}, "moe is 8"),
        ({"moe": {"num_experts": 8}}, "moe.num_experts_per_tok is missing"),
        ({"moe": {"num_experts": 8, "num_experts_per_tok": 9}}, "num_experts_per_tok"),
        ({"moe": {"num_experts": 0, "num_experts_per_tok": 2}}, "moe.num_experts is 0"),
        ({"moe": {**MIXTRAL["moe"], "num_shared_experts": 1}}, "moe.num_shared_experts"),
        ({"yarn": {"factor": 4}}, "'yarn'"),
        ({"slidding_window": 4096}, "did you mean 'sliding_window'"),
        ({"use_biases": True}, "use_biases"),
        ({"model_type": "mamba"}, "model_type"),
        ({"vision_encoder": {"hidden_size": 3}}, "'vision_encoder'"),
        ({"huggingface": 3}, "huggingface"),
    ],
)
def test_what_would_change_the_model_is_refused_by_name(change, said):
    with pytest.raises(ConfigError, match=r"^params\.json") as caught:
        read({**MIXTRAL, **change})
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(),
        ModelConfig(num_local_experts=None, sliding_window=4096, rope_theta=1e4),
        ModelConfig(tie_word_embeddings=True, eos_token_id=(2, 5), bos_token_id=None, norm_topk_prob=False),
        ModelConfig(extra={"initializer_range": 0.02, "dtype": "bfloat16"}),
    ],
)
def test_a_configuration_survives_writing_and_reading(config):
    found = read(json.loads(json.dumps(config_to_params(config))))
    assert found == config
    assert found.extra == config.extra


@pytest.mark.parametrize("n_files", [1, 3])
@pytest.mark.parametrize("index", [False, True])
@pytest.mark.parametrize(
    "changes", [{}, {"num_local_experts": None, "sliding_window": 8}, {"tie_word_embeddings": True}]
)
def test_consolidated_weights_land_where_they_belong(make_tiny, n_files, index, changes):
    tiny = make_tiny(**changes)
    model = load_model(tiny.mistral(n_files=n_files, index=index), dtype="auto", device="cpu")
    assert model.config == tiny.config
    for name, t in model.tensors().items():
        assert torch.equal(t, tiny.tensors[name]), name


def test_old_file_names_are_found_too(tiny):
    folder = tiny.mistral()
    (folder / "consolidated.safetensors").rename(folder / "consolidated.00.safetensors")
    assert torch.equal(load_model(folder, device="cpu").tensors()["norm"], tiny.tensors["norm"])
    assert read_params(folder).num_local_experts == 4

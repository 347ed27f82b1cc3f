import pytest

from coterie.checkpoint.names import canonical_shapes, is_ignorable, n_places, naming_of, places
from coterie.config import ModelConfig
from coterie.model import Transformer

NAMINGS = ["huggingface", "huggingface_fused", "mistral"]
SHAPES = [
    {},
    {"num_local_experts": None},
    {"tie_word_embeddings": True},
    {"num_hidden_layers": 1, "num_local_experts": 1, "num_experts_per_tok": 1},
]


def config_of(**changes) -> ModelConfig:
    values = {"vocab_size": 11, "hidden_size": 8, "intermediate_size": 6, "num_hidden_layers": 3}
    return ModelConfig(
        **{**values, "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 5, **changes}
    )


@pytest.mark.parametrize("changes", SHAPES)
def test_canonical_shapes_are_those_of_the_model(changes):
    import torch

    config = config_of(**changes)
    model = {name: tuple(t.shape) for name, t in Transformer(config, torch.float32).tensors().items()}
    assert list(canonical_shapes(config)) == list(model.items())


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("changes", SHAPES)
def test_every_element_is_covered_exactly_once(changes, naming):
    config = config_of(**changes)
    found = list(places(config, naming))
    assert len({name for name, _ in found}) == len(found) == n_places(config, naming)
    for name, shape in canonical_shapes(config):
        size = 1
        for n in shape:
            size *= n
        end = 0
        for place in sorted((p for _, p in found if p.name == name), key=lambda p: p.first):
            assert place.first == end, f"{name} has a hole or an overlap"
            end += place.n_elements
        assert end == size


def test_the_place_worked_out_in_the_docstring():
    config = config_of(num_local_experts=8, intermediate_size=4, hidden_size=2, head_dim=2)
    place = dict(places(config, "mistral"))["layers.0.feed_forward.experts.3.w3.weight"]
    assert (place.name, place.first, place.shape) == ("layers.0.moe.experts.gate_up", 56, (4, 2))


def test_only_mistral_interleaves_and_only_queries_and_keys():
    config = config_of()
    heads = {name: p.n_heads for name, p in places(config, "mistral") if p.n_heads}
    assert set(heads.values()) == {4, 2}
    assert all(name.endswith(("wq.weight", "wk.weight")) for name in heads)
    assert not any(p.n_heads for naming in NAMINGS[:2] for _, p in places(config, naming))


@pytest.mark.parametrize("naming", NAMINGS)
def test_a_naming_is_recognised_by_its_names(naming):
    assert naming_of(name for name, _ in places(config_of(), naming)) == naming


def test_only_what_the_configuration_implies_may_be_ignored():
    assert is_ignorable("model.layers.3.self_attn.rotary_emb.inv_freq")
    assert is_ignorable("rope.freqs")
    assert not is_ignorable("model.layers.3.self_attn.q_proj.bias")
    assert not is_ignorable("model.layers.3.self_attn.rotary_emb.inv_freq.weight")

import pytest

from coterie.checkpoint.names import canonical_shapes, file_shape, is_ignorable, n_places, naming_of, part_of, places
from coterie.config import ModelConfig
from coterie.model import Transformer

GGUF = ["gguf", "gguf_gate_up", "gguf_per_expert"]
NAMINGS = ["huggingface", "huggingface_fused", "mistral", *GGUF]
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
    assert len(set(found)) == len(found) == n_places(config, naming)
    if naming not in GGUF[:2]:  # there a name comes once for each expert
        assert len({name for name, _ in found}) == len(found)
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


@pytest.mark.parametrize("naming", GGUF)
def test_a_gguf_tensor_is_filled_from_its_start_to_its_end(naming):
    config, shapes, filled = config_of(), {}, {}
    for name, place in places(config, naming):
        filled.setdefault(name, []).append(place)
    for name, parts in filled.items():
        shapes[name] = file_shape(name, parts)
    E, F, D = 5, 6, 8
    assert shapes["token_embd.weight"] == (11, D) and shapes["blk.2.ffn_gate_inp.weight"] == (E, D)
    if naming == "gguf":
        assert shapes["blk.0.ffn_up_exps.weight"] == (E, F, D) and shapes["blk.0.ffn_down_exps.weight"] == (E, D, F)
        assert [p.first for p in filled["blk.0.ffn_up_exps.weight"]] == [(2 * e + 1) * F * D for e in range(E)]
    elif naming == "gguf_gate_up":
        assert shapes["blk.0.ffn_gate_up_exps.weight"] == (E, 2 * F, D)
        assert [p.first for p in filled["blk.0.ffn_gate_up_exps.weight"]] == [2 * e * F * D for e in range(E)]
    else:
        assert shapes["blk.0.ffn_up.4.weight"] == (F, D) and shapes["blk.0.ffn_down.4.weight"] == (D, F)


def test_every_tensor_belongs_to_a_part():
    parts = {part_of(name) for changes in SHAPES for name, _ in canonical_shapes(config_of(**changes))}
    assert parts == {"embedding", "attention", "router", "feedforward", "norms", "head"}
    assert part_of("layers.0.moe.experts.gate_up") == part_of("layers.0.feed_forward.up") == "feedforward"
    assert part_of("layers.0.attention_norm") == "norms" and part_of("layers.0.attention.o") == "attention"


def test_only_mistral_and_gguf_interleave_and_only_queries_and_keys():
    config = config_of()
    for naming in GGUF:
        heads = {name: p.n_heads for name, p in places(config, naming) if p.n_heads}
        assert set(heads.values()) == {4, 2} and all(n.endswith(("_q.weight", "_k.weight")) for n in heads)
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

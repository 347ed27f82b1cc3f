"""The arithmetic against the published figures, and against counting the tensors of a model."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coterie import sizes
from coterie.config import ModelConfig

MIXTRAL = ModelConfig()
MISTRAL = ModelConfig(num_local_experts=None, rope_theta=1e4, sliding_window=4096)


def test_mixtral_has_the_published_counts() -> None:
    total, active = sizes.parameters(MIXTRAL), sizes.active_parameters(MIXTRAL)
    assert total.total == 46_702_792_704 and active.total == 12_879_925_248
    assert total.feedforward == 32 * 1_409_286_144 and active.feedforward == 32 * 2 * 176_160_768
    assert total.attention == active.attention == 32 * 41_943_040
    assert total.router == 32 * 32_768 and total.norms == 32 * 8192 + 4096
    assert total.embedding + total.head + 4096 == 262_148_096


def test_mistral_7b_is_dense() -> None:
    assert sizes.parameters(MISTRAL).total == sizes.active_parameters(MISTRAL).total == 7_241_732_096
    assert sizes.parameters(MISTRAL).router == 0 and sizes.paths_per_layer(MISTRAL) == 1


def test_shape_of_mixtral() -> None:
    assert sizes.expansion(MIXTRAL) == 3.5 and sizes.query_heads_per_key_head(MIXTRAL) == 4
    assert sizes.paths_per_layer(MIXTRAL) == math.comb(8, 2) == 28


def test_bytes_at_each_width() -> None:
    n = 46_702_792_704
    assert [sizes.weight_bytes(MIXTRAL, bits) for bits in (16, 8, 4)] == [2 * n, n, n // 2]
    assert sizes.weight_bytes(MIXTRAL, 4, scale_group=32) == n // 2 + n // 32 * 2  # 4.5 bits, as Q4_0


def test_cache_stops_growing_at_the_window() -> None:
    assert sizes.cache_bytes(MIXTRAL, 1) == 2 * 32 * 8 * 128 * 2 == 131_072
    assert sizes.cache_bytes(MISTRAL, 10_000) == sizes.cache_bytes(MISTRAL, 4096) == 131_072 * 4096
    assert sizes.cache_bytes(MISTRAL, 10_000, windowed=False) == 131_072 * 10_000


def test_operations_are_two_per_active_weight_and_attention_beside() -> None:
    first = sizes.operations_per_token(MIXTRAL)
    assert first == 2 * (12_879_925_248 - 131_072_000 - 266_240)  # neither the look-up nor the norms
    assert sizes.operations_per_token(MIXTRAL, 1000) - first == 4 * 32 * 32 * 128 * 1000
    assert sizes.operations_per_token(MISTRAL, 9999) == sizes.operations_per_token(MISTRAL, 4096)


def test_a_tied_head_is_counted_once_and_computed_all_the_same() -> None:
    tied = ModelConfig(tie_word_embeddings=True)
    assert sizes.parameters(tied).total == 46_702_792_704 - 131_072_000
    assert sizes.operations_per_token(tied) == sizes.operations_per_token(MIXTRAL)


@pytest.mark.parametrize(
    ("gigabytes", "fits", "experts"), [(100, True, 8), (50, False, 4), (3, False, 0), (0, False, 0)]
)
def test_what_fits(gigabytes: int, fits: bool, experts: int) -> None:
    fit = sizes.fit(MIXTRAL, gigabytes * 10**9, 16)
    assert (fit.fits, fit.experts, fit.needed) == (fits, experts, 93_405_585_408)
    assert fit.tokens == (32768 if fits else 0)
    assert fit.without_experts == 2 * (46_702_792_704 - 45_097_156_608)


CONFIGS = st.builds(
    ModelConfig,
    vocab_size=st.integers(3, 50),
    hidden_size=st.sampled_from([4, 8, 24]),
    intermediate_size=st.integers(1, 40),
    num_hidden_layers=st.integers(1, 4),
    num_attention_heads=st.sampled_from([2, 4]),
    num_key_value_heads=st.sampled_from([1, 2]),
    head_dim=st.sampled_from([2, 6]),
    num_local_experts=st.one_of(st.none(), st.integers(2, 5)),
    tie_word_embeddings=st.booleans(),
)


@given(CONFIGS)
def test_counts_are_those_of_the_tensors_in_the_file(config: ModelConfig) -> None:
    from coterie.checkpoint.names import places

    naming = "huggingface"
    assert sizes.parameters(config).total == sum(place.n_elements for _, place in places(config, naming))


@given(CONFIGS, st.integers(0, 100_000), st.sampled_from([16, 8, 4]))
def test_what_fits_never_needs_more_than_there_is(config: ModelConfig, memory: int, bits: int) -> None:
    fit = sizes.fit(config, memory, bits)
    assert fit.fits == (fit.needed <= memory)
    if fit.fits:
        assert fit.needed + sizes.cache_bytes(config, fit.tokens) <= memory
        assert fit.experts == (config.num_local_experts or 0)

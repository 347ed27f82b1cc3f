import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.config import ModelConfig
from coterie.engine.request import Request, SamplingParams, check_ids, check_text
from coterie.errors import ContextError, CoterieError, RequestError

CONFIG = ModelConfig(vocab_size=100, max_position_embeddings=64)

WRONG = [
    ("max_tokens", -1),
    ("max_tokens", 1.0),
    ("max_tokens", True),
    ("max_tokens", "3"),
    ("max_tokens", None),
    ("temperature", math.nan),
    ("temperature", -0.1),
    ("temperature", math.inf),
    ("temperature", "hot"),
    ("temperature", True),
    ("temperature", 10**400),
    ("top_p", 0),
    ("top_p", 1.01),
    ("top_p", math.nan),
    ("top_k", -1),
    ("top_k", 2.5),
    ("min_p", -0.1),
    ("min_p", 1.5),
    ("repetition_penalty", 0),
    ("repetition_penalty", -1.0),
    ("repetition_penalty", math.inf),
    ("presence_penalty", 2.1),
    ("frequency_penalty", -2.1),
    ("logit_bias", [1, 2]),
    ("logit_bias", {"a": 1}),
    ("logit_bias", {-1: 1}),
    ("logit_bias", {5: 101}),
    ("logit_bias", {5: math.nan}),
    ("logit_bias", {5: True}),
    ("stop", ""),
    ("stop", ["a", ""]),
    ("stop", [1]),
    ("stop", 5),
    ("stop_token_ids", [-1]),
    ("stop_token_ids", ["x"]),
    ("stop_token_ids", 7),
    ("stop_token_ids", [True]),
    ("seed", 1 << 63),
    ("seed", 1.5),
    ("seed", "one"),
    ("n", 0),
    ("n", 129),
    ("n", None),
    ("logprobs", 21),
    ("logprobs", -1),
    ("logprobs", True),
    ("routing", 1),
    ("include_stop", 1),
    ("ignore_eos", None),
    ("typical_p", 0),
    ("typical_p", 1.1),
    ("min_tokens", -1),
    ("min_tokens", 257),
    ("min_tokens", True),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_wrong_value_is_one_sentence_that_names_it(name: str, value: Any) -> None:
    with pytest.raises(RequestError, match=name) as e:
        SamplingParams.of({name: value})
    assert "expected" in str(e.value) and "\n" not in str(e.value) and len(str(e.value)) < 200


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([n for n, _ in WRONG]),
        st.one_of(st.none(), st.booleans(), st.floats(), st.text(), st.integers(), st.lists(st.text())),
    )
)
def test_anything_is_taken_or_refused(values: dict[str, Any]) -> None:
    try:
        SamplingParams.of(values)
    except CoterieError as e:
        assert "expected" in str(e)


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(RequestError, match="'top_q' is not a generation parameter; did you mean 'top_p'"):
        SamplingParams.of({"top_q": 1})


def test_values_are_normalised() -> None:
    p = SamplingParams.of({"stop": "a", "stop_token_ids": [3, 4], "logit_bias": {"7": 1, 8: -2.5}})
    assert p.stop == ("a",) and p.stop_token_ids == (3, 4) and p.logit_bias == {7: 1.0, 8: -2.5}
    assert SamplingParams.of({"stop": ["a", "b", "a"], "stop_token_ids": None, "logit_bias": {}}).stop == ("a", "b")
    assert SamplingParams().logit_bias is None


def test_plain_greedy_is_what_needs_no_more_than_an_argmax() -> None:
    assert SamplingParams(top_p=0.5, seed=1).is_plain_greedy  # they only matter with a temperature
    for other in (
        {"temperature": 0.1},
        {"repetition_penalty": 1.1},
        {"logit_bias": {1: 1}},
        {"logprobs": 0},
        {"min_tokens": 1},
    ):
        assert not SamplingParams.of(other).is_plain_greedy


def test_the_context_error_has_both_numbers_and_what_to_do() -> None:
    SamplingParams(max_tokens=4).check_model(CONFIG, 60)
    with pytest.raises(ContextError, match=r"60 tokens plus max_tokens 5 make 65.*context is 64.*at most 4"):
        SamplingParams(max_tokens=5).check_model(CONFIG, 60)
    with pytest.raises(ContextError, match=r"200000 tokens .* context is 64: shorten the prompt$"):
        SamplingParams().check_model(CONFIG, 200_000)


@pytest.mark.parametrize("values", [{"logit_bias": {100: 1}}, {"stop_token_ids": [100]}])
def test_ids_are_below_the_vocabulary(values: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="is 100, expected an id below the model's vocabulary of 100"):
        SamplingParams.of(values).check_model(CONFIG, 1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        (b"abc", "bytes"),
        (None, "None"),
        ("a\udcff", "not valid UTF-8 at character 1"),
        (5, "expected text"),
    ],
)
def test_a_prompt_that_is_no_text(text: Any, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        check_text(text)


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ([], "empty"),
        ([1, 100], "100 at place 1"),
        ([-1], "-1 at place 0"),
        ([True], "True"),
        ([1.0], "1.0"),
        ({1}, "list of token"),
        (7, "7"),
    ],
)
def test_a_prompt_that_is_no_ids(ids: Any, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        check_ids(ids, 100)


def test_only_who_may_share_has_the_same_salt() -> None:
    def salt(**fields: Any) -> str:
        return Request((1,), SamplingParams(), **fields).salt

    assert salt() == ""
    salts = [
        salt(),
        salt(owner="a"),
        salt(owner="b"),
        salt(cache_salt="a"),
        salt(experts=1),
        salt(owner="a", experts=1),
    ]
    assert len(set(salts)) == len(salts)
    assert salt(owner="a", cache_salt="x") == salt(owner="b", cache_salt="x")
    assert salt(owner="a", cache_salt="x", experts=1) != salt(owner="a", cache_salt="x", experts=2)


def test_numbers_may_be_numpys() -> None:
    params = SamplingParams(
        max_tokens=np.int64(3), temperature=np.float32(0.5), logit_bias={np.int64(7): np.float32(1)}, seed=np.uint8(1)
    )
    assert params == SamplingParams(max_tokens=3, temperature=0.5, logit_bias={7: 1.0}, seed=1)
    assert check_ids([np.int64(1), 2], 3) == (1, 2)
    with pytest.raises(RequestError, match="temperature"):
        SamplingParams(temperature=np.float64("nan"))


def test_ids_may_be_a_tensor() -> None:
    assert check_ids(torch.tensor([1, 2]), 100) == (1, 2)
    with pytest.raises(RequestError):
        check_ids(torch.tensor(3), 100)

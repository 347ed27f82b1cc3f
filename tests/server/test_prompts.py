"""Requests within the context: the bound on new tokens, whom to blame, and what is cut on request."""

from types import SimpleNamespace
from typing import Any

import pytest

from coterie.engine.request import Request
from coterie.server.failures import ApiError
from coterie.server.prompts import Asked, fit, params_of
from coterie.server.schema import read
from coterie.server.schema_text import CompletionBody
from coterie.server.settings import Settings


@pytest.fixture
def served(make_model: Any) -> Any:
    return SimpleNamespace(
        lm=make_model(max_position_embeddings=100),
        settings=Settings(max_tokens_default=40),
        worker=SimpleNamespace(cache_tokens=4000),
    )


def asked(served: Any, n: int, given: int | None = None, **fields: Any) -> Asked:
    body = read(CompletionBody, {"prompt": "a", **fields})
    ids = tuple(range(n))
    return fit(Request(ids, params_of(body), ids), body, served, "prompt", ("max_tokens", given))


def test_the_bound_where_none_is_given(served: Any) -> None:
    short, long = asked(served, 10), asked(served, 90)
    assert (short.request.params.max_tokens, short.is_to_the_brim) == (40, False)
    assert (long.request.params.max_tokens, long.is_to_the_brim) == (10, True)
    assert asked(served, 90, 10).is_to_the_brim is False


@pytest.mark.parametrize(("n", "given", "param"), [(100, None, "prompt"), (100, 1, "prompt"), (99, 2, "max_tokens")])
def test_beyond_the_context(served: Any, n: int, given: int | None, param: str) -> None:
    with pytest.raises(ApiError, match=f"{n} tokens.* context of 100") as caught:
        asked(served, n, given)
    error = caught.value
    assert (error.status, error.code, error.param) == (400, "context_length_exceeded", param)
    assert error.extra == {"n_prompt_tokens": n, "n_ctx": 100}


def test_the_middle_is_cut_if_that_is_asked_for(served: Any) -> None:
    cut = asked(served, 150, 20, truncate="middle")
    assert cut.request.prompt_ids == (*range(40), *range(110, 150)) == cut.request.context_ids
    assert cut.told == {"truncated": {"dropped_tokens": 70, "where": [40, 110]}}
    assert asked(served, 50, 20, truncate="middle").told == {}
    with pytest.raises(ApiError):
        asked(served, 150, 100, truncate="middle")


def test_what_the_model_does_not_have(served: Any) -> None:
    with pytest.raises(ApiError) as caught:
        asked(served, 5, logit_bias={"300": 1})
    assert caught.value.param == "logit_bias"
    with pytest.raises(ApiError) as caught:
        asked(served, 5, min_tokens=60)
    assert caught.value.param == "min_tokens"

"""Embeddings: unit vectors in both encodings, of the mean or the last token."""

import asyncio
import base64
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from coterie import LanguageModel, load
from coterie.engine.runner import Runner


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return load()


@pytest.fixture
def post(lm: LanguageModel, asgi: Callable[..., Any], serving: Callable[..., Any]) -> Callable[..., Any]:
    async def ask(body: dict[str, Any]) -> Any:
        async with serving(lm) as app:
            return await asgi(app, "POST", "/v1/embeddings", body)

    return lambda **body: asyncio.run(ask(body))


def test_it_is_the_normed_mean_of_the_hidden_states(post: Callable[..., Any], lm: LanguageModel) -> None:
    ids = lm.encode("Once upon a time")
    (output,) = Runner(lm.model).feed_all(0, ids)
    with torch.inference_mode():
        states = lm.model.head.norm(output.hidden_TD).float()
    for pooling, expected in (("mean", states.mean(0)), ("last", states[-1])):
        (one,) = post(input="Once upon a time", pooling=pooling).json["data"]
        expected = torch.nn.functional.normalize(expected, dim=0)
        np.testing.assert_allclose(one["embedding"], expected.numpy(), atol=1e-6)


def test_both_encodings_and_both_names(post: Callable[..., Any], lm: LanguageModel) -> None:
    answer = post(input=["a", "b c"], encoding_format="base64")
    vectors = [np.frombuffer(base64.b64decode(d["embedding"]), "<f4") for d in answer.json["data"]]
    ids = [list(lm.encode("a")), list(lm.encode("b c"))]
    plain = post(inputs=ids, output_dimension=256).json
    np.testing.assert_array_equal(vectors, np.array([d["embedding"] for d in plain["data"]], "<f4"))
    assert answer.json["usage"]["prompt_tokens"] == sum(len(i) for i in ids) and answer.json["experimental"] is True
    assert answer.headers["x-experimental"] == "embeddings"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": "a", "inputs": "b"}, "input"),
        ({"input": ""}, "input"),
        ({"input": ["a"] * 65}, "input"),
        ({"input": "a", "dimensions": 5}, "dimensions"),
        ({"inputs": "a", "output_dtype": "int8"}, "output_dtype"),
        ({"input": "word " * 4000}, "input"),
        ({"input": [10**6]}, "input"),
    ],
)
def test_what_is_refused(post: Callable[..., Any], body: dict[str, Any], param: str) -> None:
    answer = post(**body)
    assert (answer.status, answer.json["param"]) == (400, param), answer.body

"""Text completions without a network: prompts of all kinds, the best of several, older log-probabilities."""

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from coterie import LanguageModel, load
from coterie.server.sse import DONE


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return load()


@pytest.fixture(scope="module")
def post(lm: LanguageModel, asgi: Callable[..., Any], serving: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    runner = asyncio.Runner()
    context = serving(lm)
    app = runner.run(context.__aenter__())

    def ask(**body: Any) -> Any:
        full = {"prompt": "Once upon", "max_tokens": 6, "temperature": 0, **body}
        return runner.run(asgi(app, "POST", "/v1/completions", full))

    yield ask
    runner.run(context.__aexit__(None, None, None))
    runner.close()


def test_it_is_what_generate_gives(post: Callable[..., Any], lm: LanguageModel) -> None:
    answer = post().json
    (choice,) = answer["choices"]
    assert choice["text"] == lm.generate("Once upon", max_tokens=6).text
    assert (answer["object"], answer["id"][:5]) == ("text_completion", "cmpl-")
    assert post(prompt=list(lm.encode("Once upon"))).json["choices"] == answer["choices"]
    assert post(prompt=[list(lm.encode("Once upon"))]).json["choices"] == answer["choices"]


def test_several_prompts_are_answered_in_order(post: Callable[..., Any], lm: LanguageModel) -> None:
    prompts = ["Once upon", "Il était", "def f("]
    answer = post(prompt=prompts, n=2, seed=1).json
    assert [c["index"] for c in answer["choices"]] == list(range(6))
    texts = [lm.generate(p, max_tokens=6).text for p in prompts]
    assert [c["text"] for c in answer["choices"]] == [t for t in texts for _ in range(2)]
    assert answer["usage"]["prompt_tokens"] == sum(len(lm.encode(p)) for p in prompts)


def test_a_stream_of_several_prompts(post: Callable[..., Any]) -> None:
    prompts = ["Once upon", "Il était"]
    streamed = post(prompt=prompts, stream=True, logprobs=1, stream_options={"include_usage": True})
    frames = streamed.body.decode().split("\n\n")
    assert streamed.body.decode().endswith(DONE)
    chunks = [json.loads(f[6:]) for f in frames[:-2]]
    whole = post(prompt=prompts, logprobs=1).json
    for index in range(2):
        own = [c["choices"][0] for c in chunks if c["choices"] and c["choices"][0]["index"] == index]
        assert "".join(c["text"] for c in own) == whole["choices"][index]["text"]
        assert [c["finish_reason"] for c in own] == [None] * (len(own) - 1) + ["length"]
        offsets = [o for c in own if c["logprobs"] for o in c["logprobs"]["text_offset"]]
        assert offsets == whole["choices"][index]["logprobs"]["text_offset"]
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] == 12


def test_the_best_are_those_with_the_likeliest_tokens(post: Callable[..., Any]) -> None:
    asked = {"temperature": 1.2, "seed": 3, "logprobs": 0, "max_tokens": 8}
    all_of_them = post(n=8, **asked).json["choices"]
    best = post(n=2, best_of=8, **asked).json
    means = {c["text"]: sum(c["logprobs"]["token_logprobs"]) / len(c["logprobs"]["tokens"]) for c in all_of_them}
    ranked = sorted(means, key=lambda text: -means[text])
    assert [c["text"] for c in best["choices"]] == ranked[:2] and [c["index"] for c in best["choices"]] == [0, 1]
    assert best["usage"]["completion_tokens"] == sum(len(c["logprobs"]["tokens"]) for c in all_of_them)


def test_older_logprobs(post: Callable[..., Any]) -> None:
    choice = post(logprobs=2).json["choices"][0]
    told = choice["logprobs"]
    assert "".join(told["tokens"]) == choice["text"] and len(told["top_logprobs"]) == 6
    assert told["text_offset"] == [len("".join(told["tokens"][:i])) for i in range(6)]
    assert all(token in top for token, top in zip(told["tokens"], told["top_logprobs"], strict=True))


def test_16_tokens_where_no_number_is_given(post: Callable[..., Any]) -> None:
    assert post(max_tokens=None, ignore_eos=True).json["usage"]["completion_tokens"] == 16


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"echo": True}, 501, "echo"),
        ({"suffix": "end"}, 400, "suffix"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"prompt": ["a"] * 65}, 400, "prompt"),
        ({"prompt": ["a", ""]}, 400, "prompt"),
        ({"prompt": [1, "a"]}, 400, "prompt"),
        ({"prompt": [[1], []]}, 400, "prompt"),
        ({"prompt": [10**6]}, 400, "prompt"),
        ({"prompt": "word " * 3000}, 400, "prompt"),
        ({"max_tokens": 3000}, 400, "max_tokens"),
    ],
)
def test_what_is_refused(post: Callable[..., Any], fields: dict[str, Any], status: int, param: str) -> None:
    answer = post(**fields)
    assert (answer.status, answer.json["param"]) == (status, param), answer.body


def test_a_model_without_a_tokenizer_continues_ids(
    make_model: Callable[..., Any], asgi: Callable[..., Any], serving: Callable[..., Any]
) -> None:
    async def ask() -> list[Any]:
        async with serving(LanguageModel(make_model())) as app:
            ids = {"prompt": [1, 5, 9], "max_tokens": 3, "return_token_ids": True, "ignore_eos": True}
            return [await asgi(app, "POST", "/v1/completions", body) for body in (ids, {"prompt": "Once"})]

    of_ids, of_text = asyncio.run(ask())
    choice = of_ids.json["choices"][0]
    assert (choice["text"], len(choice["token_ids"])) == ("", 3)
    assert of_text.status == 400 and "no tokenizer" in of_text.json["message"]

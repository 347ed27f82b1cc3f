"""25 fields that are numbers × 14 values that none of them takes: 350 requests, each refused with the field, the value
and the limit, while three other users' streams stay what they are.

CVE-2026-34756 (n, memory before scheduling) and CVE-2026-21869 (a negative count, a write out of bounds) were of this
kind.
"""

import json
from typing import Any

import pytest
from neighbours import Neighbours
from raw_http import ask
from refusals import check_refusal

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HUGE = "9" * 5000
ALWAYS = (  # as they stand in the JSON; no field takes any of them
    *("NaN", "Infinity", "-Infinity", "1e309", str(2**63), str(2**64), str(-(2**63) - 1), HUGE),
    *("true", '"5"', "[]", "{}"),
)
FIELDS = [  # route, place, two more values that this field does not take
    (CHAT, "temperature", ("-1", "2.5")),
    (CHAT, "top_p", ("0", "1.5")),
    (CHAT, "top_k", ("-2", "1.5")),
    (CHAT, "min_p", ("-0.5", "1.5")),
    (CHAT, "typical_p", ("-0.5", "1.5")),
    (CHAT, "repetition_penalty", ("0", "-1")),
    (CHAT, "presence_penalty", ("-2.5", "2.5")),
    (CHAT, "frequency_penalty", ("-2.5", "2.5")),
    (CHAT, "max_tokens", ("-1", "1.5")),
    (CHAT, "max_completion_tokens", ("-1", "1.5")),
    (CHAT, "min_tokens", ("-1", "1.5")),
    (CHAT, "n", ("0", "17")),
    (CHAT, "top_logprobs", ("-1", "21")),
    (CHAT, "seed", ("1.5", "-1e300")),
    (CHAT, "random_seed", ("-1", "1.5")),
    (CHAT, "logit_bias.5", ("-101", "100.5")),
    (CHAT, "stop_token_ids.0", ("-1", "1.5")),
    (CHAT, "stream_interval", ("0", "1.5")),
    (CHAT, "experts.top_k", ("0", "1.5")),
    (CHAT, "experts.ban.0.0", ("-1", "1.5")),
    (CHAT, "experts.ban.0.1", ("-1", "1.5")),
    (TEXT, "best_of", ("0", "17")),
    (TEXT, "logprobs", ("-1", "21")),
    (TEXT, "max_tokens", ("-1", "1.5")),
    ("/detokenize", "tokens.0", ("-1", "1.5")),
]
NEEDED: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "Once"}], "max_tokens": 1},
    TEXT: {"prompt": "Once", "max_tokens": 1},
    "/detokenize": {"tokens": [5]},
}
WITH = {"top_logprobs": {"logprobs": True}, "stream_interval": {"stream": True}}
MISTRAL = {"user-agent": "mistral-client-python/3.7.0"}


def with_value(route: str, place: str, token: str) -> str:
    """The route's smallest request with this token, unquoted, at this place."""
    body: Any = json.loads(json.dumps({**NEEDED[route], **WITH.get(place, {})}))
    first, *rest = place.split(".")
    shape: Any = "@"
    if rest == ["0"]:
        shape = ["@"]
    elif (first == "experts" and rest[0] == "top_k") or first == "logit_bias":
        shape = {rest[0]: "@"}
    elif first == "experts":
        pair: list[Any] = [0, 0]
        pair[int(rest[2])] = "@"
        shape = {"ban": [pair]}
    return json.dumps({**body, first: shape}).replace('"@"', token)


def test_the_table_is_as_large_as_it_says() -> None:
    assert len({(route, place) for route, place, _ in FIELDS}) == 25
    assert all(len({*ALWAYS, *own}) == 14 for _, _, own in FIELDS)


@pytest.mark.parametrize("dialect", ["openai", "mistral"])
def test_every_hostile_number_is_refused_and_nobody_else_notices(url: str, dialect: str, figure: Any) -> None:
    headers, wrong, slowest = (MISTRAL if dialect == "mistral" else {}), [], 0.0
    with Neighbours(url) as neighbours:
        for route, place, own in FIELDS:
            for token in (*ALWAYS, *own):
                reply = ask(url, "POST", route, with_value(route, place, token), headers)
                slowest = max(slowest, reply.seconds)
                try:
                    body = check_refusal(reply, 400, 422, words=(place.split(".")[0], _shown(token)))
                    assert body["param"].startswith(place.split(".")[0]), body
                    assert any(word in body["message"] for word in ("expected", "at most", "between", "context")), body
                except (AssertionError, AttributeError) as e:
                    wrong.append(f"{route} {place} = {token[:30]}: {e}")
    assert not wrong, "\n".join([f"{len(wrong)} of {14 * len(FIELDS)}:", *wrong[:40]])
    figure(
        f"hostile numbers ({dialect})", requests=14 * len(FIELDS), slowest_s=slowest, neighbours=neighbours.n_answers
    )


def test_a_number_in_every_dialect_has_its_status(url: str) -> None:
    body = with_value(CHAT, "temperature", "3")
    assert check_refusal(ask(url, "POST", CHAT, body))["param"] == "temperature"
    assert ask(url, "POST", CHAT, body).status == 400
    assert ask(url, "POST", CHAT, body, MISTRAL).status == 422


def _shown(token: str) -> str:
    """The part of the value that the message has to show, however the number is written in it."""
    spelled = {"NaN": "nan", "Infinity": "inf", "-Infinity": "-inf", "1e309": "", "-1e300": "1e+300", '"5"': "5"}
    return spelled.get(token, token[:5])

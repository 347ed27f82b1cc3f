"""What /openapi.json promises, tried by schemathesis: requests that fit it, and requests that do not. Never a 5xx.

An answer to a request that fits may still be a refusal, since JSON Schema cannot say everything; the two things that
fail most of them are set right in a second try, and then most are answered.
"""

import contextlib
import copy
import json
import warnings
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from raw_http import ask
from refusals import check_body, leaks

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import schemathesis
    from schemathesis import Case, GenerationMode

MODES = {mode.value: mode for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)}
SLOW = ("/v1/chat/completions", "/v1/completions")
NEVER = ("/v1/fim/completions", "/v1/routing/{id}")  # no model can, and nobody knows an id


@pytest.fixture(scope="module")
def document(url: str) -> dict[str, Any]:
    reply = ask(url, "GET", "/openapi.json")
    assert reply.status == 200, reply
    found: dict[str, Any] = reply.json()
    return found


def test_every_route_of_the_product_is_published(document: dict[str, Any]) -> None:
    published = set(document["paths"])
    assert {"/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/embeddings", "/tokenize"} <= published


@pytest.mark.parametrize("mode", MODES)
def test_no_request_makes_the_server_fail(
    url: str, document: dict[str, Any], mode: str, is_full: bool, figure: Any
) -> None:
    statuses: dict[int, int] = {}
    refused: dict[str, list[bool]] = {}
    schema = schemathesis.openapi.from_dict(document)
    for result in schema.get_all_operations():
        operation = result.ok()
        strategy = operation.as_strategy(generation_mode=MODES[mode])

        @settings(
            max_examples=100 if is_full else 10,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=strategy)
        def check(case: Case) -> None:
            shorten(case)
            answer = case.call(base_url=url, timeout=60)
            if answer.status_code in (400, 422) and mode == "positive" and set_right(case):
                answer = case.call(base_url=url, timeout=60)
            statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
            refused.setdefault(case.operation.path, []).append(answer.status_code >= 400)
            is_allowed = answer.status_code < 500 or answer.status_code == 501
            assert is_allowed, (answer.status_code, answer.content[:500], case.as_curl_command())
            assert not leaks(answer.content.decode("utf-8", "replace")) or answer.status_code == 200, answer.content[
                :500
            ]
            if answer.status_code >= 400 and case.method != "HEAD":
                check_body(json.loads(answer.content))

        with contextlib.suppress(Unsatisfiable):  # there is nothing wrong to be said to an operation without parameters
            check()
    assert statuses, "there is nothing to try"
    if mode == "positive":
        tried = [is_refused for path, all_of in refused.items() if path not in NEVER for is_refused in all_of]
        assert sum(tried) < 0.4 * len(tried), refused
    figure(
        f"schemathesis, {mode}",
        requests=sum(statuses.values()),
        refused=sum(n for s, n in statuses.items() if s >= 400),
    )


def shorten(case: Case) -> None:
    """Few tokens: what is tried is the request, not the model."""
    if case.operation.path in SLOW and isinstance(case.body, dict):
        for name, most in (
            ("max_tokens", 2),
            ("max_completion_tokens", 2),
            ("min_tokens", 1),
            ("n", 2),
            ("best_of", 2),
        ):
            if isinstance(case.body.get(name), int) and case.body[name] > most:
                case.body[name] = most
        if not {"max_tokens", "max_completion_tokens"} & case.body.keys():
            case.body["max_tokens"] = 2


def set_right(case: Case) -> bool:
    """What no schema can say: a whole number is written without a point, and an assistant does not speak last."""
    before = copy.deepcopy(case.body)
    case.body = without_points(case.body)
    messages = case.body.get("messages") if isinstance(case.body, dict) else None
    for turn in messages or ():
        turn.pop("prefix", None)
    spoken = [turn for turn in messages or () if turn["role"] in ("user", "assistant")]
    if spoken:
        spoken[-1]["role"] = "user"
    return json.dumps(case.body) != json.dumps(before)


def without_points(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_points(part) for key, part in value.items()}
    if isinstance(value, list):
        return [without_points(part) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else value

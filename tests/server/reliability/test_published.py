"""What /openapi.json promises, tried by schemathesis: requests that fit it, and requests that do not. Never a 5xx.

An answer to a request that fits may still be a refusal: bounds between fields are not in the document.
"""

import contextlib
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
            statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
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
    figure(
        f"schemathesis, {mode}",
        requests=sum(statuses.values()),
        refused=sum(n for s, n in statuses.items() if s >= 400),
    )


def shorten(case: Case) -> None:
    """Few tokens: what is tried is the request, not the model."""
    if case.operation.path in SLOW and isinstance(case.body, dict):
        for name, most in (("max_tokens", 2), ("max_completion_tokens", 2), ("n", 2), ("best_of", 2)):
            if isinstance(case.body.get(name), int) and case.body[name] > most:
                case.body[name] = most
        if not {"max_tokens", "max_completion_tokens"} & case.body.keys():
            case.body["max_tokens"] = 2

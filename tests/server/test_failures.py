import pytest

from coterie.errors import CheckpointError, ContextError, CoterieError, RequestError, ResourceError
from coterie.server.failures import ApiError, refused, retry_after, translated, unavailable


def test_the_body_says_everything_for_both_clients() -> None:
    body = ApiError(404, "no such model", code="model_not_found", param="model").body()
    fields = {"message": "no such model", "type": "not_found_error", "param": "model", "code": "model_not_found"}
    assert body == {"object": "error", **fields, "error": fields}


def test_a_refused_value_is_400_or_422_with_its_place() -> None:
    error = refused("messages.0.role", "messages.0.role is 3")
    assert error.status_in("openai") == 400 and error.status_in("mistral") == 422
    assert error.body()["detail"] == [
        {"loc": ["body", "messages", 0, "role"], "msg": "messages.0.role is 3", "type": "value_error"}
    ]
    assert ApiError(400, "malformed").status_in("mistral") == 400


def test_code_is_text_or_null() -> None:
    """A number there reaches OpenAI's client as the text '400'."""
    assert ApiError(400, "x").body()["code"] is None


@pytest.mark.parametrize(
    ("error", "status", "param", "code"),
    [
        (RequestError("temperature is 3, expected 0 or more"), 400, "temperature", "invalid_value"),
        (RequestError("max_tokens is -1, expected more"), 400, "max_tokens", "invalid_value"),
        (RequestError("the prompt is empty"), 400, None, "invalid_value"),
        (ContextError("the prompt's 9 tokens"), 400, "messages", "context_length_exceeded"),
        (ResourceError("no memory"), 503, None, "out_of_memory"),
        (CheckpointError("odd"), 500, None, "engine_error"),
    ],
)
def test_what_the_engine_refuses(error: CoterieError, status: int, param: str | None, code: str | None) -> None:
    got = translated(error)
    assert (got.status, got.param, got.code, got.message) == (status, param, code, str(error))


def test_retry_after_is_whole_seconds_that_clients_wait_for() -> None:
    assert [retry_after(s) for s in (0, 0.2, 1.5, 500)] == ["1", "1", "2", "120"]
    assert unavailable("x", 3, retry=True).headers == {"retry-after": "3", "x-should-retry": "true"}

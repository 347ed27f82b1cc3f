"""What goes wrong in a request, as one exception and one JSON body that both official clients accept.

The body says everything twice on purpose: at the top level as Mistral's does, under `error` as OpenAI's does, and for a
refused value once more under `detail`, where Mistral's client looks. `code` is text or null, never a number.
Messages come from our own sentences; text of an unexpected exception never gets into one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from coterie.errors import CheckpointError, ContextError, CoterieError, RequestError, ResourceError

__all__ = ["ApiError", "internal", "refused", "retry_after", "translated", "unavailable"]

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    431: "invalid_request_error",
    500: "server_error",
    501: "not_supported_error",
    503: "unavailable_error",
    504: "timeout_error",
}
_LONGEST_RETRY = 120  # seconds; OpenAI's client does not wait for longer than that


class ApiError(Exception):
    """A failure with its status. `param` is the field it is about; `detail` makes it a refused value, which is 400 in
    OpenAI's dialect and 422 in Mistral's. `extra` is put under `error` (token counts of an overflow, for example)."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str | None = None,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        detail: Sequence[Mapping[str, Any]] | None = None,
        extra: Mapping[str, Any] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.type = type or _TYPES[status]
        self.headers = dict(headers or {})
        self.detail, self.extra = detail, dict(extra or {})

    def status_in(self, dialect: str) -> int:
        return 422 if self.status == 400 and self.detail is not None and dialect == "mistral" else self.status

    def body(self, dialect: str = "openai") -> dict[str, Any]:
        """The same in both dialects, so that a client which we take for the other one understands it too."""
        fields = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        body: dict[str, Any] = {"object": "error", **fields, "error": {**fields, **self.extra}}
        if self.detail is not None:
            body["detail"] = list(self.detail)
        return body


def refused(param: str | None, message: str, *, code: str = "invalid_value", kind: str = "value_error") -> ApiError:
    """A value of the request that is not allowed; `param` is its place, such as `messages.0.role`."""
    place = ["body", *(int(p) if p.isdigit() else p for p in param.split("."))] if param else ["body"]
    return ApiError(400, message, code=code, param=param, detail=[{"loc": place, "msg": message, "type": kind}])


def unavailable(message: str, seconds: float = 1.0, *, code: str | None = None, retry: bool = False) -> ApiError:
    """503, with when to come again; `retry` asks clients that would give up to do so."""
    headers = {"retry-after": retry_after(seconds)} | ({"x-should-retry": "true"} if retry else {})
    return ApiError(503, message, code=code, headers=headers)


def internal(request_id: str) -> ApiError:
    return ApiError(
        500,
        f"the server failed on this request; its log has the details under the request id {request_id}",
        code="internal_error",
    )


def translated(error: CoterieError, param: str | None = None) -> ApiError:
    """What the engine refuses, in the words it says it; those of `param`, if it is given, with its name."""
    message = str(error)
    if param is not None and param.split(".")[0].split("_")[0] not in message:
        message = f"{param}: {message}"
    if isinstance(error, ContextError):
        return refused(param or "messages", message, code="context_length_exceeded")
    if isinstance(error, ResourceError):
        return ApiError(503, message, code="out_of_memory", param=param)
    if isinstance(error, RequestError):
        return refused(param or _first_word(message), message)
    if isinstance(error, CheckpointError):  # logits that are NaN: nobody's request is to blame
        return ApiError(500, message, code="engine_error")
    return refused(param, message)


def retry_after(seconds: float) -> str:
    return str(max(1, min(_LONGEST_RETRY, int(seconds + 0.999))))


def _first_word(message: str) -> str | None:
    """`temperature` of "temperature is 3, expected ...": the engine's sentences begin with the field."""
    word = message.split(" ", 1)[0]
    return word if (word.isidentifier() and "_" in word) or word in ("temperature", "n", "seed", "stop") else None

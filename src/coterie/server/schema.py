"""A request's body as a model of pydantic: read, refused with field, value and limit, and what nobody reads is named.

Fields that are not known are taken and reported in the header `x-ignored-fields`; with --strict-api they are refused.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from coterie.errors import nearest
from coterie.server.failures import ApiError, refused
from coterie.server.schema_fields import shown

__all__ = ["Body", "ignored_header", "read", "refuse_unread"]

_MOST_DETAILS = 20
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
B = TypeVar("B", bound="Body")


class Body(BaseModel):
    """What all requests share. `unread` are fields that are known and still do nothing here; `between` is what `check`
    asks of fields beside each other, as JSON schemas for the published document."""

    model_config = ConfigDict(extra="allow", protected_namespaces=(), arbitrary_types_allowed=True)
    unread: ClassVar[tuple[str, ...]] = ()
    between: ClassVar[tuple[dict[str, Any], ...]] = ()

    def ignored(self) -> list[str]:
        """Names of what was sent and has no effect, those within objects too."""
        unknown = [name for name, value in (self.model_extra or {}).items() if value is not None]
        for name in type(self).model_fields:
            if isinstance(value := getattr(self, name), Body):
                unknown += [f"{name}.{inner}" for inner in value.ignored()]
        return [*unknown, *(n for n in self.unread if n in self.model_fields_set and getattr(self, n) is not None)]


def read(model: type[B], values: Mapping[str, Any], *, is_strict: bool = False) -> B:
    """The body, or `ApiError` 400 about the first wrong field, with all of them in `detail`."""
    try:
        body = model.model_validate(values)
    except ValidationError as e:
        raise _refusal(e) from None
    if is_strict:
        refuse_unread(body.ignored(), model.model_fields)
    return body


def refuse_unread(names: Sequence[str], known: Iterable[str]) -> None:
    """`ApiError` 400 about the first of them, if any."""
    if names:
        name, hint = names[0][:80], nearest(names[0][:80], known)
        raise refused(name, f"{name} is not a field that this server reads, expected none such (--strict-api){hint}")


def ignored_header(names: Iterable[str]) -> dict[str, str]:
    """`x-ignored-fields: a, b`; a name that is no plain word is shown as `?`."""
    listed = [name if _NAME.fullmatch(name) else "?" for name in names][:_MOST_DETAILS]
    return {"x-ignored-fields": ", ".join(dict.fromkeys(listed))} if listed else {}


def _refusal(error: ValidationError) -> ApiError:
    details = []
    for e in error.errors(include_url=False)[:_MOST_DETAILS]:
        place = [part if isinstance(part, int) else part[:80] for part in e["loc"]]
        value, context = e["input"], e.get("ctx", {})
        if "key" in context:  # of a part of the value
            place, value = [*place, context["key"]], context["part"]
        name = ".".join(str(part) for part in place)
        if e["type"] == "missing":
            message = f"{name} is missing, but it is required"
        else:
            expected = "an object" if e["type"] in ("model_type", "model_attributes_type") else e["msg"]
            message = f"{name} is {shown(value)}, expected {expected}"
        details.append({"loc": ["body", *place], "msg": message, "type": e["type"], "name": name})
    first = details[0]
    for d in details:
        d_name = d.pop("name")
        if d is first:
            param = str(d_name)
    code = "missing_required_parameter" if first["type"] == "missing" else "invalid_value"
    return ApiError(400, str(first["msg"]), code=code, param=param or None, detail=details)

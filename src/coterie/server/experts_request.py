"""`experts` of a request: which experts to leave out, favour, or how many to ask, for this request's tokens alone."""

from typing import Any

from coterie.errors import CoterieError
from coterie.routing.edits import LARGEST_BIAS, ExpertEdits
from coterie.server.failures import ApiError, refused, translated
from coterie.server.models import Served
from coterie.server.schema_fields import shown
from coterie.server.schema_sampling import MOST_EDITS, ExpertsField

__all__ = ["echo", "edits_of"]


def edits_of(field: ExpertsField | None, served: Served) -> ExpertEdits | None:
    """The edits, or None. Raises `ApiError` 400."""
    if field is None:
        return None
    if not served.settings.expert_edits:
        raise ApiError(403, "experts cannot be changed on this server", code="experts_off", param="experts")
    for name in field.model_extra or ():
        raise refused("experts", f"experts has the key {shown(name)}, expected ban, bias or top_k")
    config = served.lm.config
    n_layers, n_experts = config.num_hidden_layers, config.num_local_experts or 0
    if not config.is_sparse:
        raise refused("experts", f"experts is given, but {served.id} is dense and has none, expected no such field")
    if field.top_k is not None and field.top_k > n_experts:
        raise refused("experts.top_k", f"experts.top_k is {field.top_k}, expected at most {n_experts}")
    bans = tuple(_entry(e, f"experts.ban.{i}", n_layers, n_experts, 2) for i, e in _each(field.ban, "ban"))
    biases = tuple(_entry(e, f"experts.bias.{i}", n_layers, n_experts, 3) for i, e in _each(field.bias, "bias"))
    if not bans and not biases and field.top_k is None:
        return None
    try:
        edits = ExpertEdits(ban=bans, bias=biases, top_k=field.top_k)
        edits.check(config)
    except CoterieError as e:
        raise translated(e, "experts") from None
    return edits


def echo(field: ExpertsField | None) -> dict[str, Any]:
    """What was changed, for the answer."""
    if field is None:
        return {}
    return {"experts": {"ban": field.ban or [], "bias": field.bias or [], "top_k": field.top_k}}


def _each(entries: list[Any] | None, name: str) -> list[tuple[int, Any]]:
    if entries is not None and len(entries) > MOST_EDITS:
        raise refused(f"experts.{name}", f"experts.{name} is a list of {len(entries)}, expected at most {MOST_EDITS}")
    return list(enumerate(entries or ()))


def _entry(value: Any, place: str, n_layers: int, n_experts: int, size: int) -> tuple[Any, ...]:
    """[layer, expert] or [layer, expert, value], each within its bounds."""
    form = "[layer, expert]" if size == 2 else "[layer, expert, value]"
    if type(value) is not list or len(value) != size:
        raise refused(place, f"{place} is {shown(value)}, expected {form}")
    for k, limit in ((0, n_layers), (1, n_experts)):
        if type(value[k]) is not int or not 0 <= value[k] < limit:
            raise refused(
                f"{place}.{k}", f"{place}.{k} is {shown(value[k])}, expected a whole number between 0 and {limit - 1}"
            )
    if size == 3 and not (type(value[2]) in (int, float) and abs(value[2]) <= LARGEST_BIAS):
        limit_shown = f"a number between -{LARGEST_BIAS:g} and {LARGEST_BIAS:g}"
        raise refused(f"{place}.2", f"{place}.2 is {shown(value[2])}, expected {limit_shown}")
    return (value[0], value[1]) if size == 2 else (value[0], value[1], float(value[2]))

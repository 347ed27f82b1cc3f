"""What /openapi.json can only say of a server that runs: names of its models, their sizes, what it was started with.

Sizes are said where all models are in memory, and are the largest among them. Fields are found by the titles of their
schemas, which pydantic makes of their names and `Leaf.titled` gives to parts of them.
"""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

from coterie.server.schema_messages import SPOKEN
from coterie.server.state import State
from coterie.server.tools import call_mark

__all__ = ["narrowed"]

_NOTHING = {"type": "null"}
_SOMETHING = {"anyOf": [{"type": "string", "minLength": 1}, {"type": "array"}]}


def narrowed(document: dict[str, Any], state: State) -> dict[str, Any]:
    """The document as it is true of this server."""
    told, names = deepcopy(document), state.models.names
    lms = [served.lm for served in state.models.loaded]
    is_known = len(lms) == len(names)
    most = {"maximum": state.settings.max_n}
    sizes: dict[Any, dict[str, Any]] = {"Model": {"enum": names}, "N": most, "Best Of": most}
    if is_known:
        sizes |= _sizes([lm.config for lm in lms])
    for schema in _within(told["components"]["schemas"]):
        title = schema.get("title")
        for kind in _kinds(schema) if isinstance(title, str) and title in sizes else ():
            kind |= sizes[title]
    for parameter in told["paths"]["/v1/models/{id}"]["get"]["parameters"]:
        parameter["schema"] = {"enum": names}
    can_edit = state.settings.expert_edits and not (is_known and not any(lm.config.is_sparse for lm in lms))
    can_call = state.settings.tool_emulation or not is_known or any(call_mark(lm) is not None for lm in lms)
    for body in told["components"]["schemas"].values():
        fields = body.get("properties", {})
        if "experts" in fields and not can_edit:
            fields["experts"] = _NOTHING
        if "tools" in fields and not can_call:
            fields |= {"tools": _NOTHING, "tool_choice": {"enum": ["none", None]}}
        for kind in _kinds(fields["messages"]) if "messages" in fields else ():
            if not can_call:
                kind["items"] = {"anyOf": list(SPOKEN)}
            if is_known and not any(lm.chat_form for lm in lms):  # the contents are all there is
                kind["contains"] = {"properties": {"content": _SOMETHING}}
    return told


def _sizes(configs: list[Any]) -> dict[str, dict[str, Any]]:
    """By title, what else is true of a field."""
    context = {"maximum": max(c.max_position_embeddings for c in configs)}
    widths = {"enum": sorted({c.hidden_size for c in configs})}
    n_experts = max(c.num_local_experts or 0 for c in configs)
    return {
        **dict.fromkeys(("Max Tokens", "Max Completion Tokens", "Min Tokens"), context),
        **dict.fromkeys(("Dimensions", "Output Dimension"), widths),
        "a token id": {"maximum": max(c.vocab_size for c in configs) - 1},
        "a layer": {"maximum": max(c.num_hidden_layers for c in configs) - 1},
        "an expert": {"maximum": n_experts - 1},
        "experts a token": {"maximum": n_experts},
    }


def _kinds(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """What a field may be, but for null."""
    return [kind for kind in schema.get("anyOf", [schema]) if kind.get("type") != "null"]


def _within(value: Any) -> Iterator[dict[str, Any]]:
    """All objects in it, itself too."""
    if isinstance(value, dict):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _within(part)

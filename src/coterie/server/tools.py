"""Tools in a chat request: what the prompt, the grammar and the reading of the answer need.

    use = prepare(body.tools, body.tool_choice, turns, lm, emulate=settings.tool_emulation, parallel=...)
    request = use.begin(lm.chat_request(use.messages, params, tools=use.tools))
    use.grammar                      # (kind, spec) for `Grammar.compile`, or None; not beside a response_format
    reader = use.reader(is_streamed) # a `tool_reader.CallReader` for each sample; None where nothing may be called
    use.is_emulated                  # then the answer says `"x_tool_emulation": true`

Models with the tokens for it (Mistral v2 and v3) write calls after [TOOL_CALLS]; where a call is required, that token
ends the prompt and a grammar made of the tools' schemas holds the rest. Other models have it emulated, only if asked
for: the tools are described in the first turn, and the grammar allows a list of calls or a text that is no list.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from coterie.api import LanguageModel
from coterie.engine.request import Request
from coterie.errors import RequestError, nearest
from coterie.server.failures import ApiError, refused, translated
from coterie.server.tool_emulation import emulated_messages
from coterie.server.tool_reader import CallReader
from coterie.server.tool_schema import calls_schema
from coterie.tokenizer.tool_calls import read_tools

__all__ = ["ToolUse", "call_mark", "prepare"]

_WORDS = {"none": "none", "auto": "auto", "any": "required", "required": "required"}


@dataclass(frozen=True, slots=True)
class ToolUse:
    """`messages` and `tools` are for `lm.chat_request`; `choice` is "none", "auto", "required" or a tool's name."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    choice: str
    is_emulated: bool
    grammar: tuple[str, dict[str, Any]] | None
    mark: int | None  # the control id before calls, for models that have one

    @property
    def is_forced(self) -> bool:
        """The answer is calls, whatever the model would rather do."""
        return self.choice not in ("none", "auto")

    def begin(self, request: Request) -> Request:
        """The request, its prompt ended with the mark of calls where a call is required."""
        if self.mark is None or not self.is_forced:
            return request
        return replace(request, prompt_ids=(*request.prompt_ids, self.mark), context_ids=())

    def reader(self, is_streamed: bool) -> CallReader | None:
        """What turns the text of one sample into text and calls."""
        if self.choice == "none":
            return None
        begins = self.is_forced and self.mark is not None
        return CallReader(is_streamed=is_streamed, begins=begins, mark=self.mark, in_text=self.is_emulated)


def call_mark(lm: LanguageModel) -> int | None:
    """The control id after which it writes calls; None where calls must be emulated."""
    return None if lm.chat_form is None or not lm.has_tokenizer else lm.chat_form.call_mark(lm.tokenizer)


def prepare(
    tools: Any,
    tool_choice: Any,
    messages: Sequence[Mapping[str, Any]],
    lm: LanguageModel,
    *,
    emulate: bool,
    parallel: bool | None = None,
) -> ToolUse:
    """How these tools are used, also where there are none (then messages pass as they are). Raises `ApiError` 400."""
    turns = [_without_name(turn) for turn in messages]
    history = any(turn.get("tool_calls") or turn.get("role") == "tool" for turn in turns)
    if tools is None and tool_choice not in (None, "none"):
        raise refused("tool_choice", "tool_choice is given without tools, expected tools to choose from")
    if tools is None and not history:
        return ToolUse(turns, None, "none", False, None, None)
    known = [] if tools is None else _read(tools)
    choice = "none" if tools is None else _choice(tool_choice, known)
    mark = call_mark(lm)
    if mark is None and not emulate:
        raise _unsupported("tools" if tools is not None else "messages")
    return _use(turns, known, choice, mark, parallel is not False)


def _use(
    turns: list[dict[str, Any]], tools: list[dict[str, Any]], choice: str, mark: int | None, many: bool
) -> ToolUse:
    schema = None
    if choice != "none":
        named = [tool for tool in tools if choice in ("auto", "required", tool["function"]["name"])]
        try:
            schema = calls_schema(named, many=many and len(named) == len(tools), has_ids=mark is not None)
        except RequestError as e:
            raise translated(e, "tools") from None
    offered = tools if choice != "none" else []
    if mark is not None:
        grammar = None if schema is None or choice == "auto" else ("json_schema", schema)
        return ToolUse(turns, offered or None, choice, False, grammar, mark)
    try:
        described = emulated_messages(turns, offered, choice)
    except RequestError as e:
        raise translated(e, "messages") from None
    kind = "json_or_text" if choice == "auto" else "json_schema"
    return ToolUse(described, None, choice, bool(tools), None if schema is None else (kind, schema), None)


def _read(tools: Any) -> list[dict[str, Any]]:
    try:
        return read_tools(tools)
    except RequestError as e:
        raise translated(e, "tools") from None


def _choice(value: Any, tools: list[dict[str, Any]]) -> str:
    """One of the words, or the name of the tool."""
    if value is None:
        return "auto"
    if isinstance(value, str) and value in _WORDS:
        return _WORDS[value]
    function = value.get("function") if isinstance(value, Mapping) and value.get("type") == "function" else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        expected = f"one of {', '.join(_WORDS)}, or an object that names a function"
        raise refused("tool_choice", f"tool_choice is {_shown(value)}, expected {expected}")
    names = [tool["function"]["name"] for tool in tools]
    if name not in names:
        raise refused(
            "tool_choice", f"tool_choice names {_shown(name)}, which is not among the tools{nearest(name, names)}"
        )
    return name


def _without_name(turn: Mapping[str, Any]) -> dict[str, Any]:
    """The turn without the name of who speaks, which no form writes; a tool's name stays."""
    return {k: v for k, v in turn.items() if k != "name" or turn.get("role") == "tool"}


def _unsupported(param: str) -> ApiError:
    return refused(
        param,
        f"{param} asks for calls of tools, which this model has no tokens for: leave them out, or set "
        "tool_emulation = true in the server's --config file",
        code="tools_unsupported",
    )


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."

"""POST /v1/chat/completions: the fields of OpenAI's and of Mistral's request, and those of local servers."""

from typing import Annotated, Any, ClassVar

from pydantic import WithJsonSchema

from coterie.server.failures import refused
from coterie.server.schema_fields import flag, opaque, text, whole
from coterie.server.schema_forms import NOTHING, TOOL_CHOICE, TOOLS
from coterie.server.schema_messages import MESSAGES
from coterie.server.schema_sampling import MOST_TOKENS, Sampled
from coterie.server.settings import Settings

__all__ = ["ChatBody", "Conversation"]

_EMPTY = opaque(dict, "an object", {"type": "object", "maxProperties": 0})
_LIST = opaque(list, "a list of tools", TOOLS)


class Conversation(Sampled):
    """What makes a prompt out of messages, also for /apply-template and /tokenize."""

    messages: Annotated[list[dict[str, Any]], MESSAGES]
    add_generation_prompt: Annotated[bool, flag()] | None = None
    continue_final_message: Annotated[bool, flag()] | None = None
    strict_roles: Annotated[bool, flag()] | None = None
    safe_prompt: Annotated[bool, flag()] | None = None
    safe_mode: Annotated[bool, flag()] | None = None
    tools: Annotated[list[Any], _LIST] | None = None
    tool_choice: Annotated[Any, TOOL_CHOICE] | None = None
    parallel_tool_calls: Annotated[bool, flag()] | None = None
    chat_template: Annotated[Any, NOTHING] = None
    chat_template_kwargs: Annotated[dict[str, Any], _EMPTY] | None = None

    def check(self, settings: Settings) -> None:
        super().check(settings)
        if self.chat_template is not None:
            raise refused(
                "chat_template",
                "chat_template is given, expected none: templates are programs, and the server runs none from outside",
            )
        if self.chat_template_kwargs:
            name = next(iter(self.chat_template_kwargs))[:80]
            raise refused("chat_template_kwargs", f"chat_template_kwargs holds {name!r}, expected an empty object")
        if self.continue_final_message and self.add_generation_prompt:
            raise refused(
                "continue_final_message",
                "continue_final_message and add_generation_prompt are both true, expected at most one of them",
            )


class ChatBody(Conversation):
    """A request for an answer to a conversation."""

    unread: ClassVar[tuple[str, ...]] = (
        *Sampled.unread,
        *("prediction", "guardrails", "prompt_mode", "reasoning_effort", "modalities", "audio", "web_search_options"),
        *("verbosity", "prompt_logprobs", "top_prompt_logprobs"),
    )

    logprobs: Annotated[bool, flag()] | None = None
    top_logprobs: Annotated[int, whole(0, 20)] | None = None
    max_completion_tokens: Annotated[int, whole(0, MOST_TOKENS)] | None = None
    store: Annotated[bool, flag()] | None = None
    prompt_cache_key: Annotated[str, text(1024)] | None = None
    prediction: Any = None
    guardrails: Any = None
    prompt_mode: Any = None
    reasoning_effort: Any = None
    modalities: Annotated[Any, WithJsonSchema({"enum": [["text"], None]})] = None
    audio: Any = None
    web_search_options: Any = None
    verbosity: Any = None
    prompt_logprobs: Any = None
    top_prompt_logprobs: Any = None

    def check(self, settings: Settings) -> None:
        super().check(settings)
        if self.top_logprobs is not None and not self.logprobs:
            raise refused("top_logprobs", "top_logprobs is given without logprobs, expected logprobs to be true")
        if isinstance(self.modalities, list) and self.modalities != ["text"]:
            raise refused("modalities", 'modalities asks for more than text, expected ["text"]')

    @property
    def most_tokens(self) -> tuple[str, int | None]:
        """The field that bounds the answer, and its bound: `max_completion_tokens` wins."""
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return "max_tokens", self.max_tokens

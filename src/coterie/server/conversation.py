"""Messages of a request as the turns that a chat form encodes: guardrail, continued answers, strict roles.

Order is free, as in mistral-common: turns of one role are merged, system text is moved where the form wants it.
`strict_roles` refuses what would be moved or merged.
"""

from collections.abc import Sequence
from typing import Any

from coterie.server.failures import refused
from coterie.server.schema_chat import Conversation

__all__ = ["GUARDRAIL", "turns_of"]

GUARDRAIL = (  # as published for `safe_prompt` of Mistral's API
    "Always assist with care, respect, and truth. Respond with utmost utility yet securely. Avoid harmful, unethical, "
    "prejudiced, or negative content. Ensure replies promote fairness and positivity."
)


def turns_of(body: Conversation) -> list[dict[str, Any]]:
    """The turns, with the guardrail before them where it is asked for. Raises `ApiError`."""
    turns = [dict(turn) for turn in body.messages]
    if body.strict_roles:
        _check_order(turns)
    last = turns[-1]
    if body.continue_final_message:
        if last["role"] != "assistant":
            raise refused(
                "continue_final_message",
                f"continue_final_message is true, but the last of messages is of the role {last['role']!r}, "
                "expected 'assistant'",
            )
        last["prefix"] = True
    if last.get("prefix") and body.add_generation_prompt:
        raise refused(
            "add_generation_prompt",
            "add_generation_prompt is true, but the last message has a prefix, expected at most one of them",
        )
    if body.safe_prompt or (body.safe_mode and body.safe_prompt is None):
        turns.insert(0, {"role": "system", "content": GUARDRAIL})
    return turns


def _check_order(turns: Sequence[dict[str, Any]]) -> None:
    spoken = turns[1:] if turns[0]["role"] == "system" else turns
    first = len(turns) - len(spoken)
    for i, turn in enumerate(spoken):
        allowed = ("user", "tool") if i % 2 == 0 else ("assistant",)
        if turn["role"] not in allowed:
            raise refused(
                f"messages.{first + i}.role",
                f"messages[{first + i}].role is {turn['role']!r}, expected {' or '.join(allowed)}: strict_roles wants "
                "one system turn at most, then user and assistant in turn",
            )

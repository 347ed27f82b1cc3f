"""Turns: the guardrail, continued answers, strict roles."""

from typing import Any

import pytest

from coterie.server.conversation import GUARDRAIL, turns_of
from coterie.server.failures import ApiError
from coterie.server.schema import read
from coterie.server.schema_chat import Conversation

USER, ASSISTANT = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
SYSTEM = {"role": "system", "content": "s"}


def turns(messages: list[dict[str, Any]], **fields: Any) -> list[dict[str, Any]]:
    return turns_of(read(Conversation, {"messages": messages, **fields}))


def test_the_guardrail_comes_first() -> None:
    safe = [{"role": "system", "content": GUARDRAIL}, SYSTEM, USER]
    assert turns([SYSTEM, USER], safe_prompt=True) == safe == turns([SYSTEM, USER], safe_mode=True)
    assert turns([USER], safe_prompt=False, safe_mode=True) == [USER] == turns([USER])
    assert GUARDRAIL.startswith("Always assist with care") and GUARDRAIL.endswith("fairness and positivity.")


def test_a_last_answer_is_continued() -> None:
    assert turns([USER, ASSISTANT], continue_final_message=True)[-1]["prefix"] is True
    with pytest.raises(ApiError, match="continue_final_message"):
        turns([USER], continue_final_message=True)
    with pytest.raises(ApiError, match="add_generation_prompt"):
        turns([USER, {**ASSISTANT, "prefix": True}], add_generation_prompt=True)


@pytest.mark.parametrize("messages", [[USER, USER], [ASSISTANT, USER], [USER, SYSTEM], [SYSTEM, SYSTEM, USER]])
def test_strict_roles_refuse_what_would_be_merged_or_moved(messages: list[dict[str, Any]]) -> None:
    assert turns(messages) == messages
    with pytest.raises(ApiError, match="strict_roles"):
        turns(messages, strict_roles=True)


def test_strict_roles_take_what_is_in_order() -> None:
    turns([SYSTEM, USER, ASSISTANT, USER], strict_roles=True)

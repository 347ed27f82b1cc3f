"""Conversations to ids, one class for each form that Mixtral models and their fine-tunes were trained on.

All forms share this: the marks of a form are written here and become control ids where the tokenizer has them; what
people wrote is encoded as text, so a mark typed by a user stays text. Each piece of text is encoded on its own, as the
training did, so it gains SentencePiece's space in front: joining the text first gives other ids (`Hi` after
`[/INST]` is 15359 in Mixtral's vocabulary, not 23809). Where no control token exists for a mark (`[INST]` in v1), a
typed one cannot be told apart; that is the form, not a fault.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from coterie.errors import RequestError, TokenizerError
from coterie.tokenizer.messages import Message, merge, read_messages, system_text
from coterie.tokenizer.protocol import SpacesOnce, Tokenizer
from coterie.tokenizer.tool_calls import loaded, read_tools, short_id

__all__ = ["ChatForm", "ChatML", "Llama2", "MistralV1", "MistralV2", "MistralV3", "Zephyr"]


class ChatForm(ABC):
    """A way to write conversations. `stop_strings`: what ends an answer where no control token does."""

    stop_strings: tuple[str, ...] = ()

    def __init__(self, name: str):
        self.name = name

    def encode(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        tokenizer: Tokenizer,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[int]:
        """The ids from BOS to where the assistant answers; `tools` are those that it may call.

        `RequestError` for a conversation that is not one, and for tools where the form or the vocabulary has none.
        """
        turns = read_messages(messages)
        known = read_tools(tools) if tools else []
        if not known and not any(turn.tool_calls or turn.role == "tool" for turn in turns):
            return self._encode(turns, tokenizer)
        if self.call_mark(tokenizer) is None:
            raise RequestError(f"the chat form {self.name} of this model has no tokens for tools: leave tools out")
        return self._encode_tools(turns, tokenizer, known)

    def call_mark(self, tokenizer: Tokenizer) -> int | None:
        """The control id after which the model writes calls of tools, as a JSON list; None where it cannot."""
        return None

    def stop_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """The ids that end an answer."""
        return () if tokenizer.eos_id is None else (tokenizer.eos_id,)

    @abstractmethod
    def _encode(self, turns: list[Message], tokenizer: Tokenizer) -> list[int]: ...

    def _encode_tools(self, turns: list[Message], tokenizer: Tokenizer, tools: list[dict[str, Any]]) -> list[int]:
        """The same with tools; only asked where `call_mark` gives one."""
        raise NotImplementedError


class MistralV1(ChatForm):
    """Mixtral-8x7B-Instruct v0.1: `[INST] text [/INST]` as plain text, turn by turn; system text before the first.

    Source: mistral-common, InstructTokenizerV1 and InstructRequestNormalizer.
    """

    def _encode(self, turns: list[Message], tokenizer: Tokenizer) -> list[int]:
        system = system_text(turns)
        ids = _bos(tokenizer)
        for i, turn in enumerate(_alternating(turns)):
            content = f"{system}\n\n{turn.content}" if system and i == 0 else turn.content
            ids += self._turn(turn, content, tokenizer)
        return ids

    def _turn(self, turn: Message, content: str, tokenizer: Tokenizer) -> list[int]:
        if turn.role == "user":
            return tokenizer.encode(f"[INST] {content} [/INST]")
        return tokenizer.encode(content) + ([] if turn.prefix else [_eos(tokenizer, self)])


class MistralV2(MistralV1):
    """Mistral v2: `[INST]` is a control token, and the last user turn takes the system text and the tools.

    Source: mistral-common, InstructTokenizerV2. Spaces that end an answer are dropped, and so are calls of tools and
    their results before the last user turn.
    """

    _keeps_calls = False
    _TOOL_MARKS = ("[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]")

    def call_mark(self, tokenizer: Tokenizer) -> int | None:
        ids = [tokenizer.control_id(mark) for mark in self._TOOL_MARKS]
        return None if None in ids else ids[-1]

    def _encode(self, turns: list[Message], tokenizer: Tokenizer) -> list[int]:
        return self._encode_tools(turns, tokenizer, [])

    def _encode_tools(self, turns: list[Message], tokenizer: Tokenizer, tools: list[dict[str, Any]]) -> list[int]:
        system, ids, spoken = system_text(turns), _bos(tokenizer), _alternating(turns)
        last = max(i for i, turn in enumerate(spoken) if turn.role == "user")
        for i, turn in enumerate(spoken):
            if i == last and tools:
                ids += self._marked("[AVAILABLE_TOOLS]", tools, tokenizer, "[/AVAILABLE_TOOLS]")
            if turn.role == "tool" or turn.tool_calls:
                ids += self._calls_or_result(turn, tokenizer) if self._keeps_calls or i > last else []
            else:
                content = f"{system}\n\n{turn.content}" if system and i == last else turn.content
                ids += self._turn(turn, content, tokenizer)
            if turn.role == "tool" and i > last and not self._keeps_calls and spoken[i - 1].role == "tool":
                raise RequestError(f"the chat form {self.name} can write one tool result for each answer, not several")
        return ids

    def _turn(self, turn: Message, content: str, tokenizer: Tokenizer) -> list[int]:
        if turn.role == "assistant":
            return super()._turn(turn, content.rstrip(" "), tokenizer)
        return [_control(tokenizer, "[INST]", self), *tokenizer.encode(content), _control(tokenizer, "[/INST]", self)]

    def _calls_or_result(self, turn: Message, tokenizer: Tokenizer) -> list[int]:
        if turn.role == "tool":
            return self._marked("[TOOL_RESULTS]", self._result(turn), tokenizer, "[/TOOL_RESULTS]")
        if turn.content:
            raise RequestError(f"the chat form {self.name} cannot write text and tool_calls in one answer of messages")
        return [*self._marked("[TOOL_CALLS]", self._calls(turn), tokenizer), _eos(tokenizer, self)]

    def _marked(self, mark: str, content: Any, tokenizer: Tokenizer, *after: str) -> list[int]:
        text = json.dumps(content, ensure_ascii=False)
        return [
            _control(tokenizer, mark, self),
            *tokenizer.encode(text),
            *(_control(tokenizer, m, self) for m in after),
        ]

    def _calls(self, turn: Message) -> list[dict[str, Any]]:
        return [{"name": call.name, "arguments": loaded(call.arguments)} for call in turn.tool_calls]

    def _result(self, turn: Message) -> Any:
        return [{"name": turn.name, "content": loaded(turn.content)}]


class MistralV3(MistralV2):
    """Mistral v3, tekken too: as v2, but calls and results have ids, and none is dropped.

    Source: mistral-common, InstructTokenizerV3.
    """

    _keeps_calls = True

    def _calls(self, turn: Message) -> list[dict[str, Any]]:
        calls = zip(super()._calls(turn), turn.tool_calls, strict=True)
        return [{**entry, "id": short_id(call.id)} for entry, call in calls]

    def _result(self, turn: Message) -> Any:
        return {"content": loaded(turn.content), "call_id": short_id(turn.tool_call_id or "")}


class Llama2(ChatForm):
    """Llama 2 chat: `[INST] <<SYS>>...<</SYS>> text [/INST] answer ` between BOS and EOS, again for each exchange.

    The one form with a BOS before every user turn. Source: meta-llama's generation.py (chat_completion), and the
    template published with the models.
    """

    def _encode(self, turns: list[Message], tokenizer: Tokenizer) -> list[int]:
        system = system_text(turns)
        ids: list[int] = []
        text = ""
        for i, turn in enumerate(_alternating(turns)):
            if turn.role == "user":
                content = f"<<SYS>>\n{system}\n<</SYS>>\n\n{turn.content}" if system and i == 0 else turn.content
                ids += _bos(tokenizer)
                text = f"[INST] {content.strip()} [/INST]"
            elif turn.prefix:
                text += f" {turn.content.strip()}"
            else:
                ids += [*_after_mark(tokenizer, f"{text} {turn.content.strip()} "), _eos(tokenizer, self)]
                text = ""
        return ids + (_after_mark(tokenizer, text) if text else [])


class ChatML(ChatForm):
    """`<|im_start|>role`, a line break, the text, `<|im_end|>`; system text is a turn like the others."""

    stop_strings = ("<|im_end|>",)

    def stop_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """`<|im_end|>`, and the end of the text by either name."""
        ends = [tokenizer.control_id("<|im_end|>"), *super().stop_ids(tokenizer), tokenizer.control_id("</s>")]
        return tuple(dict.fromkeys(i for i in ends if i is not None))

    def _encode(self, turns: list[Message], tokenizer: Tokenizer) -> list[int]:
        start, end = _mark(tokenizer, "<|im_start|>"), _mark(tokenizer, "<|im_end|>")
        parts: list[str | int] = []
        for turn in merge(turns):
            parts += [start, f"{turn.role}\n{turn.content}"]
            parts += [] if turn.prefix else [end, "\n"]
        if not turns[-1].prefix:
            parts += [start, "assistant\n"]
        return _bos(tokenizer) + _encode_parts(parts, tokenizer)


class Zephyr(ChatForm):
    """`<|user|>`, a line break, the text, EOS, a line break; system text is a turn like the others."""

    stop_strings = ("<|user|>", "<|system|>")

    def _encode(self, turns: list[Message], tokenizer: Tokenizer) -> list[int]:
        parts: list[str | int] = []
        for turn in merge(turns):
            parts += [_mark(tokenizer, f"<|{turn.role}|>"), f"\n{turn.content}"]
            parts += [] if turn.prefix else [_eos(tokenizer, self), "\n"]
        if not turns[-1].prefix:
            parts += [_mark(tokenizer, "<|assistant|>"), "\n"]
        return _bos(tokenizer) + _encode_parts(parts, tokenizer)


def _alternating(turns: Iterable[Message]) -> list[Message]:
    """The turns without the system's, runs merged. As in mistral-common, system text between two user turns keeps them
    apart, and an empty user turn begins a conversation in which the user says nothing or the assistant speaks first."""
    spoken = [turn for turn in merge(turns) if turn.role != "system"]
    return spoken if spoken and spoken[0].role == "user" else [Message("user", ""), *spoken]


def _encode_parts(parts: Iterable[str | int], tokenizer: Tokenizer) -> list[int]:
    """Texts that follow each other are encoded as one, ids stand for themselves; the first text is one at the start."""
    ids: list[int] = []
    text, is_first = "", True
    for part in [*parts, -1]:
        if isinstance(part, str):
            text += part
            continue
        if text:
            ids += tokenizer.encode(text) if is_first else _after_mark(tokenizer, text)
            text = ""
        ids.append(part)
        is_first = False
    return ids[:-1]


def _after_mark(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode_after_mark(text) if isinstance(tokenizer, SpacesOnce) else tokenizer.encode(text)


def _mark(tokenizer: Tokenizer, text: str) -> str | int:
    """The mark's control id, or its text where the tokenizer has no such token."""
    token_id = tokenizer.control_id(text)
    return text if token_id is None else token_id


def _control(tokenizer: Tokenizer, text: str, form: ChatForm) -> int:
    token_id = tokenizer.control_id(text)
    if token_id is None:
        raise TokenizerError(f"the chat form {form.name} needs the control token {text}, which this tokenizer has not")
    return token_id


def _bos(tokenizer: Tokenizer) -> list[int]:
    return [] if tokenizer.bos_id is None else [tokenizer.bos_id]


def _eos(tokenizer: Tokenizer, form: ChatForm) -> int:
    if tokenizer.eos_id is None:
        raise TokenizerError(f"the chat form {form.name} needs a token that ends a text, which this tokenizer has not")
    return tokenizer.eos_id

"""Some 200 requests that are wrong, each by name: what is sent, what has to come back.

The statuses are those of OpenAI's dialect; a wrong value in Mistral's is 422. `param` is the first part of the field
that the answer has to name, None where no field is to blame.
"""

from dataclasses import dataclass, field
from typing import Any

__all__ = ["BAD_REQUESTS", "Bad"]

CHAT, TEXT, EMBED = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
MISTRAL = {"user-agent": "mistral-client-python/3.7.0"}
HELLO = [{"role": "user", "content": "Hello"}]


@dataclass(frozen=True)
class Bad:
    """One wrong request. `words` have to be in the message."""

    name: str
    body: Any
    param: str | None = None
    statuses: tuple[int, ...] = (400,)
    words: tuple[str, ...] = ()
    path: str = CHAT
    method: str = "POST"
    headers: dict[str, str] = field(default_factory=dict)
    longest: float = 2.0  # seconds; the server waits a little for a body that is said to come


def chat(name: str, param: str, *words: str, **fields: Any) -> Bad:
    return Bad(name, {"messages": HELLO, "max_tokens": 1, **fields}, param, words=words)


def said(name: str, messages: Any, *words: str) -> Bad:
    return chat(name, "messages", *words, messages=messages)


def text(name: str, param: str, *words: str, **fields: Any) -> Bad:
    return Bad(name, {"prompt": "Once", "max_tokens": 1, **fields}, param, words=words, path=TEXT)


def tool(**function: Any) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, **function}}]


def user(**fields: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": "Hello", **fields}]


MALFORMED = [
    Bad(f"malformed: {name}", body)
    for name, body in {
        "nothing": b"",
        "a brace": b"{",
        "a list": b"[]",
        "a text": b'"hello"',
        "a number": b"5",
        "null": b"null",
        "true": b"true",
        "a trailing comma": b'{"messages": [],}',
        "single quotes": b"{'messages': []}",
        "a comment": b'{"messages": [] /* none */}',
        "two documents": b'{"messages": []}{"messages": []}',
        "cut short": b'{"messages": [{"role": "user", "content": "He',
        "bytes that are no UTF-8": b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}',
        "UTF-16": '{"messages": []}'.encode("utf-16"),
        "a bare control character": b'{"messages": [{"role": "user", "content": "a\x01b"}]}',
        "a bad escape": b'{"messages": [{"role": "user", "content": "\\q"}]}',
        "a form": b"messages=hello&model=demo",
        "XML": b"<messages/>",
        "100 lists deep": b'{"messages": ' + b"[" * 100 + b"]" * 100 + b"}",
        "100,000 lists deep": b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "100,000 braces": b'{"a":' * 100_000,
        "zeros": b"\x00" * 100,
        "the last of 300,000 names twice": b"{" + b",".join(b'"%d":1' % i for i in range(300_000)) + b',"299999":2}',
        "a name that is there twice": b'{"messages": [{"role": "user", "content": "a"}], "messages": []}',
        "a lone surrogate": b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
    }.items()
]
MESSAGES = [
    Bad("no messages", {"max_tokens": 1}, "messages"),
    said("messages: null", None),
    said("messages: a text", "Hello"),
    said("messages: a number", 5),
    said("messages: an object", {"role": "user", "content": "Hello"}),
    said("messages: none", [], "messages"),
    said("messages: numbers", [123]),
    said("messages: a list in a list", [[]]),
    said("messages: null in a list", [None]),
    said("messages: an empty object", [{}]),
    said("messages: no role", [{"content": "Hello"}]),
    said("messages: no content", [{"role": "user"}]),
    said("messages: a role of null", [{"role": None, "content": "Hello"}]),
    said("messages: a role that is a number", user(role=123), "role"),
    said("messages: an unknown role", user(role="wizard"), "role", "wizard"),
    said("messages: a role in capitals", user(role="USER"), "role"),
    said("messages: a role with a zero byte", user(role="user\x00"), "role"),
    said("messages: content that is a number", user(content=123), "content"),
    said("messages: content that is true", user(content=True), "content"),
    said("messages: content of null", user(content=None), "content"),
    said("messages: content that is an object", user(content={"text": "Hello"}), "content"),
    said("messages: parts that are texts", user(content=["Hello"]), "content"),
    said("messages: a part without a type", user(content=[{"text": "Hello"}]), "content"),
    said("messages: a part without text", user(content=[{"type": "text"}]), "content"),
    said("messages: a part whose text is a number", user(content=[{"type": "text", "text": 5}]), "content"),
    said("messages: a part of an unknown type", user(content=[{"type": "hologram"}]), "content"),
    said(
        "messages: an image",
        user(content=[{"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/cat.png"}}]),
        "content",
    ),
    said("messages: a file's image", user(content=[{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}])),
    said("messages: sound", user(content=[{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}])),
    said(
        "messages: a prefix that is a text", [*HELLO, {"role": "assistant", "content": "H", "prefix": "yes"}], "prefix"
    ),
    said("messages: a result of a tool that nobody called", [*HELLO, {"role": "tool", "content": "5"}]),
    said("messages: calls that are a text", [*HELLO, {"role": "assistant", "content": "", "tool_calls": "f()"}]),
    said("messages: too much for the context", user(content="word " * 20_000)),
]
SAMPLING = [
    chat("model: a number", "model", model=123),
    chat("model: a list", "model", model=["demo"]),
    Bad("model: unknown", {"messages": HELLO, "model": "gpt-4"}, "model", (404,), ("gpt-4", "demo")),
    Bad("model: nearly", {"messages": HELLO, "model": "demoo"}, "model", (404,), ("demo",)),
    Bad("model: a path", {"messages": HELLO, "model": "../../etc/passwd"}, "model", (404,)),
    Bad("model: an address", {"messages": HELLO, "model": "http://127.0.0.1:1/x"}, "model", (404,)),
    Bad("model: a long name", {"messages": HELLO, "model": "m" * 100_000}, "model", (400, 404)),
    chat("stream: a text", "stream", stream="yes"),
    chat("stream: a number", "stream", stream=1),
    chat("stream_options: a text", "stream_options", stream=True, stream_options="usage"),
    chat("stream_options: without a stream", "stream_options", "stream", stream_options={"include_usage": True}),
    chat("stream_options: usage as a text", "stream_options", stream=True, stream_options={"include_usage": "yes"}),
    chat("stop: a number", "stop", stop=5),
    chat("stop: numbers", "stop", stop=[5]),
    chat("stop: an object", "stop", stop={"a": "b"}),
    chat("stop: an empty text in a list", "stop", stop=[""]),
    chat("stop: 17", "stop", "16", stop=[str(i) for i in range(17)]),
    chat("stop: 257 characters", "stop", "256", stop=["x" * 257]),
    chat("stop_token_ids: a number", "stop_token_ids", stop_token_ids=5),
    chat("stop_token_ids: beyond the vocabulary", "stop_token_ids", stop_token_ids=[10_000_000]),
    chat("logprobs: a number", "logprobs", logprobs=5),
    chat("top_logprobs: without logprobs", "top_logprobs", "logprobs", top_logprobs=3),
    chat("logit_bias: a list", "logit_bias", logit_bias=[1]),
    chat("logit_bias: a word", "logit_bias", logit_bias={"hello": 1}),
    chat("logit_bias: a negative id", "logit_bias", logit_bias={"-5": 1}),
    chat("logit_bias: beyond the vocabulary", "logit_bias", logit_bias={"10000000": 1}),
    chat("logit_bias: 1025 entries", "logit_bias", "1024", logit_bias={str(i): 1 for i in range(1025)}),
    chat("logit_bias: digits of another script", "logit_bias", logit_bias={"٣": 1}),
    chat("max_tokens: more than the context", "max_tokens", max_tokens=10_000_000),
    chat("min_tokens: more than max_tokens", "min_tokens", min_tokens=2),
    chat("temperature: a word", "temperature", temperature="hot"),
    chat("seed: a word", "seed", seed="random"),
    chat("user: a number", "user", user=5),
    chat("continue_final_message: a text", "continue_final_message", continue_final_message="yes"),
    chat(
        "continue_final_message: and a new turn", "continue_final_message",
        messages=[*HELLO, {"role": "assistant", "content": "H"}],
        continue_final_message=True, add_generation_prompt=True,
    ),
    Bad("safe_prompt: a text", {"messages": HELLO, "safe_prompt": "yes"}, "safe_prompt", (422,)),
    chat("chat_template: one of the caller's", "chat_template", chat_template="{{ ''.__class__.__mro__ }}"),
    chat("chat_template_kwargs: a list", "chat_template_kwargs", chat_template_kwargs=[1]),
    chat("chat_template_kwargs: tokenize", "chat_template_kwargs", chat_template_kwargs={"tokenize": True}),
    chat("return_routing: a word", "return_routing", return_routing="both"),
    chat("return_routing: a number", "return_routing", return_routing=1),
    chat("experts: a list", "experts", experts=[1]),
    chat("experts: an unknown key", "experts", experts={"boost": []}),
    chat("experts: a layer that is not there", "experts", experts={"ban": [[1000, 0]]}),
    chat("experts: an expert that is not there", "experts", experts={"ban": [[0, 1000]]}),
    chat("experts: three numbers for a pair", "experts", experts={"ban": [[0, 0, 0]]}),
    chat("experts: all of a layer", "experts", experts={"ban": [[0, e] for e in range(64)]}),
    chat("experts: more than there are", "experts", experts={"top_k": 1000}),
    chat("experts: bias without a value", "experts", experts={"bias": [[0, 0]]}),
]  # fmt: skip
TOOLS = [
    chat("tools: none in the list", "tools", tools=[]),
    chat("tools: a text", "tools", tools="f"),
    chat("tools: texts", "tools", tools=["f"]),
    chat("tools: an empty object", "tools", tools=[{}]),
    chat("tools: of an unknown type", "tools", tools=[{"type": "shell", "function": {"name": "f"}}]),
    chat("tools: without a name", "tools", tools=[{"type": "function", "function": {}}]),
    chat("tools: a name that is a number", "tools", tools=tool(name=5)),
    chat("tools: a name with blanks", "tools", tools=tool(name="rm -rf /")),
    chat("tools: a name of 65 characters", "tools", tools=tool(name="f" * 65)),
    chat("tools: parameters that are a list", "tools", tools=tool(parameters=[1])),
    chat("tools: of a model that has no words for them", "tools", tools=tool()),
    chat("tool_choice: without tools", "tool_choice", tool_choice="required"),
    chat("tool_choice: a word", "tool_choice", tools=tool(), tool_choice="maybe"),
    chat("tool_choice: a number", "tool_choice", tools=tool(), tool_choice=5),
    Bad(
        "tool_choice: of a tool that is not there",
        {"messages": HELLO, "tools": tool(), "tool_choice": {"type": "function", "function": {"name": "g"}}},
    ),
    chat("parallel_tool_calls: a text", "parallel_tool_calls", parallel_tool_calls="no"),
]
FORMATS = [
    chat("response_format: a text", "response_format", response_format="json"),
    chat("response_format: an empty object", "response_format", response_format={}),
    chat("response_format: of an unknown type", "response_format", response_format={"type": "yaml"}),
    chat("response_format: json_schema without one", "response_format", response_format={"type": "json_schema"}),
    chat(
        "response_format: a schema that is a list", "response_format",
        response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": [1]}},
    ),
    chat(
        "response_format: a schema that is a number", "response_format",
        response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": 5}},
    ),
    chat(
        "response_format: a name of 65 characters", "response_format",
        response_format={"type": "json_schema", "json_schema": {"name": "a" * 65, "schema": {"type": "object"}}},
    ),
    chat(
        "response_format: a schema of an unknown type", "response_format",
        response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "spaceship"}}},
    ),
    chat("structured_outputs: a text", "structured_outputs", structured_outputs="json"),
    chat("structured_outputs: two at once", "structured_outputs", structured_outputs={"regex": "a", "choice": ["b"]}),
    chat("structured_outputs: an unknown kind", "structured_outputs", structured_outputs={"prolog": "a."}),
    chat("structured_outputs: none of the choices", "structured_outputs", structured_outputs={"choice": []}),
    chat("structured_outputs: a choice that is a number", "structured_outputs", structured_outputs={"choice": [5]}),
    chat("structured_outputs: half a regex", "structured_outputs", structured_outputs={"regex": "("}),
    chat("structured_outputs: half a grammar", "structured_outputs", structured_outputs={"grammar": "start: ("}),
    chat("guided_regex: half a regex", "guided_regex", guided_regex="["),
    chat("guided_choice: a text", "guided_choice", guided_choice="yes"),
    chat("grammar: half of one", "grammar", grammar="root ::= ("),
]  # fmt: skip
COMPLETIONS = [
    Bad("prompt: missing", {"max_tokens": 1}, "prompt", path=TEXT),
    text("prompt: null", "prompt", prompt=None),
    text("prompt: a number", "prompt", prompt=5),
    text("prompt: an object", "prompt", prompt={"text": "Once"}),
    text("prompt: an empty text", "prompt", prompt=""),
    text("prompt: an empty list", "prompt", prompt=[]),
    text("prompt: an empty list of ids", "prompt", prompt=[[]]),
    text("prompt: a negative id", "prompt", prompt=[-1]),
    text("prompt: an id beyond the vocabulary", "prompt", prompt=[10_000_000]),
    text("prompt: texts and ids", "prompt", prompt=["Once", 5]),
    text("prompt: too much for the context", "prompt", prompt="word " * 20_000),
    text("best_of: fewer than n", "best_of", best_of=1, n=2),
    text("best_of: with a stream", "best_of", best_of=2, stream=True),
    text("suffix: not known here", "suffix", suffix="the end"),
    text("echo: a text", "echo", echo="yes"),
    Bad("input: missing", {}, "input", path=EMBED),
    Bad("input: an empty list", {"input": []}, "input", path=EMBED),
    Bad("input: an empty text", {"input": ""}, "input", path=EMBED),
    Bad("input: an object", {"input": {}}, "input", path=EMBED),
    Bad("encoding_format: a word", {"input": "a", "encoding_format": "hex"}, "encoding_format", path=EMBED),
    Bad("tokenize: nothing", {}, path="/tokenize"),
    Bad("tokenize: a number", {"prompt": 5}, "prompt", path="/tokenize"),
    Bad("detokenize: nothing", {}, "tokens", path="/detokenize"),
    Bad("detokenize: a text", {"tokens": "abc"}, "tokens", path="/detokenize"),
    Bad("detokenize: beyond the vocabulary", {"tokens": [10_000_000]}, "tokens", path="/detokenize"),
    Bad("apply-template: nothing", {}, "messages", path="/apply-template"),
]
MISTRALS = [
    Bad("mistral: no messages", {"model": "demo"}, "messages", (422,), headers=MISTRAL),
    Bad("mistral: an unknown role", {"messages": user(role="wizard")}, "messages", (422,), headers=MISTRAL),
    Bad("mistral: a hot model", {"messages": HELLO, "temperature": 3}, "temperature", (422,), headers=MISTRAL),
    Bad("mistral: half a seed", {"messages": HELLO, "random_seed": 0.5}, "random_seed", (422,), headers=MISTRAL),
    Bad("mistral: a choice", {"messages": HELLO, "tool_choice": "maybe"}, "tool_choice", (422,), headers=MISTRAL),
    Bad("mistral: an unknown model", {"messages": HELLO, "model": "x"}, "model", (404,), headers=MISTRAL),
    Bad("mistral: to fill in the middle", {"prompt": "a", "suffix": "b"}, None, (501,), path="/v1/fim/completions"),
    Bad("mistral: malformed", b"{", None, (400, 422), headers=MISTRAL),
]
JSON = {"messages": HELLO, "max_tokens": 1}
PROTOCOL = [
    *(
        Bad(f"verb: {verb} of the chat", None, method=verb, statuses=(405,))
        for verb in ("GET", "PUT", "DELETE", "PATCH")
    ),
    *(Bad(f"verb: {verb}", None, method=verb, statuses=(400, 403, 405)) for verb in ("TRACE", "BREW", "OPTIONS")),
    Bad("verb: POST of the models", JSON, path="/v1/models", statuses=(405,)),
    Bad("verb: POST of the health", JSON, path="/health", statuses=(405,)),
    Bad("route: unknown", JSON, path="/v1/teapots", statuses=(404,)),
    Bad("route: two slashes", JSON, path="//v1/chat/completions", statuses=(400, 404)),
    Bad("route: a slash too many", JSON, path=CHAT + "/", statuses=(400, 404)),
    Bad("route: up and down", JSON, path="/v1/../v1/chat/completions", statuses=(400, 404)),
    Bad("route: in capitals", JSON, path="/V1/chat/completions", statuses=(400, 404)),
    Bad("route: a model that is not there", None, method="GET", path="/v1/models/gpt-4", statuses=(404,)),
    *(
        Bad(f"type: {kind}", JSON, headers={"content-type": kind}, statuses=(415,))
        for kind in (
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "nonsense",
            "",
        )
    ),
    Bad("encoding: gzip", b"\x1f\x8b\x08\x00", headers={"content-encoding": "gzip"}, statuses=(400, 415)),
    Bad("body: too large", b'{"a": "' + b"x" * (5 << 20) + b'"}', statuses=(413,)),
    Bad("body: said to be too large", b"{}", headers={"content-length": str(1 << 40)}, statuses=(413,), longest=5),
]
BAD_REQUESTS = [*MALFORMED, *MESSAGES, *SAMPLING, *TOOLS, *FORMATS, *COMPLETIONS, *MISTRALS, *PROTOCOL]

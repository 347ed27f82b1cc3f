"""Tools in a request: choices, models with and without tokens for them, what the prompt and the grammar become."""

import json
from typing import Any

import pytest

import coterie
from coterie.api import LanguageModel
from coterie.engine.grammar import Grammar
from coterie.engine.request import SamplingParams
from coterie.errors import RequestError
from coterie.server.failures import ApiError
from coterie.server.tool_schema import calls_schema
from coterie.server.tools import ToolUse, prepare
from coterie.tokenizer import CHAT_FORMS, Tokenizer, load_tokenizer
from coterie.tokenizer.tool_calls import read_tools

PLACE = {"type": "object", "properties": {"place": {"type": "string", "maxLength": 9}}, "required": ["place"]}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "Tells", "parameters": PLACE}},
    {"type": "function", "function": {"name": "now"}},
]
ASK = [{"role": "user", "content": "How is it in Bern?", "name": "ann"}]
CALL = {"id": "abcdefgh1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
ANSWERED = [
    *ASK,
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "abcdefgh1", "content": "12:00"},
]


@pytest.fixture(scope="module")
def v3(mistral_files: dict[str, Any], make_model: Any) -> LanguageModel:
    """A model of random weights with the vocabulary that has tokens for tools."""
    tokenizer = load_tokenizer(mistral_files["v3"])
    model = make_model(vocab_size=tokenizer.vocab_size, num_hidden_layers=1, max_position_embeddings=1024)
    return LanguageModel(model, tokenizer, CHAT_FORMS["mistral-v3"], name="v3")


@pytest.fixture(scope="module")
def demo() -> LanguageModel:
    return coterie.load()


def use(lm: LanguageModel, tools: Any = TOOLS, choice: Any = None, messages: Any = ASK, **options: Any) -> ToolUse:
    return prepare(tools, choice, messages, lm, **{"emulate": True, **options})


def request_of(asked: ToolUse, lm: LanguageModel) -> Any:
    return asked.begin(lm.chat_request(asked.messages, SamplingParams(), tools=asked.tools))


def test_without_tools_messages_pass(demo: LanguageModel) -> None:
    asked = use(demo, None, emulate=False)
    assert asked.messages == [{"role": "user", "content": "How is it in Bern?"}] and asked.reader(True) is None
    assert asked.grammar is None and not asked.is_emulated and asked.tools is None


@pytest.mark.parametrize(
    ("tools", "choice", "param", "sentence"),
    [
        (None, "auto", "tool_choice", "without tools"),
        (None, {"type": "function", "function": {"name": "x"}}, "tool_choice", "without tools"),
        ([], None, "tools", "1 to 128"),
        (TOOLS, "always", "tool_choice", "expected one of none, auto, any, required"),
        (TOOLS, 7, "tool_choice", "tool_choice is 7"),
        (TOOLS, {"type": "function"}, "tool_choice", "names a function"),
        (TOOLS, {"type": "function", "function": {"name": "weathers"}}, "tool_choice", "did you mean 'weather'"),
        ([{"function": {"name": "f", "parameters": {"type": "array"}}}], None, "tools", "no object"),
    ],
)
def test_what_is_refused(tools: Any, choice: Any, param: str, sentence: str, demo: LanguageModel) -> None:
    with pytest.raises(ApiError, match=sentence) as e:
        use(demo, tools, choice)
    assert (e.value.status, e.value.param) == (400, param)


def test_a_model_without_the_tokens_says_so_unless_it_may_emulate(demo: LanguageModel) -> None:
    for tools, messages in ((TOOLS, ASK), (None, ANSWERED)):
        with pytest.raises(ApiError, match="tool_emulation = true") as e:
            use(demo, tools, messages=messages, emulate=False)
        assert e.value.code == "tools_unsupported"


def test_a_model_without_a_chat_form_never_takes_tools_as_they_are(demo: LanguageModel) -> None:
    messages = [{"role": "user", "content": "x"}]
    with pytest.raises(RequestError, match="no chat form, so it cannot call tools"):
        demo.chat_request(messages, SamplingParams(), tools=TOOLS)


def test_emulated_tools_are_in_the_first_turn_and_in_the_grammar(demo: LanguageModel) -> None:
    asked = use(demo)
    assert asked.is_emulated and asked.tools is None and asked.messages[0]["role"] == "system"
    assert '"weather"' in asked.messages[0]["content"] and asked.grammar and asked.grammar[0] == "json_or_text"
    forced = use(demo, choice="any")
    assert forced.choice == "required" and forced.grammar and forced.grammar[0] == "json_schema"
    assert use(demo, choice="none").grammar is None and len(use(demo, choice="none").messages) == 1


def test_emulated_history_is_plain_text(demo: LanguageModel) -> None:
    turns = use(demo, messages=ANSWERED).messages
    assert [t["role"] for t in turns] == ["system", "user", "assistant", "user"]
    assert json.loads(turns[2]["content"]) == [{"name": "now", "arguments": {}}]
    assert turns[3]["content"] == "The result of the function now:\n12:00"
    with pytest.raises(ApiError, match="which no tool call"):
        use(demo, messages=[*ASK, ANSWERED[-1]])


def test_native_tools_go_to_the_chat_form(v3: LanguageModel) -> None:
    asked = use(v3, messages=ANSWERED, emulate=False)
    assert not asked.is_emulated and asked.grammar is None
    text = [v3.tokenizer.piece(i) for i in request_of(asked, v3).prompt_ids]
    assert "[AVAILABLE_TOOLS]" in text and text[-1] == "[/TOOL_RESULTS]"
    assert "[AVAILABLE_TOOLS]" not in [v3.tokenizer.piece(i) for i in request_of(use(v3, choice="none"), v3).prompt_ids]


def test_a_required_call_is_begun_for_the_model(v3: LanguageModel) -> None:
    asked = use(v3, choice={"type": "function", "function": {"name": "now"}})
    assert v3.tokenizer.piece(request_of(asked, v3).prompt_ids[-1]) == "[TOOL_CALLS]"
    reader = asked.reader(is_streamed=False)
    assert reader is not None and reader.push('[{"name": "now", "arguments": {}}]')[0].name == "now"


def test_parallel_tool_calls_false_is_one_at_most(v3: LanguageModel) -> None:
    for parallel, most in ((None, 16), (True, 16), (False, 1)):
        grammar = use(v3, choice="required", parallel=parallel).grammar
        assert grammar is not None and grammar[1]["maxItems"] == most


@pytest.mark.parametrize("choice", ["auto", "required", {"type": "function", "function": {"name": "weather"}}])
@pytest.mark.parametrize("which", ["demo", "v3"])
def test_what_is_generated_reads_as_calls(which: str, choice: Any, request: pytest.FixtureRequest) -> None:
    lm: LanguageModel = request.getfixturevalue(which)
    asked = use(lm, choice=choice)
    if asked.grammar is None:
        return
    for seed in range(3):
        text = generated(Grammar.compile(*asked.grammar, lm.tokenizer), lm.tokenizer, seed)
        reader = asked.reader(is_streamed=True)
        assert reader is not None
        pieces = [p for c in text for p in reader.push(c)] + reader.finish()
        if choice == "auto" and not text.lstrip().startswith("["):
            assert "".join(p.text for p in pieces) == text
            continue
        assert reader.n_calls and {p.name for p in pieces if p.name} <= {"weather", "now"}


def generated(grammar: Grammar, tokenizer: Tokenizer, seed: int) -> str:
    """Text of random tokens among those that fit, short ones preferred at the end."""
    import torch

    generator, matcher, ids = torch.Generator().manual_seed(seed), grammar.matcher(), []
    while not matcher.is_done and len(ids) < 400:
        logits_V = torch.randn(tokenizer.vocab_size, generator=generator)
        matcher.mask_(logits_V)
        ids.append(int(logits_V.argmax()))
        matcher.accept(ids[-1])
    return tokenizer.decode(ids)


def test_pointers_in_a_tools_schema_are_moved() -> None:
    parameters = {
        "$defs": {"p": {"type": "object", "properties": {"next": {"$ref": "#/$defs/p"}}}},
        "type": "object",
        "properties": {"p": {"$ref": "#/$defs/p"}, "whole": {"$ref": "#"}},
    }
    schema = calls_schema(read_tools([{"function": {"name": "f", "parameters": parameters}}]), many=True)
    moved = schema["$defs"]["tool0"]
    assert moved["properties"] == {"p": {"$ref": "#/$defs/tool0/$defs/p"}, "whole": {"$ref": "#/$defs/tool0"}}
    assert moved["$defs"]["p"]["properties"]["next"] == {"$ref": "#/$defs/tool0/$defs/p"}


def test_a_pointer_that_moved_still_compiles(demo: LanguageModel) -> None:
    parameters = {"$defs": {"p": {"const": 7}}, "properties": {"p": {"$ref": "#/$defs/p"}}, "required": ["p"]}
    tools = [{"function": {"name": "f", "parameters": {**parameters, "additionalProperties": False}}}]
    grammar = use(demo, tools, "required", parallel=False).grammar
    assert grammar is not None
    text = generated(Grammar.compile(*grammar, demo.tokenizer), demo.tokenizer, 0)
    assert json.loads(text) == [{"name": "f", "arguments": {"p": 7}}]


def test_a_tool_whose_schema_is_too_deep_is_refused(demo: LanguageModel) -> None:
    deep: Any = {}
    for _ in range(70):
        deep = {"properties": {"a": deep}}
    with pytest.raises(ApiError, match="nested more than"):
        use(demo, [{"function": {"name": "f", "parameters": deep}}])

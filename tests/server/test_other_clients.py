"""One conversation each with LangChain and LiteLLM, where they are installed."""

from typing import Any

import pytest

pytestmark = pytest.mark.filterwarnings("ignore")  # they are not ours


def test_langchain(server: Any) -> None:
    module = pytest.importorskip("langchain_openai")
    chat = module.ChatOpenAI(base_url=f"{server.url}/v1", api_key="none", model="demo", max_tokens=8, temperature=0)
    first = chat.invoke("Once upon a time").content
    streamed = "".join(part.content for part in chat.stream("Once upon a time"))
    assert first == streamed
    assert chat.invoke([("user", "Once"), ("assistant", first), ("user", "and then?")]).content is not None


def test_litellm(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # it would ask the network
    module = pytest.importorskip("litellm")
    asked = {
        "model": "openai/demo",
        "api_base": f"{server.url}/v1",
        "api_key": "none",
        "messages": [{"role": "user", "content": "Once upon a time"}],
        "max_tokens": 8,
        "temperature": 0,
    }
    text = module.completion(**asked).choices[0].message.content
    assert "".join(c.choices[0].delta.content or "" for c in module.completion(**asked, stream=True)) == text

"""The chat page in Chromium, with answers that are given (`fake_chat_server`), and once with the model that ships."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed: no test of the page in a browser")
sys.path.insert(0, str(Path(__file__).parent))  # for the three modules beside this one

from fake_chat_server import FakeChat, running
from page_attacks import ATTACKS, BOMBS
from page_browser import CHROMIUM, DESKTOP, PHONE, Chat, browser, open_chat
from playwright.sync_api import Browser, expect

pytestmark = pytest.mark.skipif(
    not CHROMIUM.exists(), reason=f"{CHROMIUM} is missing: no test of the page in a browser"
)
SAY = "A mixture of experts reads each token with a few of its experts only."
MARKDOWN = """# Title

Some **bold**, *slanted*, ~~gone~~, `code` and a [link](https://example.org/a_(b)).
Second line, https://example.org/plain.

- one
- two
  - inner
3. three

> quoted **text**

```python
x = "<b>" * 2
```

| a | b |
|---|--:|
| 1 | `2` |
"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as it:
        yield it


@pytest.fixture(scope="module")
def server_of_fakes() -> Iterator[FakeChat]:
    with running() as it:
        yield it


@pytest.fixture
def fake(server_of_fakes: FakeChat) -> FakeChat:
    it = server_of_fakes
    it.say, it.pause, it.key, it.asked, it.hits = SAY, 0.0, "", [], []
    return it


@pytest.fixture(params=[DESKTOP, PHONE], ids=["1280", "390"])
def sized(request: pytest.FixtureRequest, chromium: Browser, fake: FakeChat) -> Iterator[Chat]:
    with open_chat(chromium, fake.url, request.param, has_touch=request.param == PHONE) as it:
        yield it
        assert it.complaints == [] and it.overflow <= 0


@pytest.fixture
def chat(chromium: Browser, fake: FakeChat) -> Iterator[Chat]:
    with open_chat(chromium, fake.url) as it:
        yield it
        assert it.complaints == []


def test_type_stream_stop_again_go_on(sized: Chat, fake: FakeChat) -> None:
    fake.pause = 0.05
    sized.type("Hello")
    expect(sized("#stop")).to_be_visible()
    expect(sized(".answer .body")).to_contain_text("mixture")
    assert len(sized.answer) < len(SAY)  # it comes bit by bit
    sized("#stop").click()
    begun = sized.wait()
    assert begun and SAY.startswith(begun)
    expect(sized(".facts")).to_contain_text("stopped")
    fake.pause = 0
    sized("[title='Ask again']").click()
    assert sized.wait() == SAY
    expect(sized(".siblings .count")).to_have_text("2/2")
    sized("[aria-label='Version before']").click()
    assert sized.answer == begun
    fake.say = " and so on"
    sized("[title='Go on']").click()
    assert sized.wait() == begun + " and so on"
    assert "".join(sized(".body .t").all_text_contents()) == sized.answer
    assert fake.asked[-1]["messages"][-1] == {"role": "assistant", "content": begun}
    assert fake.asked[-1]["continue_final_message"] is True


def test_edit_and_branch(sized: Chat, fake: FakeChat) -> None:
    sized.ask("first")
    fake.say = "second answer"
    sized.ask("second")
    assert [m["content"] for m in fake.asked[-1]["messages"]] == ["first", SAY, "second"]
    fake.say = "another"
    sized("[aria-label='Edit and branch']").first.click()
    box = sized(".question textarea")
    expect(box).to_be_focused()
    box.fill("changed")
    box.press("Enter")
    assert sized.wait() == "another"
    assert [m["content"] for m in fake.asked[-1]["messages"]] == ["changed"]
    expect(sized(".turn")).to_have_count(2)
    sized("[aria-label='Version before']").click()
    expect(sized(".turn")).to_have_count(4)
    assert sized.answer == "second answer"
    expect(sized("[aria-label='Next version']")).to_be_focused()
    sized("[aria-label='Edit and branch']").last.click()
    sized(".question textarea").press("Escape")
    expect(sized(".question .said").last).to_have_text("second")


def test_the_lane(sized: Chat, fake: FakeChat) -> None:
    sized.ask("Hello")
    assert fake.asked[-1]["return_routing"] == "stream" and fake.asked[-1]["top_logprobs"] == 8
    sized("#toggle-lane").click()
    expect(sized(".lane .tok")).to_have_count(15)
    assert sized(".ribbon").text_content() == SAY
    expect(sized(".heat .cell")).to_have_count(48)
    colours = [re.findall(r"\be(\d)\b", c) for c in sized(".tok").evaluate_all("s => s.map(n => n.className)")]
    sized("input[aria-label=Layer]").fill("0")
    others = [re.findall(r"\be(\d)\b", c) for c in sized(".tok").evaluate_all("s => s.map(n => n.className)")]
    assert all(len(c) == 1 for c in colours + others) and colours != others
    sized(".tok").nth(3).click()
    expect(sized(".path li")).to_have_count(6)
    expect(sized(".cell.on-path")).to_have_count(6)
    expect(sized(".cell.on-path-too")).to_have_count(6)
    assert len(sized(".path-line").get_attribute("points").split()) == 6
    first = sized(".path li").first.locator(".share").first
    assert first.get_attribute("aria-label") == f"Layer 0: expert {others[3][0]}, weight 0.50"
    first.click()
    expect(sized(".detail .what")).to_contain_text(f"Expert {others[3][0]} in layer 0 took")
    said = re.search(r"took (\d+) of 15", sized(".detail .what").text_content())
    assert said is not None and sized(".tok.is-taken").count() == int(said[1]) > 0
    cell = sized(".cell").nth(8 * 2 + 5)
    cell.click()
    expect(sized(".detail .what")).to_contain_text("Expert 5 in layer 2 took")
    assert cell.get_attribute("aria-label").startswith("Layer 2, expert 5: ")
    expect(sized(".layer-name")).to_have_text("Layer 2 of 0–5")
    sized("text=Answer again without this expert").click()
    sized.wait()
    assert fake.asked[-1]["experts"] == {"ban": [[2, 5]]}
    expect(sized(".facts")).to_contain_text("without expert 5 of layer 2")
    sized(".cell").nth(8 * 2 + 5).click()
    expect(sized(".detail .what")).to_contain_text("took 0 of 15 tokens")


def test_the_lane_follows_the_stream(chat: Chat, fake: FakeChat) -> None:
    fake.pause = 0.05
    chat("#toggle-lane").click()
    chat.type("Hello")
    expect(chat(".lane .tok").nth(3)).to_be_visible()
    assert chat(".lane .tok").count() < 15
    assert chat(".path-line").get_attribute("points")  # of the token that came last
    chat.wait()
    expect(chat(".lane .tok")).to_have_count(15)
    assert chat(".path-line").get_attribute("points") == ""


def test_alternatives_of_a_token(sized: Chat, fake: FakeChat) -> None:
    sized.ask("Hello")
    token = sized(".body .t[data-i='2']")
    token.tap() if sized.page.viewport_size["width"] == PHONE[0] else token.hover()
    rows = sized("#alternatives .alternative")
    expect(rows).to_have_count(4)
    expect(rows.first).to_have_attribute("aria-label", "␣of, 74 %, chosen")
    expect(rows.nth(2)).to_be_disabled()  # part of a character
    fake.say = " things"
    rows.nth(1).click()
    assert sized.wait() == "A mixture other things"
    assert fake.asked[-1]["messages"][-1] == {"role": "assistant", "content": "A mixture other"}
    expect(sized(".siblings .count")).to_have_text("2/2")
    sized("#toggle-lane").click()
    expect(sized(".tok.none")).to_have_text(" other")
    expect(sized(".lane .tok")).to_have_count(4)
    sized(".body .t[data-i='1']").click()
    sized("#alternatives .alternative").nth(3).click()  # the end
    assert sized.answer == "A" and len(fake.asked) == 2


def test_by_keyboard_alone(chat: Chat, fake: FakeChat) -> None:
    page = chat.page
    chat.press("Tab")
    expect(chat(".skip")).to_be_focused()
    chat.press("Enter")
    expect(chat("#ask")).to_be_focused()
    page.keyboard.type("Hello")
    chat.press("Shift+Enter")
    page.keyboard.type("there")
    chat.press("Enter")
    chat.wait()
    assert fake.asked[-1]["messages"][-1]["content"] == "Hello\nthere"
    chat.press("Alt+e")
    expect(chat(".lane")).to_be_visible()
    _tab_to(chat, ".answer .body", backwards=True)
    chat.press("ArrowRight", "ArrowRight", "ArrowRight")
    expect(chat("#alternatives")).to_be_visible()
    expect(chat("#said")).to_contain_text("␣of, 74 %")
    expect(chat(".detail .what")).to_contain_text("Token  of")
    chat.press("Escape")
    expect(chat("#alternatives")).to_be_hidden()
    _tab_to(chat, ".ribbon")
    chat.press("Home", "ArrowRight", "ArrowUp")
    expect(chat(".tok[aria-selected=true]")).to_have_text(" mixture")
    expect(chat(".layer-name")).to_have_text("Layer 2 of 0–5")
    chat.press("Escape")
    expect(chat(".tok[aria-selected=true]")).to_have_count(0)
    _tab_to(chat, ".cell[tabindex='0']")
    chat.press("ArrowDown", "ArrowRight", "Enter")
    expect(chat(".detail .what")).to_contain_text("Expert 1 in layer 1")
    fake.say = " else"
    _tab_to(chat, ".answer .body", backwards=True)
    chat.press("ArrowRight", "ArrowRight", "ArrowDown", "ArrowDown", "Enter")
    assert chat.wait() == "A other else"
    chat("#ask").focus()
    chat.press("ArrowUp")
    expect(chat(".question textarea")).to_be_focused()
    chat.press("Escape", "Alt+s")
    expect(chat("#settings")).to_be_visible()
    chat.press("Escape")
    expect(chat("#settings")).to_be_hidden()
    chat("#ask").focus()
    _tab_to(chat, "#show-help")
    chat.press("Enter")
    expect(chat("#help")).to_be_visible()
    chat.press("Escape")
    fake.pause = 0.1
    chat("#ask").focus()
    page.keyboard.type("more")
    chat.press("Enter", "Escape")
    chat.wait()
    expect(chat(".facts").last).to_contain_text("stopped")
    chat.press("Alt+n")
    expect(chat("#welcome")).to_be_visible()


def _tab_to(chat: Chat, selector: str, *, backwards: bool = False) -> None:
    for _ in range(60):
        if chat(selector).last.evaluate("n => n === document.activeElement"):
            return
        chat.press("Shift+Tab" if backwards else "Tab")
    raise AssertionError(f"Tab does not reach {selector}")


def test_focus_is_seen(chat: Chat) -> None:
    chat.ask("Hello")
    chat("#toggle-lane").click()
    outline = "n => [getComputedStyle(n).outlineStyle, getComputedStyle(n).outlineWidth]"
    for selector in ("#new-chat", ".answer .body", ".ribbon", ".cell[tabindex='0']", ".idea", "#show-prompt"):
        if chat(selector).last.is_visible():
            chat(selector).last.focus()
            chat.press("Shift+Tab", "Tab")
            assert chat.page.evaluate(f"({outline})(document.activeElement)") == ["solid", "2px"], selector


def test_dark_and_light(chromium: Browser, fake: FakeChat) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    with open_chat(chromium, fake.url, color_scheme="dark") as chat:
        dark = chat.page.evaluate(ground)
        chat("#theme").click()
        light = chat.page.evaluate(ground)
        assert (dark, light) == ("rgb(20, 23, 26)", "rgb(253, 253, 251)")
        chat.page.reload()
        assert chat.page.evaluate(ground) == light
        chat("#theme").click()
        chat("#theme").click()
        assert chat.page.evaluate(ground) == dark  # as the machine is, again
        assert chat.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(chromium: Browser, fake: FakeChat, scheme: Any) -> None:
    """WCAG AA: 4.5 to 1 for the colours that text has."""
    with open_chat(chromium, fake.url, color_scheme=scheme) as chat:
        names = ("ground", "panel", "raised", "ink", "soft", "mark", "on-mark", "warn")
        colours = chat.page.evaluate(
            """names => names.map(name => {
                document.body.style.backgroundColor = `var(--${name})`;
                return getComputedStyle(document.body).backgroundColor.match(/[0-9.]+/g).map(Number);
            })""",
            names,
        )
        light = {name: _luminance(colour[:3]) for name, colour in zip(names, colours, strict=True)}
        pairs = [(text, under) for text in ("ink", "soft") for under in ("ground", "panel", "raised")]
        for text, under in [*pairs, ("mark", "ground"), ("on-mark", "mark"), ("warn", "ground")]:
            high, low = sorted((light[text], light[under]), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 4.5, (text, under)


def _luminance(colour: list[float]) -> float:
    parts = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["1280", "390"])
def test_models_of_any_shape(chromium: Browser, fake: FakeChat, size: tuple[int, int]) -> None:
    with open_chat(chromium, fake.url, size) as chat:
        chat("#model").select_option("wide")
        chat.ask("Hello")
        chat("#toggle-lane").click()
        expect(chat(".heat .cell")).to_have_count(32 * 16)
        chat(".tok").nth(1).click()
        expect(chat(".path .share")).to_have_count(32 * 4)
        assert chat.overflow <= 0
        chat("#model").select_option("dense")
        chat.ask("Hello")
        expect(chat("#toggle-lane")).to_be_disabled()
        assert "return_routing" not in fake.asked[-1]
        chat("#new-chat").click()
        chat("#model").select_option("base")
        expect(chat("#about")).to_have_text("This model is not tuned for chat: it continues your text.")
        fake.say = " upon a *time*\n# no title"
        assert chat.ask("Once") == fake.say  # as it is
        chat("[title='Ask again']").click()
        chat.wait()
        fake.say = " and then"
        chat(".body .t[data-i='1']").click()
        chat("#alternatives .alternative").nth(1).click()
        assert chat.wait() == " upon other and then"
        assert fake.asked[-1]["messages"] == [{"role": "user", "content": "Once upon other"}]
        assert chat.overflow <= 0 and chat.complaints == []


def test_markdown(chat: Chat, fake: FakeChat) -> None:
    fake.say = MARKDOWN
    chat.ask("Hello")
    found = {s: chat(f".body {s}").all_text_contents() for s in ("h3", "strong", "em", "del", "li li", "blockquote p")}
    assert found == {
        "h3": ["Title"], "strong": ["bold", "text"], "em": ["slanted"], "del": ["gone"], "li li": ["inner"],
        "blockquote p": ["quoted text"],
    }  # fmt: skip
    assert chat(".body pre").text_content() == 'x = "<b>" * 2'
    assert chat(".body a").evaluate_all("all => all.map(a => a.href)") == [
        *("https://example.org/a_(b)", "https://example.org/plain")
    ]
    assert chat(".body td").all_text_contents() == ["1", "2"] and chat(".body ol").get_attribute("start") == "3"
    assert chat(".body b").count() == 0
    chat(".body h3 .t").hover()
    expect(chat("#alternatives .alternative").first).to_have_attribute("aria-label", "␣Title, 74 %, chosen")
    chat("#field-markdown").evaluate("n => n.click()")
    assert chat.answer == MARKDOWN


def test_markdown_that_grows_is_markdown_at_once(chat: Chat, fake: FakeChat) -> None:
    """Blocks that are done are not drawn again; the end is that of the whole."""
    fake.say = MARKDOWN
    chat.ask("Hello")
    html = "n => n.innerHTML"
    whole = chat(".body").evaluate(html)
    fake.pause = 0.004
    chat("[title='Ask again']").click()
    chat.wait()
    assert chat(".body").last.evaluate(html) == whole


def test_settings_are_sent(chat: Chat, fake: FakeChat) -> None:
    chat.ask("Hello")
    plain = {k: v for k, v in fake.asked[-1].items() if k not in ("messages", "stream_options")}
    assert plain == {
        "model": "chat", "stream": True, "temperature": 0.7, "max_tokens": 512, "logprobs": True, "top_logprobs": 8,
        "return_routing": "stream",
    }  # fmt: skip
    chat.set(system="Be brief.", temperature="0", top_p="0.9", top_k="40", min_p="0.05", seed="7", stop="END\n\nof it")
    chat.set(presence_penalty="-0.5", frequency_penalty="0.5", repetition_penalty="1.1", max_tokens="3")
    chat("#field-logprobs").evaluate("n => n.click()")
    chat("#field-routing").evaluate("n => n.click()")
    chat("#new-chat").click()
    assert chat.ask("Hello") == "A mixture of"
    expect(chat(".facts")).to_contain_text("cut at max tokens")
    asked = fake.asked[-1]
    assert asked["messages"][0] == {"role": "system", "content": "Be brief."}
    sent = {"temperature": 0, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "seed": 7, "stop": ["END", "of it"]}
    sent |= {"presence_penalty": -0.5, "frequency_penalty": 0.5, "repetition_penalty": 1.1, "max_tokens": 3}
    assert sent.items() <= asked.items() and not {"logprobs", "return_routing"} & asked.keys()
    assert chat("[aria-label='Experts of this answer']").count() == 0
    chat.set(temperature="9")
    n = len(fake.asked)
    chat.type("Hello")
    expect(chat("#notice")).to_contain_text("cannot be sent")
    expect(chat("#field-temperature")).to_be_focused()
    assert len(fake.asked) == n and chat("#ask").input_value() == "Hello"


@pytest.mark.parametrize(
    "question, sentence",
    [
        ("busy", "The server is busy: try again in 7 s."),
        ("too long", "The conversation is too long for this model (3,000 tokens, and it takes 2,048)"),
        ("break", "The connection broke in the middle of the answer; what had come is kept."),
        ("fail", "The logits are not finite."),
    ],
)
def test_failures_are_one_sentence_and_the_text_is_kept(
    chat: Chat, fake: FakeChat, question: str, sentence: str
) -> None:
    chat.ask(question)
    expect(chat(".problem p")).to_contain_text(sentence)
    expect(chat(".question .said")).to_have_text(question)
    has_begun = question in ("break", "fail")
    assert chat.answer == ("A mixture of experts reads" if has_begun else "")
    chat.complaints = [c for c in chat.complaints if "ERR_INCOMPLETE_CHUNKED_ENCODING" not in c]
    chat(".question [aria-label='Edit and branch']").click()
    chat(".question textarea").fill("Hello")
    chat(".question textarea").press("Enter")
    assert chat.wait() == SAY


def test_a_server_that_is_gone(chromium: Browser) -> None:
    with running() as fake, open_chat(chromium, fake.url) as chat:
        chat.page.context.set_offline(True)
        chat.ask("Hello")
        expect(chat(".problem p")).to_contain_text("The server cannot be reached. Your text is kept")
        chat.page.context.set_offline(False)
        chat("button:text('Try again')").click()
        assert chat.wait() == fake.say
        expect(chat(".problem")).to_be_hidden()
        expect(chat(".siblings")).to_have_count(0)


def test_a_server_with_keys(chromium: Browser, fake: FakeChat) -> None:
    fake.key = "secret-key"
    with open_chat(chromium, fake.url, has_models=False) as chat:
        expect(chat("#notice")).to_have_text("This server needs an API key: enter it in the settings.")
        expect(chat("#field-key")).to_be_focused()
        chat("#field-key").fill("secret-key")
        chat("#field-key").press("Tab")
        expect(chat("#model option")).to_have_count(4)
        expect(chat("#notice")).to_be_hidden()
        assert chat.ask("Hello") == SAY
        kept = "[JSON.stringify({...sessionStorage}), JSON.stringify({...localStorage}), document.cookie]"
        assert chat.page.evaluate(kept) == ['{"coterie-key":"secret-key"}', "{}", ""]
        chat.page.reload()
        expect(chat("#model option")).to_have_count(4)
        fake.key = "changed"
        chat.ask("Hello")
        expect(chat(".problem p")).to_contain_text("needs an API key")
        expect(chat(".problem button")).to_have_text(["Enter the key", "Try again"])


def test_prompt_export_chats(chat: Chat, fake: FakeChat, tmp_path: Path) -> None:
    chat("#show-prompt").click()
    expect(chat("#notice")).to_contain_text("no prompt yet")
    chat("#ask").fill("What is it?")
    chat("#show-prompt").click()
    expect(chat("#prompt-about")).to_have_text("5 tokens of 2,048 · chat form mistral-v1")
    expect(chat("#prompt-text")).to_have_text("<s>What is it?")
    chat.press("Escape")
    chat("#ask").press("Enter")
    chat.wait()
    with chat.page.expect_download() as started:
        chat("#export").click()
    started.value.save_as(tmp_path / "it.json")
    it = json.loads((tmp_path / "it.json").read_text())
    assert it["format"] == "coterie-conversation" and it["model"] == "chat" and it["settings"]["temperature"] == 0.7
    answer = it["root"]["children"][0]["children"][0]
    assert answer["text"] == SAY == "".join(t["text"] for t in answer["tokens"])
    assert len(answer["tokens"][0]["experts"]) == 6 and "key" not in it["settings"]
    chat("#new-chat").click()
    chat.ask("Second chat")
    chat("#open-chats").click()
    assert chat(".chat-name").all_text_contents() == ["Second chat", "What is it?"]
    chat(".chat-name").last.click()
    expect(chat(".question .said")).to_have_text("What is it?")
    chat("[aria-label='Delete What is it?']").click()
    expect(chat(".chat-name")).to_have_count(1)
    assert chat.page.evaluate("localStorage.length + sessionStorage.length") == 0


def test_chats_are_kept_only_if_asked(chat: Chat) -> None:
    chat.ask("Hello")
    chat("#field-keep").evaluate("n => n.click()")
    chat.page.reload()
    chat("#open-chats").click()
    chat(".chat-name").click()
    assert chat.answer == SAY and chat(".t").count() == 0  # without tokens
    chat("#field-keep").evaluate("n => n.click()")
    assert chat.page.evaluate("localStorage.length") == 0


# --- what a model may write


@pytest.fixture(scope="module")
def attacked(chromium: Browser, server_of_fakes: FakeChat) -> Iterator[Chat]:
    server_of_fakes.pause = 0
    with open_chat(chromium, server_of_fakes.url) as it:
        it("#toggle-lane").click()
        it("#open-chats").click()
        yield it


@pytest.mark.parametrize("attack", ATTACKS, ids=range(len(ATTACKS)))
def test_attacks_are_text(attacked: Chat, server_of_fakes: FakeChat, attack: str) -> None:
    """As an answer, a question, a title, tokens of the lane, an alternative: nothing runs, nothing is fetched."""
    server_of_fakes.say = attack
    server_of_fakes.hits.clear()
    attacked("#new-chat").click()
    attacked.ask(attack)
    attacked(".tok").first.click()
    plain = attacked(".body .t:not(a .t)")
    if plain.count():
        plain.first.dispatch_event("click")
    for event in ("mouseover", "focus", "toggle", "error", "load"):
        attacked(".body").evaluate(
            "(n, e) => n.querySelectorAll('*').forEach(x => x.dispatchEvent(new Event(e)))", event
        )
    assert attacked.page.evaluate("typeof hit") == "undefined" and attacked.complaints == []
    assert server_of_fakes.hits == ["/v1/chat/completions"]
    tags = set(attacked("#turns, #chats, #alternatives").evaluate_all(
        "all => all.flatMap(n => [...n.querySelectorAll('*')].map(x => x.localName))"
    ))  # fmt: skip
    assert not tags & {"script", "img", "iframe", "object", "embed", "link", "style", "meta", "base", "form", "math"}
    assert not tags & {"video", "source", "details", "body", "image", "foreignobject", "animate", "set", "audio"}
    links = attacked("#turns a").evaluate_all("all => all.map(a => [a.protocol, a.rel, a.target, a.host])")
    assert all(p in ("http:", "https:", "mailto:") and "noopener" in r and t == "_blank" for p, r, t, _ in links)
    handlers = (
        "all => all.flatMap(x => x.getAttributeNames()).filter(n => n.startsWith('on') || n === 'style' || n === 'src')"
    )
    names = set(attacked("#turns .body *").evaluate_all(handlers))
    assert not names


def test_there_are_forty_attacks() -> None:
    assert len(set(ATTACKS)) >= 40


def test_a_link_that_lies_says_where_it_goes(attacked: Chat, server_of_fakes: FakeChat) -> None:
    server_of_fakes.say = "[https://bank.example](https://elsewhere.example/login) and [words](https://other.example)"
    attacked("#new-chat").click()
    attacked.ask("Hello")
    assert attacked(".goes-to").all_text_contents() == [" (elsewhere.example)"]


def test_text_that_is_slow_to_read_is_read(attacked: Chat, server_of_fakes: FakeChat) -> None:
    for bomb in BOMBS:
        took = attacked.page.evaluate(
            """async text => {
                const { renderMarkdown } = await import("./page/markdown.js");
                const { Pieces } = await import("./page/pieces.js");
                const start = performance.now();
                renderMarkdown(document.createElement("div"), text, new Pieces());
                return performance.now() - start;
            }""",
            bomb,
        )
        assert took < 2000, bomb[:20]


# --- the server itself


def test_with_the_model_that_ships(chromium: Browser, server: Any) -> None:
    with open_chat(chromium, server.url) as chat:
        expect(chat("#shape")).to_have_text("6 layers × 8 experts, 2 a token")
        chat.set(max_tokens="24", seed="3", temperature="0.7")
        text = chat.ask("Il était une fois")
        chat("#toggle-lane").click()
        expect(chat(".lane .tok")).to_have_count(24)
        assert chat(".ribbon").text_content().replace("↵", "") == text
        chat(".body .t[data-i='5']").click()
        other = chat("#alternatives .alternative:not([aria-current]):not(:disabled)").first
        word = other.get_attribute("aria-label").split(",")[0].replace("␣", " ")
        other.click()
        branched = chat.wait()
        kept = "".join(chat(".tok").nth(i).text_content() for i in range(5)).replace("↵", "")
        assert branched.startswith(kept + word) and branched != text
        place = chat(".cell").evaluate_all(
            "all => all.findIndex(c => Number(c.style.getPropertyValue('--heat')) > 0.3)"
        )
        chat(".cell").nth(place).click()
        chat("text=Answer again without this expert").click()
        chat.wait()
        expect(chat(".facts")).to_contain_text(f"without expert {place % 8} of layer {place // 8}")
        chat(".cell").nth(place).click()
        expect(chat(".detail .what")).to_contain_text("took 0 of 24 tokens")
        chat("#show-prompt").click()
        expect(chat("#prompt-text")).to_contain_text("Il était une fois")
        assert chat.complaints == [] and chat.overflow <= 0

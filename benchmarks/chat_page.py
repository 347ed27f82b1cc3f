"""docs/chat-*.png: the chat page with the model that ships, in Debian's Chromium.

    python benchmarks/chat_page.py                  start a server, take the four pictures
    python benchmarks/chat_page.py --url http://127.0.0.1:8000

The seed makes the text the same each time on one machine; nothing in the pictures is staged but the clicks.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "server"))

from page_browser import DESKTOP, PHONE, Chat, browser, open_chat

ROOT = Path(__file__).resolve().parent.parent
QUESTION = "Il était une fois"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="of a server that runs already (default: start one of the demo)")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    args = parser.parse_args()
    if args.url:
        take(args.url, args.docs)
        return
    with serving() as url:
        take(url, args.docs)


@contextmanager
def serving() -> Iterator[str]:
    command = [sys.executable, "-m", "coterie", "serve", "demo", "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := re.search(r"serving \S+ on (http://\S+)", line):
                yield found[1]
                break
        else:
            sys.exit("chat_page: the server did not start")
    finally:
        process.terminate()
        process.communicate()


def take(url: str, docs: Path) -> None:
    pictures: list[tuple[str, tuple[int, int], dict[str, Any], Callable[[Chat], None]]] = [
        ("chat-light", DESKTOP, {"color_scheme": "light"}, alternatives),
        ("chat-lane", DESKTOP, {"color_scheme": "light"}, token),
        ("chat-dark", DESKTOP, {"color_scheme": "dark"}, expert),
        ("chat-phone", PHONE, {"color_scheme": "light", "has_touch": True}, token),
    ]
    with browser() as chromium:
        for name, size, context, work in pictures:
            with open_chat(chromium, url, size, **context) as chat:
                write(chat)
                work(chat)
                chat.page.wait_for_timeout(400)
                chat.page.screenshot(path=docs / f"{name}.png")
                if chat.complaints or chat.overflow > 0:
                    sys.exit(f"chat_page: {name}: {chat.complaints}, {chat.overflow} pixels too wide")
                print(f"{docs / name}.png {(docs / f'{name}.png').stat().st_size // 1024} KB")


def write(chat: Chat) -> None:
    chat.set(max_tokens="90", seed="3")
    chat.ask(QUESTION)


def alternatives(chat: Chat) -> None:
    chat("#open-settings").click()
    chat(".body .t[data-i='6']").hover()
    chat("#alternatives").wait_for(state="visible")


def token(chat: Chat) -> None:
    chat("#toggle-lane").click()
    chat(".tok").nth(11).click()


def expert(chat: Chat) -> None:
    chat("#toggle-lane").click()
    heats = chat(".heat .cell").evaluate_all("all => all.map(c => Number(c.style.getPropertyValue('--heat')))")
    middling = min(range(len(heats)), key=lambda i: abs(heats[i] - 0.5))
    chat(".heat .cell").nth(middling).click()


if __name__ == "__main__":
    main()

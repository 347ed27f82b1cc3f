"""Chromium with the chat page: what the tests in a browser type, click and see (`Chat`)."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, expect, sync_playwright

CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
DESKTOP, PHONE = (1280, 860), (390, 844)


@contextmanager
def browser() -> Iterator[Browser]:
    """Debian's Chromium; nothing is downloaded."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        try:
            yield chromium
        finally:
            chromium.close()


class Chat:
    """One page. `complaints` are errors of the console and of scripts, requests to anywhere else, other windows,
    dialogs."""

    def __init__(self, page: Page, url: str, *, has_models: bool = True):
        self.page, self.url = page, url
        self.complaints: list[str] = []
        page.on("console", lambda m: self._note(m.type, m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda e: self._note("script", str(e)))
        page.on("request", lambda r: None if r.url.startswith((url, "blob:" + url)) else self._note("request", r.url))
        page.on("popup", lambda p: self._note("popup", p.url))
        page.on("dialog", lambda d: (self._note("dialog", d.message), d.dismiss()))
        page.set_default_timeout(10_000)
        page.goto(url)
        if has_models:
            expect(page.locator("#model option").first).to_be_attached()

    def _note(self, kind: str, text: str) -> None:
        if "status of 4" not in text:  # Chromium says so of every answer that is an error, which tests ask for
            self.complaints.append(f"{kind}: {text}")

    def __call__(self, selector: str) -> Any:
        return self.page.locator(selector)

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def type(self, text: str) -> None:
        """Type and send."""
        self("#ask").fill(text)
        self("#ask").press("Enter")

    def ask(self, text: str) -> str:
        """Type, send, wait; the answer."""
        self.type(text)
        return self.wait()

    def wait(self) -> str:
        expect(self("#send")).to_be_visible()
        return self.answer

    @property
    def answer(self) -> str:
        """The last answer's text."""
        text: str = self(".answer .body").last.text_content()
        return text

    def set(self, **values: str) -> None:
        """Fields of the settings, whose drawer is opened and closed."""
        self("#open-settings").click()
        for name, value in values.items():
            self(f"#field-{name}").fill(value)
        self("[data-close=settings]").click()

    @property
    def overflow(self) -> int:
        """By how many pixels the page is wider than the window."""
        width: int = self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        return width


@contextmanager
def open_chat(
    chromium: Browser, url: str, size: tuple[int, int] = DESKTOP, *, has_models: bool = True, **context: Any
) -> Iterator[Chat]:
    """The page in a fresh context: nothing kept, nothing shared. Without models it waits for a key."""
    fresh = chromium.new_context(viewport={"width": size[0], "height": size[1]}, **context)
    try:
        yield Chat(fresh.new_page(), url, has_models=has_models)
    finally:
        fresh.close()

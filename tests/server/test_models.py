import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from coterie.api import LanguageModel
from coterie.engine.request import Request, SamplingParams
from coterie.errors import CheckpointError
from coterie.server.failures import ApiError
from coterie.server.models import Models
from coterie.server.settings import Settings


class Loader:
    """Makes a new model of the same weights each time, and says so."""

    def __init__(self, model: Any, tokenizer: Any):
        self._parts = model, tokenizer
        self.loaded: list[str] = []
        self.broken: set[str] = set()
        self.threads: set[int] = set()

    def __call__(self, source: str) -> LanguageModel:
        self.threads.add(threading.get_ident())
        if source in self.broken:
            raise CheckpointError(f"{source}: truncated")
        self.loaded.append(source)
        return LanguageModel(*self._parts, name=source)


@pytest.fixture
def loader(make_model: Callable[..., Any], byte_tokenizer: Any) -> Loader:
    return Loader(make_model(), byte_tokenizer)


def run(loader: Loader, work: Callable[[Models], Awaitable[None]], **settings: Any) -> None:
    async def whole() -> None:
        models = Models({"first": "/a", "second": "/b"}, loader, Settings(**settings))
        try:
            async with asyncio.timeout(30):
                await work(models)
        finally:
            await models.close()

    asyncio.run(whole())


def test_the_first_is_the_default_and_the_others_come_when_asked_for(loader: Loader) -> None:
    async def work(models: Models) -> None:
        with pytest.raises(ApiError) as e:
            await models.get()
        assert (e.value.status, e.value.code) == (503, "loading") and "retry-after" in e.value.headers
        await models.start()
        assert (await models.get()).id == (await models.get("first")).id == models.default == "first"
        assert loader.loaded == ["/a"]
        many = await asyncio.gather(*(models.get("second") for _ in range(5)))
        assert loader.loaded == ["/a", "/b"] and len({id(served) for served in many}) == 1
        assert threading.get_ident() not in loader.threads

    run(loader, work)


@pytest.mark.parametrize("name", ["third", "frist", "../first", "first\n", "/a", "x" * 10_000])
def test_an_unknown_name(loader: Loader, name: str) -> None:
    async def work(models: Models) -> None:
        await models.start()
        with pytest.raises(ApiError) as e:
            await models.get(name)
        assert (e.value.status, e.value.code, e.value.param) == (404, "model_not_found", "model")
        assert "expected one of first, second" in e.value.message and len(e.value.message) < 250
        assert ("did you mean 'first'" in e.value.message) == (name in ("frist", "../first", "first\n"))

    run(loader, work)


def test_one_that_cannot_be_loaded(loader: Loader, caplog: pytest.LogCaptureFixture) -> None:
    async def work(models: Models) -> None:
        await models.start()
        loader.broken.add("/b")
        with pytest.raises(ApiError) as e:
            await models.get("second")
        assert e.value.status == 503 and "truncated" not in e.value.message and "/b" not in e.value.message
        loader.broken.clear()
        assert (await models.get("second")).id == "second"

    run(loader, work)
    assert "truncated" in caplog.text


def test_the_default_that_cannot_be_loaded_is_raised(loader: Loader) -> None:
    async def work(models: Models) -> None:
        loader.broken.add("/a")
        with pytest.raises(CheckpointError):
            await models.start()

    run(loader, work)


def test_idle_models_go_and_come_back(loader: Loader) -> None:
    async def work(models: Models) -> None:
        first = await models.start()
        models.unload_idle()
        assert models.loaded == [first]
        first.worker.last_used -= 100
        models.unload_idle()
        assert models.loaded == [] and models.is_started
        while first.worker._thread.is_alive():
            await asyncio.sleep(0.01)
        assert (await models.get()) is not first and loader.loaded == ["/a", "/a"]

    run(loader, work, idle_unload=50)


def test_a_shutdown_reaches_models_that_were_replaced(loader: Loader) -> None:
    async def work(models: Models) -> None:
        old = await models.start()
        ids = (1, 5, 6)
        ticket = old.worker.submit(Request(ids, SamplingParams(max_tokens=200, logit_bias={2: -100})))
        await models.reload()
        assert models.loaded[0] is not old
        models.fail_all(ApiError(503, "closing"))
        with contextlib.suppress(ApiError):
            assert [e async for e in ticket][-1].error == "closing"

    run(loader, work)


def test_reload_changes_what_is_loaded_and_leaves_what_fails(loader: Loader, caplog: pytest.LogCaptureFixture) -> None:
    async def work(models: Models) -> None:
        old, other = await models.start(), await models.get("second")
        loader.broken.add("/b")
        await models.reload()
        new = await models.get()
        assert new is not old and (await models.get("second")) is other
        while old.worker._thread.is_alive():
            await asyncio.sleep(0.01)

    run(loader, work)
    assert "second could not be loaded anew and stays as it was" in caplog.text

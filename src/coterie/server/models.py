"""The models of a server by name: loaded when first asked for, unloaded when idle, loaded anew on request.

The first name is the default, which is loaded at the start. A reload loads the new one beside the old (both are in
memory for a while), lets requests go to the new one, and ends the old one when its last request has. A model that
cannot be loaded anew stays as it is.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from coterie.errors import CoterieError, nearest
from coterie.server.failures import ApiError, unavailable
from coterie.server.settings import Settings
from coterie.server.worker import Observer, Worker

if TYPE_CHECKING:
    from coterie.api import LanguageModel

__all__ = ["Models", "Served"]

_log = logging.getLogger("coterie.server")


@dataclass(frozen=True)
class Served:
    """One model in memory."""

    id: str
    lm: "LanguageModel"
    worker: Worker
    created: int  # seconds since 1970
    settings: Settings


class Models:
    """`load` turns a source (a folder, a file, `org/name`, `demo`) into a model; it runs in a thread."""

    def __init__(
        self,
        sources: Mapping[str, str],
        load: "Callable[[str], LanguageModel]",
        settings: Settings,
        observer: Callable[[str], Observer] | None = None,
    ):
        self.sources, self.settings = dict(sources), settings
        self._load, self._observer = load, observer
        self._served: dict[str, Served] = {}
        self._locks = {name: asyncio.Lock() for name in sources}
        self._ending: dict[asyncio.Task[None], Served] = {}  # replaced or unloaded, with requests still in them
        self._is_started = False

    @property
    def names(self) -> list[str]:
        return list(self.sources)

    @property
    def default(self) -> str:
        return next(iter(self.sources))

    @property
    def loaded(self) -> list[Served]:
        return list(self._served.values())

    @property
    def is_started(self) -> bool:
        """The default model has been in memory (it may have been unloaded since)."""
        return self._is_started

    async def start(self) -> Served:
        """Load the default model. Raises what loading raises."""
        served = await self._loaded(self.default)
        self._is_started = True
        return served

    async def get(self, name: str | None = None) -> Served:
        """The model of that name, loaded if need be; None: the default. Raises `ApiError`."""
        name = name or self.default
        if name not in self.sources:
            known = ", ".join(self.sources)
            raise ApiError(
                404,
                f"the model {_shown(name)!r} is not served here, expected one of {known}{nearest(name, self.sources)}",
                code="model_not_found",
                param="model",
            )
        if not self._is_started:
            raise unavailable("the model is being loaded; try again", 2, code="loading", retry=True)
        try:
            return await self._loaded(name)
        except (CoterieError, OSError, MemoryError):
            _log.exception("%s could not be loaded", name)
            raise unavailable(f"the model {name!r} could not be loaded", 30, code="load_failed") from None

    async def reload(self) -> None:
        """Read all models in memory anew from where they came."""
        for name in list(self._served):
            try:
                async with self._locks[name]:
                    old, self._served[name] = self._served.get(name), await self._open(name)
            except Exception as e:  # whatever it was, the old one still serves
                _log.error("%s could not be loaded anew and stays as it was: %s", name, e)
                continue
            if old is not None:
                self._end_later(old)

    def unload_idle(self) -> None:
        """Drop models that nobody has used for `idle_unload` seconds."""
        limit = self.settings.idle_unload
        for served in self.loaded:
            worker = served.worker
            if limit is not None and not worker.n_in_flight and time.monotonic() - worker.last_used > limit:
                del self._served[served.id]
                self._end_later(served)
                _log.info("%s was idle and is unloaded", served.id)

    def fail_all(self, error: ApiError) -> None:
        for served in (*self._served.values(), *self._ending.values()):
            served.worker.fail_all(error)

    async def close(self) -> None:
        """End all workers."""
        workers = [served.worker for served in (*self._served.values(), *self._ending.values())]
        for task in list(self._ending):
            task.cancel()
        self._served.clear()
        await asyncio.gather(*(asyncio.to_thread(worker.close) for worker in workers))

    async def _loaded(self, name: str) -> Served:
        if (served := self._served.get(name)) is None:
            async with self._locks[name]:
                if (served := self._served.get(name)) is None:
                    served = self._served[name] = await self._open(name)
        served.worker.last_used = time.monotonic()
        return served

    async def _open(self, name: str) -> Served:
        lm = await _in_thread(lambda: self._load(self.sources[name]))
        observer = None if self._observer is None else self._observer(name)
        return Served(name, lm, Worker(lm, self.settings, observer), int(time.time()), self.settings)

    def _end_later(self, served: Served) -> None:
        task = asyncio.create_task(_end(served.worker))
        self._ending[task] = served
        task.add_done_callback(self._ending.pop)


async def _in_thread(load: "Callable[[], LanguageModel]") -> "LanguageModel":
    """As asyncio.to_thread, but the process can end while it runs."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[LanguageModel] = loop.create_future()

    def settle(lm: "LanguageModel | None", error: BaseException | None) -> None:
        if error is not None and not future.done():
            future.set_exception(error)
        elif lm is not None and not future.done():
            future.set_result(lm)

    def run() -> None:
        done: tuple[LanguageModel | None, BaseException | None]
        try:
            done = load(), None
        except BaseException as e:
            done = None, e
        try:
            loop.call_soon_threadsafe(settle, *done)
        except RuntimeError:  # the loop is closed: the server has ended meanwhile
            pass

    threading.Thread(target=run, name="coterie-load", daemon=True).start()
    return await future


async def _end(worker: Worker) -> None:
    """When its last request has gone, end it."""
    while worker.n_in_flight:
        await asyncio.sleep(0.1)
    await asyncio.to_thread(worker.close)


def _shown(name: str) -> str:
    return name if len(name) <= 80 else name[:77] + "..."

"""From an address to an exit: bind, load, serve, drain.

The socket is bound before anything is loaded, so that a port in use is said at once and health answers meanwhile.
SIGTERM or Ctrl-C: /ready and new requests get 503, what is in work has `drain` seconds, then a failure of its own; a
second signal ends it at once. SIGHUP reads models and keys anew. No uvicorn worker processes, so nothing can be left.
"""

import asyncio
import logging
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from coterie.errors import ConfigError, CoterieError
from coterie.server.app import App
from coterie.server.failures import ApiError
from coterie.server.protocol import protocol_class
from coterie.server.settings import Settings, is_loopback

__all__ = ["check_address", "open_socket", "serve"]

_LAST_SECONDS = 3.0  # for the last frames to be sent
_log = logging.getLogger("coterie.server")


def check_address(settings: Settings) -> None:
    """`ConfigError` for an address that others can reach, without keys."""
    if not is_loopback(settings.host) and settings.api_key_file is None:
        raise ConfigError(
            f"--host {settings.host} can be reached from other machines, which needs keys: make one with "
            "`coterie serve --new-key NAME --api-key-file keys.txt` and add --api-key-file keys.txt; "
            "127.0.0.1 needs none"
        )


def open_socket(settings: Settings) -> socket.socket:
    """Bound, not yet listening. Raises `ConfigError`."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, proto)
    except (OSError, UnicodeError) as e:
        raise ConfigError(f"--host {settings.host}: {getattr(e, 'strerror', None) or e}") from None
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
    except OSError as e:
        sock.close()
        raise ConfigError(
            f"port {settings.port} of {settings.host}: {e.strerror}; choose another with --port, or 0 for any free one"
        ) from None
    return sock


def serve(make_app: Callable[[], App], sock: socket.socket, say: Callable[[str], None]) -> int:
    """Serve until a signal says otherwise; the exit code. Raises what loading the default model raises.

    `make_app` is called on the event loop; `say` gets the lines for the person who started it.
    """
    code = asyncio.run(_serve(make_app, sock, say))
    if any(t.name.startswith("coterie-") for t in threading.enumerate()):
        sys.stderr.flush()
        os._exit(code)  # a thread that is deep in native code would abort the interpreter's own end
    return code


async def _serve(make_app: Callable[[], App], sock: socket.socket, say: Callable[[str], None]) -> int:
    app = make_app()
    settings = app.state.settings
    _raise_limits(settings.max_connections)
    config = uvicorn.Config(
        app,
        http=protocol_class(settings),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        h11_max_incomplete_event_size=settings.max_header,
        timeout_keep_alive=settings.keep_alive,  # type: ignore[arg-type]  # only ever given to call_later
        timeout_graceful_shutdown=int(_LAST_SECONDS),
        backlog=settings.max_connections,
    )
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # its sentences are about us, not about the user
    server = _Server(config, app, say)
    try:
        return await server.run_until_told(sock)
    finally:
        await app.state.models.close()


def _raise_limits(n_connections: int) -> None:
    """Descriptors for all connections; and the engine's thread waits for the interpreter 0.5 ms at most, not 5."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = n_connections + 256
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
        )
    sys.setswitchinterval(0.0005)


class _Server(uvicorn.Server):
    """uvicorn's, with our signals."""

    def __init__(self, config: uvicorn.Config, app: App, say: Callable[[str], None]):
        super().__init__(config)
        self._state, self._say = app.state, say
        self._hurry = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._exit_code = 0

    async def run_until_told(self, sock: socket.socket) -> int:
        loading = asyncio.create_task(self._load(sock))
        upkeep = asyncio.create_task(self._keep_up())
        try:
            await self.serve([sock])
        finally:
            upkeep.cancel()
            for task in self._tasks:
                task.cancel()
        if loading.done():
            loading.result()
        loading.cancel()
        return self._exit_code

    async def _load(self, sock: socket.socket) -> None:
        try:
            served = await self._state.models.start()
        except BaseException:
            self.should_exit = True
            raise
        while not self.started:
            await asyncio.sleep(0.01)
        host, port = sock.getsockname()[:2]
        self._say(f"serving {served.id} on http://{f'[{host}]' if ':' in host else host}:{port}")

    async def _keep_up(self) -> None:
        while True:
            await asyncio.sleep(1)
            self._state.models.unload_idle()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._start(self._reload()))
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_IGN)  # nothing shall interrupt the last tidying up

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _stop(self, number: int) -> None:
        if self._state.is_draining:
            self._hurry.set()
            return
        self._state.is_draining = True
        self._exit_code = 130 if number == signal.SIGINT else 0
        self._start(self._drain())

    async def _drain(self) -> None:
        state = self._state
        if state.n_in_flight:
            self._say(
                f"finishing {state.n_in_flight} requests, {state.settings.drain:.0f} s at most; once more ends them now"
            )
        await self._until_empty(state.settings.drain)
        if state.n_in_flight:
            state.models.fail_all(ApiError(503, "the server is shutting down", code="draining"))
            self._hurry = asyncio.Event()
            await self._until_empty(_LAST_SECONDS)
        self.should_exit = True

    async def _until_empty(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                while self._state.n_in_flight and not self._hurry.is_set():
                    await asyncio.sleep(0.02)
        except TimeoutError:
            pass

    async def _reload(self) -> None:
        try:
            self._state.keys.reload()
        except (CoterieError, OSError) as e:
            self._say(f"the keys stay as they were: {e}")
        await self._state.models.reload()
        self._say(f"read again: {', '.join(served.id for served in self._state.models.loaded) or 'no model'}")

"""Listening: sockets, signals, an orderly end."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn
from fastapi import FastAPI

from plaudit_server.app import create_app
from plaudit_server.errors import SettingError
from plaudit_server.protocol import bounded_protocol
from plaudit_server.services import Services
from plaudit_server.settings import Settings
from plaudit_server.telemetry import configure_logging

GRACE_S = 8
"""How long chats may go on after a signal. The supervisor waits 20 s for all of it, the engine's end included."""


class _Server(uvicorn.Server):
    """uvicorn with our signals: its own handling raises the signal again before the lifespan has closed the engine."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield


def run(settings: Settings) -> None:
    """Serve until SIGINT, SIGTERM or, under a supervisor, its end.

    Raises:
        SettingError: the address cannot be listened on, the data folder cannot be used, or the model is not there.
        DatabaseUnusable: as its message says.
    """
    configure_logging(getattr(logging, settings.log_level.upper()))
    listening = _listen(settings)
    with contextlib.closing(listening), asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(settings, listening))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # not built for this platform
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((settings.host, settings.port))
        listening.listen(2048)
    except OSError as error:
        listening.close()
        where = f"{settings.host}:{settings.port}"
        raise SettingError(
            f"cannot listen on {where} ({error.strerror or error}): set PLAUDIT_PORT or PLAUDIT_HOST"
        ) from error
    return listening


async def _serve(settings: Settings, listening: socket.socket) -> None:
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        http=bounded_protocol(settings),
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=settings.trusted_proxies,
        lifespan="off",  # ours is opened here, so that what it raises is one line and not a traceback
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=GRACE_S,
    )
    server = _Server(config)
    _stop_on_signals(server, lambda: _end_streams(app))
    async with app.router.lifespan_context(app):
        await server.serve(sockets=[listening])


def _stop_on_signals(server: uvicorn.Server, end_streams: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()

    def stop(number: int, frame: FrameType | None = None) -> None:
        end_streams()
        server.handle_exit(number, frame)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    if os.environ.get("PLAUDIT_LIFELINE") == "stdin":
        # A thread, because the pipe is shared with the other children and must stay blocking.
        watcher = threading.Thread(target=_watch_lifeline, args=(loop, stop), daemon=True, name="lifeline")
        watcher.start()


def _end_streams(app: FastAPI) -> None:
    """End those that would never end by themselves: the server waits for its connections."""
    services: Services | None = getattr(app.state, "services", None)
    if services is not None:
        services.live.close()


def _watch_lifeline(loop: asyncio.AbstractEventLoop, stop: Callable[[int], None]) -> None:
    """End the server when standard input closes: whoever started it is gone."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    with contextlib.suppress(RuntimeError):  # the loop has ended already
        loop.call_soon_threadsafe(stop, signal.SIGTERM)

"""Keeps one replica up: starts it, notices when it is down or wedged, restarts it, and says how it is.

A replica is `ready` only after `on_up` has put back and proven everything that was installed before.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from plaudit_server.engine.process import EngineChild, Launcher, launch_vllm
from plaudit_server.engine.replica import ReplicaClient
from plaudit_server.engine.swap import Replica, SwapRefused
from plaudit_server.errors import EngineError
from plaudit_server.settings import Settings

OnReplica = Callable[[Replica], Awaitable[None]]
"""Does something about a replica: brings one that has come up to where it may serve, or checks one that serves."""

MAX_FAST_FAILURES = 5
"""Starts in a row that never became healthy, after which only a person can help."""

LONGEST_PAUSE_S = 60.0
WEDGED_AFTER_S = 90.0
_POLL_S = 0.25
WATCH_S = 2.0
PING_EVERY_S = 30.0
"""How often the workers are asked too: each question has one of vLLM's poll for a second, a core's, for the next."""

_PING_TIMEOUT_S = 30.0
_MISSES_ALLOWED = 3

_log = logging.getLogger(__name__)


class StartFailed(Exception):
    """The engine did not become healthy."""


def pause_before(failures: int) -> float:
    """Seconds to wait before the next start: 1 after a life that was healthy, else doubling."""
    return min(LONGEST_PAUSE_S, float(2**failures))


class ChildKeeper:
    """Keeps an engine of our own running."""

    def __init__(  # noqa: PLR0917
        self,
        replica: Replica,
        settings: Settings,
        base: Path,
        on_up: OnReplica,
        on_look: OnReplica,
        launcher: Launcher = launch_vllm,
    ) -> None:
        self._replica = replica
        self._settings = settings
        self._base = base
        self._on_up, self._on_look = on_up, on_look
        self._launcher = launcher
        self._child: EngineChild | None = None
        self.seconds_to_healthy: float | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the lifeline, whose child vLLM is; None between lives."""
        return self._child.pid if self._child else None

    async def run(self) -> None:
        """Start, watch, restart, until cancelled or until starting has failed too often."""
        failures = 0
        while True:
            was_ready = await self._one_life()
            failures = 0 if was_ready else failures + 1
            if failures >= MAX_FAST_FAILURES:
                self._down(f"gave up after {failures} starts: {self._replica.detail}; mend it and restart the server")
                return
            await asyncio.sleep(pause_before(failures))
            self._replica.restarts += 1

    async def _one_life(self) -> bool:
        """From start to end; whether it was ready in between."""
        self._replica.state = "starting"
        was_ready = False
        try:
            self._child = child = await EngineChild.start(self._settings, self._base, self._launcher)
            async with ReplicaClient(socket=child.launch.socket) as client:
                self._replica.client = client
                await self._until_healthy(child, client)
                await self._on_up(self._replica)
                self._replica.state, self._replica.detail, was_ready = "ready", None, True
                self._down(await self._watch(child, client))
        except (StartFailed, EngineError, SwapRefused, OSError) as error:
            self._down(str(error))
        finally:
            self._replica.state, self._replica.client = "down", None
            self._replica.forget()
            if self._child is not None:
                await asyncio.shield(self._child.stop())
                self._child = None
        return was_ready

    def _down(self, why: str) -> None:
        self._replica.state, self._replica.detail = "down", why
        _log.error("engine %s is down: %s", self._replica.name, why)

    async def _until_healthy(self, child: EngineChild, client: ReplicaClient) -> None:
        started = time.monotonic()
        limit = self._settings.engine_start_timeout_s
        while not await client.healthy():
            if not child.running:
                raise StartFailed(f"the engine ended while starting: {child.last_words()} (see {child.launch.log})")
            if time.monotonic() - started > limit:
                raise StartFailed(f"the engine was not healthy after {limit:g} s (see {child.launch.log})")
            await asyncio.sleep(_POLL_S)
        self.seconds_to_healthy = time.monotonic() - started
        _log.info("engine %s is healthy after %.1f s", self._replica.name, self.seconds_to_healthy)

    async def _watch(self, child: EngineChild, client: ReplicaClient) -> str:
        """Returns why it is over: the process ended, or it has not answered for long."""
        last_answer = workers_answered = time.monotonic()
        ended = asyncio.ensure_future(child.wait())
        try:
            while True:
                await asyncio.wait([ended], timeout=WATCH_S)
                if ended.done():
                    return f"the engine ended with status {ended.result()}: {child.last_words()}"
                if self._replica.condemned is not None:
                    return f"{self._replica.condemned}; it is restarted"
                ask_workers = time.monotonic() - workers_answered >= PING_EVERY_S
                if await answers(client, workers=ask_workers):
                    last_answer = time.monotonic()
                    workers_answered = last_answer if ask_workers else workers_answered
                    await self._look()
                elif time.monotonic() - last_answer > WEDGED_AFTER_S:
                    return f"the engine has not answered for {WEDGED_AFTER_S:g} s; it is restarted"
        finally:
            ended.cancel()

    async def _look(self) -> None:
        """The process lives; what it holds is looked at again in a moment where that could not be told."""
        try:
            await (self._on_look if self._replica.state == "ready" else self._on_up)(self._replica)
        except (EngineError, SwapRefused) as error:
            _log.warning("engine %s could not be looked at: %s", self._replica.name, error)


class RemoteKeeper:
    """Watches a vLLM that somebody else runs."""

    def __init__(
        self,
        replica: Replica,
        url: str,
        on_up: OnReplica,
        on_look: OnReplica,
        connect: Callable[[str], ReplicaClient] = lambda url: ReplicaClient(url=url),
    ) -> None:
        self._replica = replica
        self._url = url
        self._on_up, self._on_look = on_up, on_look
        self._connect = connect
        self._misses = 0

    async def run(self) -> None:
        """Watch until cancelled."""
        try:
            async with self._connect(self._url) as client:
                self._replica.client = client
                while True:
                    await self._look(client)
                    await asyncio.sleep(WATCH_S)
        finally:
            self._replica.state, self._replica.client = "down", None
            self._replica.forget()

    async def _look(self, client: ReplicaClient) -> None:
        replica = self._replica
        try:
            if not await client.healthy():
                raise StartFailed(f"{self._url} does not answer")
            self._misses = 0
            if replica.state == "ready" and replica.condemned is None:
                await self._on_look(replica)
                return
            replica.state = "starting"
            replica.forget()
            await self._on_up(replica)
            replica.state, replica.detail = "ready", None
        except (StartFailed, EngineError, SwapRefused) as error:
            self._missed(str(error))

    def _missed(self, why: str) -> None:
        """One missed answer may be a busy moment; several in a row are an outage."""
        self._misses += 1
        replica = self._replica
        if replica.state != "ready" or self._misses >= _MISSES_ALLOWED:
            replica.restarts += replica.state == "ready"
            replica.state, replica.detail = "down", why
            replica.forget()
            _log.error("engine %s is down: %s", replica.name, why)


async def answers(client: ReplicaClient, *, workers: bool) -> bool:
    """Whether the API server does, and if asked, engine core and workers: a long step in progress may delay theirs."""
    if not await client.healthy():
        return False
    if not workers:
        return True
    with contextlib.suppress(EngineError):
        return bool(await client.call_workers("plaudit_ping", timeout_s=_PING_TIMEOUT_S))
    return False

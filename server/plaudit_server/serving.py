"""Who serves: the alias moves, and the loops that follow them.

A move made here is in force here at once. For those of other gateway processes one loop looks at the aliases every
tenth of a second, and one at the rest of the catalog and the fleet every 0.4 s. A third brings the engine in line.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

from plaudit.wire.versions import AliasName
from plaudit_server.catalog import Catalog
from plaudit_server.demand import Demand
from plaudit_server.domain.moments import now_ms
from plaudit_server.domain.records import AliasRow
from plaudit_server.engine.base import Engine
from plaudit_server.errors import Conflict, EngineError, PlauditError
from plaudit_server.membership import Membership
from plaudit_server.reconciler import Reconciler
from plaudit_server.routing import Routing
from plaudit_server.store import Connection, aliases, rollouts
from plaudit_server.store.database import Database
from plaudit_server.telemetry import Telemetry, log_event

logger = logging.getLogger(__name__)

FLIP_POLL_S = 0.1
"""A look is one query for at most three rows. What a bad version still answers after a rollback is this long."""

POLL_S = 0.4
SETTLE_S = 0.5


class Serving:
    """Moves aliases, and keeps this process and its engine in step with them.

    Args:
        max_resident: adapters the engine may hold at once; at least 2, a version and the one it is compared with.
        swap_wait_s: how long a chat waits for a whole model that is being swapped in.
    """

    def __init__(
        self,
        database: Database,
        engine: Engine,
        telemetry: Telemetry,
        *,
        max_resident: int,
        auto_promote: bool,
        swap_wait_s: float = 60,
        membership: Membership | None = None,
    ) -> None:
        self._database = database
        self._engine = engine
        self._telemetry = telemetry
        self._membership = membership or Membership(database, engine)
        self._woken = asyncio.Event()
        wake = self._woken.set
        self.catalog = Catalog(database, engine, wake)
        self.demand = Demand(self.catalog, engine, max_resident=max_resident)
        self.reconciler = Reconciler(
            database,
            engine,
            telemetry,
            catalog=self.catalog,
            demand=self.demand,
            membership=self._membership,
            auto_promote=auto_promote,
        )
        reasons = self.reconciler.reasons
        self.routing = Routing(self.catalog, self.demand, engine, reasons=reasons, wake=wake, swap_wait_s=swap_wait_s)
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Read who serves, and begin the loops."""
        await self._poll()
        self._tasks = [
            asyncio.create_task(forever("aliases", whole(self._follow), partial(asyncio.sleep, FLIP_POLL_S))),
            asyncio.create_task(forever("catalog", whole(self._poll), partial(asyncio.sleep, POLL_S))),
            asyncio.create_task(forever("residency", self.reconciler.settle, self._sleep_settle)),
        ]

    async def close(self) -> None:
        """Stop the loops."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _poll(self) -> None:
        await self._membership.refresh()
        await self.catalog.refresh()

    async def _follow(self) -> None:
        if await self._database.read(aliases.get_all) != self.catalog.targets:
            await self.catalog.refresh()

    async def _sleep_settle(self) -> None:
        self._woken.clear()
        # Not `wait_for`: until Python 3.12 it can swallow a cancellation, and closing would wait for ever.
        with suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_S):
                await self._woken.wait()

    async def move(
        self,
        name: AliasName,
        version: str,
        *,
        if_match: str | None,
        actor: str,
        reason: str | None,
        action: str = "alias.move",
    ) -> AliasRow:
        """Point an alias at a version, in force here when this returns. `action` is what the audit log calls it.

        Raises as `store.aliases.move`, and SwapFailed where the engine cannot prove the version.
        """

        async def point(conn: Connection) -> AliasRow:
            if name == "canary":
                await rollouts.check_none(conn)
            return await aliases.move(
                conn, name, version, if_match=if_match, actor=actor, reason=reason, now_ms=now_ms(), action=action
            )

        with self._telemetry.span("alias.move", **{"plaudit.alias": name, "plaudit.version": version}):
            if name == "canary":
                await self.check_room(version)
            async with self._about_to_serve(version):
                row = await self._database.write(point)
                await self.moved(name, "operator")
        return row

    async def rollback(self, to: str, *, actor: str, reason: str) -> AliasRow:
        """Move `stable` back. Waits for the engine no longer than one adapter, or one whole model, takes."""
        previous = self.catalog.aliases.get("previous")
        target = previous.version if to == "previous" and previous else to
        with self._telemetry.span("alias.rollback", **{"plaudit.alias": "stable", "plaudit.version": target}):
            async with self._about_to_serve(target):
                row = await self._database.write(
                    lambda conn: aliases.rollback(conn, to, actor=actor, reason=reason, now_ms=now_ms())
                )
                await self.moved("stable", "rollback")
        return row

    @asynccontextmanager
    async def _about_to_serve(self, version: str) -> AsyncIterator[None]:
        with self.demand.expecting(version):
            await self.reconciler.ensure_resident(version)
            yield

    async def check_room(self, candidate: str) -> None:
        """Let a version be tried beside the stable one, if both can be live at once.

        Raises:
            Conflict: they need different whole models, and there is one replica.
        """
        if candidate not in self.catalog.states:
            await self.catalog.refresh()
        stable = self.catalog.stable
        needed, served = self.catalog.foundation(candidate), self.catalog.foundation(stable)
        if needed != served and self._engine.capacity() < 2:
            raise Conflict(
                f"{candidate} needs the whole model {needed} and {stable} needs {served}: to try one beside the "
                "other takes two engine replicas, and there is one. Promote it instead, or add a replica.",
                code="needs_two_replicas",
            )

    async def registered(self) -> None:
        """A version was registered: prove it now and not at the next tick."""
        await self.catalog.refresh()
        self._woken.set()

    async def moved(self, name: AliasName, by: str) -> None:
        """An alias was moved here by `by`: follow at once."""
        self._telemetry.alias_moves.labels(name, by).inc()
        await self.catalog.refresh()
        self._woken.set()


def whole(tick: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], Awaitable[None]]:
    """A tick that a cancellation does not cut short but follows.

    For short readings: the thread of an SQLite connection goes on with a statement that nobody waits for any more, and
    answers into a loop that may be closed by then.
    """

    async def ticked() -> None:
        running = asyncio.create_task(tick())
        try:
            await asyncio.shield(running)
        except asyncio.CancelledError:
            await asyncio.gather(running, return_exceptions=True)
            raise

    return ticked


async def forever(name: str, tick: Callable[[], Awaitable[None]], rest: Callable[[], Awaitable[None]]) -> None:
    """Tick and rest until cancelled, whatever a tick raises."""
    while True:
        try:
            await tick()
        except EngineError as error:
            log_event(logger, logging.INFO, "tick.engine", tick=name, reason=error.message)
        except PlauditError as error:
            log_event(logger, logging.WARNING, "tick.failed", tick=name, reason=error.message)
        except Exception:  # noqa: BLE001  # a loop that dies unseen would leave the server stuck for ever
            log_event(logger, logging.ERROR, "tick.crashed", exc_info=True, tick=name)
        await rest()

"""This gateway's part in the fleet: the list of replicas as the database has it, and what this gateway uses on them.

Replicas of others may be shared by several gateways, which agree through two tables: one says which replicas there
are, the other which gateway uses which versions there. A gateway loads nothing that another one has loaded already,
and takes nothing away that another one uses.
"""

import logging
import time
from collections.abc import Collection, Sequence

from plaudit_server.domain.ids import new_id
from plaudit_server.domain.moments import now_ms
from plaudit_server.domain.records import ReplicaRow, ReplicaState
from plaudit_server.engine.base import Engine, Member, Others
from plaudit_server.errors import PlauditError
from plaudit_server.store import Connection, replicas
from plaudit_server.store.database import Database
from plaudit_server.telemetry import log_event

logger = logging.getLogger(__name__)

BEAT_S = 5.0
ALIVE_S = 20.0
"""A gateway that was not heard for so long uses nothing any more. Clocks of gateways must agree to a few seconds."""


class Membership:
    """Follows the fleet's list, and changes it.

    Args:
        seeds: URLs from the settings. Without any the engine is a child of this server.
    """

    def __init__(self, database: Database, engine: Engine, *, seeds: Sequence[str] = ()) -> None:
        self._database = database
        self._engine = engine
        self._seeds = list(seeds)
        self._id = new_id("gw_")
        self._rows: list[ReplicaRow] = []
        self._claimed: frozenset[str] | None = None
        self._beat_at = 0.0

    async def start(self) -> None:
        """Put the seeds on the list, and tell the engine who there is; before the engine starts."""
        if self._seeds:
            await self._database.write(lambda conn: replicas.seed(conn, self._seeds, now_ms=now_ms()))
        await self.refresh()
        await self.claim(())  # so that the others know of this one before it loads anything

    async def close(self) -> None:
        """This gateway uses nothing any more."""
        if self._claimed is not None:
            before = now_ms() - round(10 * ALIVE_S * 1000)
            await self._database.write(lambda conn: replicas.gone(conn, self._id, before_ms=before))

    @property
    def rows(self) -> list[ReplicaRow]:
        """The list as last read."""
        return self._rows

    async def refresh(self) -> None:
        """Read the list and what others use, and bring the engine in line."""
        self._follow(*await self._database.read(self._read))
        if self._claimed is not None:
            await self.claim(self._claimed)

    async def claim(self, versions: Collection[str]) -> None:
        """Say that this gateway uses these versions, and go on saying so. Cheap where that is known and fresh.

        When this returns, the engine knows of every gateway that claimed the same before. A database that cannot be
        written keeps nothing from being loaded, moved back or served.
        """
        wanted = frozenset(versions)
        if not self._rows or (wanted == self._claimed and time.monotonic() - self._beat_at < BEAT_S):
            return

        async def write(conn: Connection) -> tuple[list[ReplicaRow], dict[str, frozenset[str]]]:
            await replicas.beat(conn, self._id, wanted, now_ms=now_ms())
            return await self._read(conn)

        try:
            read = await self._database.write(write)
        except PlauditError as error:
            log_event(logger, logging.WARNING, "fleet.unclaimed", versions=sorted(wanted), reason=error.message)
            return
        self._claimed, self._beat_at = wanted, time.monotonic()
        self._follow(*read)

    async def _read(self, conn: Connection) -> tuple[list[ReplicaRow], dict[str, frozenset[str]]]:
        since = now_ms() - round(ALIVE_S * 1000)
        return await replicas.listed(conn), await replicas.others(conn, self._id, since_ms=since)

    def _follow(self, rows: list[ReplicaRow], others: dict[str, frozenset[str]]) -> None:
        self._rows = rows
        members = [Member(row.name, row.url, draining=row.state == "draining") for row in rows]
        used = Others(frozenset().union(*others.values()), is_first=self._id < min(others)) if others else None
        self._engine.follow(members, used)

    # Changes

    async def add(self, url: str, *, actor: str) -> tuple[ReplicaRow, bool]:
        """Put a replica on the list; the row, and whether it was not on it. In force here when this returns."""
        added = await self._database.write(lambda conn: replicas.add(conn, url, actor=actor, now_ms=now_ms()))
        await self.refresh()
        return added

    async def leave(self, name: str, state: ReplicaState, *, actor: str) -> ReplicaRow:
        """Drain or remove a replica. Raises as `store.replicas.leave`."""
        row = await self._database.write(
            lambda conn: replicas.leave(conn, name, state, actor=actor, may_be_last=not self._seeds, now_ms=now_ms())
        )
        await self.refresh()
        return row

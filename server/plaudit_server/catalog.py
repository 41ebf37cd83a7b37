"""Aliases and versions as this process sees them: read from the store, and what each alias means here for now."""

import asyncio
from collections import Counter
from collections.abc import Callable

from plaudit.wire.versions import AliasName, VersionState
from plaudit_server.domain.records import AliasRow, VersionRow
from plaudit_server.domain.traffic import Split
from plaudit_server.domain.versions import BASE, fingerprint, foundation, version_number
from plaudit_server.engine.base import Engine
from plaudit_server.store import Connection, aliases, rollouts, versions
from plaudit_server.store.database import Database


class Catalog:
    """What the store says, as last read.

    Args:
        wake: called when the engine must be brought in line.

    Attributes:
        aliases: where each alias points here. A promotion by another gateway is in force once this one can answer.
        targets: where each alias points in the store.
        states: of every version.
        rows: of every version, base too.
        split: the rollout that divides the users, if one does.
    """

    def __init__(self, database: Database, engine: Engine, wake: Callable[[], None]) -> None:
        self._database = database
        self._engine = engine
        self._wake = wake
        self._stale: set[str] = set()
        self._turn = asyncio.Lock()
        self.aliases: dict[AliasName, AliasRow] = {}
        self.targets: dict[AliasName, AliasRow] = {}
        self.states: dict[str, VersionState] = {BASE: "ready"}
        self.rows: dict[str, VersionRow] = {}
        self.split: Split | None = None

    async def refresh(self) -> None:
        """Read aliases, states and the rows of versions not seen before. In turn: what is older never comes later."""
        async with self._turn:
            await self._refresh()

    async def _refresh(self) -> None:
        stale = set(self._stale)

        async def read(
            conn: Connection,
        ) -> tuple[dict[AliasName, AliasRow], dict[str, VersionState], Split | None, list[VersionRow]]:
            states = await versions.states(conn)
            new = [await versions.get(conn, name) for name in states if name not in self.rows or name in stale]
            return await aliases.get_all(conn), states, await rollouts.split(conn), new

        self.targets, self.states, self.split, new = await self._database.read(read)
        self.aliases = {name: self._in_force(row) for name, row in self.targets.items()}
        self.rows |= {row.name: row for row in new}
        self._stale -= stale

    async def reread(self, version: str) -> None:
        """Refresh, the row of this version too."""
        self._stale.add(version)  # and kept meanwhile: what kind it is must be known at every moment
        await self.refresh()

    def _in_force(self, row: AliasRow) -> AliasRow:
        """What an alias means here. Moved on by another gateway, it follows once this one can answer; back, at once."""
        now = self.aliases.get(row.name)
        if now is None or self._engine.is_ready(row.version) or not self._engine.is_ready(now.version):
            return row
        moved_back = version_number(row.version) <= version_number(now.version)
        if moved_back or not (self.is_ready(now.version) and self.is_ready(row.version)):
            return row
        self._wake()
        return now

    @property
    def stable(self) -> str:
        """The version that `policy` means."""
        return self.aliases["stable"].version if "stable" in self.aliases else BASE

    def is_ready(self, version: str) -> bool:
        """Whether it was proven, and may serve. The engine need not hold it now."""
        return self.states.get(version) == "ready"

    def newest_ready(self) -> list[str]:
        """Ready versions, the newest first; base last."""
        return sorted(filter(self.is_ready, self.states), key=version_number, reverse=True)

    def counts(self) -> "Counter[VersionState]":
        """How many versions are in each state."""
        return Counter(self.states.values())

    def fingerprint(self, version: str) -> str:
        """`v42-<sha8>`."""
        row = self.rows.get(version)
        return fingerprint(version, row.manifest_sha256 if row else None)

    def foundation(self, version: str) -> str:
        """The whole model that a version speaks with: itself, or base where it is an adapter."""
        row = self.rows.get(version)
        return foundation(version, row.kind) if row else BASE

    def is_adapter(self, version: str) -> bool:
        """Whether it is an adapter on base, and so takes one of the engine's places."""
        return version != BASE and self.foundation(version) == BASE

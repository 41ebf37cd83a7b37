"""Who tried what their key does not allow: counted always, audited within a bound."""

import time

from plaudit_server.auth import Principal
from plaudit_server.domain.buckets import Buckets
from plaudit_server.domain.moments import now_ms
from plaudit_server.store import Connection, audit
from plaudit_server.store.database import Database
from plaudit_server.telemetry import Telemetry

AUDITED_PER_MINUTE = 20
"""Entries a minute for one key: whoever is refused in a loop must not fill the log, nor make the disk wait."""


class AuditedDenials:
    """Implements `auth.Denials` on the audit log."""

    def __init__(self, database: Database, telemetry: Telemetry) -> None:
        self._database = database
        self._telemetry = telemetry
        self._entries = Buckets(AUDITED_PER_MINUTE)

    async def note(self, principal: Principal, method: str, route: str, needs: str) -> None:
        """Count a refusal, and write it down unless this key has been written down often enough."""
        self._telemetry.denied.labels(route).inc()
        if not self._entries.take(principal.key_id, time.monotonic()).allowed:
            return

        async def write(conn: Connection) -> None:
            await audit.append(
                conn,
                actor=principal.name,
                action="access.denied",
                subject=f"{method} {route}",
                detail={"key_id": principal.key_id, "needs": needs},
                now_ms=now_ms(),
            )

        await self._database.write(write)

"""The engine brought in line with what is needed: install, prove, give up, retire."""

import asyncio
import logging
from collections import Counter

from plaudit.wire.versions import ProofReport
from plaudit_server.catalog import Catalog
from plaudit_server.demand import Demand
from plaudit_server.domain.moments import now_ms
from plaudit_server.domain.records import VersionRow
from plaudit_server.domain.versions import BASE, version_number
from plaudit_server.engine.base import AdapterRef, Engine
from plaudit_server.errors import EngineUnavailable, SwapFailed
from plaudit_server.membership import Membership
from plaudit_server.store import Connection, aliases, rollouts, versions
from plaudit_server.store.database import Database
from plaudit_server.telemetry import Telemetry, log_event

logger = logging.getLogger(__name__)

_ATTEMPTS = 2
"""Failed proofs of a version that was proven before, until it is given up."""


class Reconciler:
    """Installs on the engine what may get traffic, proves what was registered, and retires what nobody needs.

    Args:
        auto_promote: a version becomes stable by its proof where its parent is stable and no rollout is under way.

    Attributes:
        reasons: why the last proof failed of versions that are being loaded again.
    """

    def __init__(
        self,
        database: Database,
        engine: Engine,
        telemetry: Telemetry,
        *,
        catalog: Catalog,
        demand: Demand,
        membership: Membership,
        auto_promote: bool,
    ) -> None:
        self._database = database
        self._engine = engine
        self._telemetry = telemetry
        self._catalog = catalog
        self._demand = demand
        self._membership = membership
        self._auto_promote = auto_promote
        self._failures: Counter[str] = Counter()
        self._engine_turn = asyncio.Lock()
        self.reasons: dict[str, str] = {}

    async def ensure_resident(self, version: str) -> None:
        """Load and prove a version that is to serve, unless the engine holds it or is down.

        Raises:
            SwapFailed: the engine cannot prove it.
        """
        if not self._catalog.is_ready(version):  # it may have become so a moment ago, and the move would see it
            await self._catalog.refresh()
        # With the engine down there is nothing to wait for: it will load what the aliases name before it serves.
        if not self._catalog.is_ready(version) or self._engine.is_ready(version) or not self._engine.is_up():
            return
        row = self._catalog.rows[version]
        async with self._engine_turn:
            if self._catalog.foundation(version) == BASE and BASE not in self._engine.weights():
                await self._engine.place(self._demand.foundations())
            if self._engine.is_ready(version):
                return
            if version == BASE:
                raise SwapFailed("The base model could not be put back; see the server's log.", code="swap_failed")
            proof = await self._install(row, keep={version})
        if not proof.passed:
            raise SwapFailed(f"{version} could not be proven on the engine: {proof.reason}.", code="swap_failed")

    async def settle(self) -> None:
        """Bring the engine in line: serving versions first, then what waits for its proof; then retire the rest."""
        if not self._engine.is_up():
            return
        await self._membership.claim(self._engine.resident() - {BASE})
        async with self._engine_turn:
            await self._place()
            for name in self._demand.adapters():
                if not self._engine.is_ready(name) and self._catalog.is_ready(name):
                    await self._reinstall(self._catalog.rows[name])
            loading = await self._database.read(lambda conn: versions.in_state(conn, "loading"))
            for row in sorted(loading, key=lambda row: row.kind == "full"):  # adapters first, which interrupt nobody
                if row.kind == "full" or BASE in self._engine.weights():
                    await self._prove(row)
            await self._place()  # where a whole model was tried, what serves comes back
            await self._retire_surplus(keep=set(self._demand.adapters()))

    async def _place(self) -> None:
        """Bring whole models to where they should be; in a fleet of adapters on the base model nothing is to do."""
        wanted = self._demand.foundations()
        for name in wanted:
            if name != BASE and not self._engine.is_ready(name):
                await self._reinstall(self._catalog.rows[name])
        await self._engine.place(wanted)

    async def _reinstall(self, row: VersionRow) -> None:
        proof = await self._install(row, keep=set(self._demand.adapters()))
        if proof.passed:
            self._failures.pop(row.name, None)
            self.reasons.pop(row.name, None)
            return
        # What could not be proven must not hold a place on the engine either.
        await self._engine.retire(row.name)
        self._failures[row.name] += 1
        self.reasons[row.name] = proof.reason or "the probe did not pass"
        if self._failures[row.name] >= _ATTEMPTS:
            reason = f"could not be proven again: {self.reasons[row.name]}"
            await self._database.write(lambda conn: versions.set_state(conn, row.name, "failed", reason))
            await self._catalog.reread(row.name)

    async def _prove(self, row: VersionRow) -> None:
        # The least needed gives its place to the new one for as long as its proof takes.
        proof = await self._install(row, keep={row.name, *self._demand.adapters()[: self._demand.max_resident - 1]})
        promoted = await self._database.write(lambda conn: self._settle_proof(conn, row, proof))
        await self._catalog.reread(row.name)
        if promoted:
            self._telemetry.alias_moves.labels("stable", "auto_promote").inc()

    async def _settle_proof(self, conn: Connection, row: VersionRow, proof: ProofReport) -> bool:
        """Store what a proof found, and whether the version became stable by it."""
        if (await versions.get(conn, row.name)).state != "loading":
            return False  # another gateway was quicker, and its proof stands
        await versions.set_proof(conn, row.name, proof)
        stable = (await aliases.get_all(conn))["stable"]
        if not (proof.passed and self._auto_promote and stable.version == row.parent):
            return False
        if await rollouts.live(conn) is not None:  # it must not lose what it is compared with
            return False
        await aliases.move(
            conn,
            "stable",
            row.name,
            if_match=stable.etag,
            actor="auto_promote",
            reason="proven, and its parent still serves",
            now_ms=now_ms(),
            action="promote",
        )
        return True

    async def _install(self, row: VersionRow, *, keep: set[str]) -> ProofReport:
        """Load and prove one version; the engine's turn must be held."""
        assert row.location is not None and row.manifest_sha256 is not None, "only base has neither"
        if row.kind == "adapter":
            await self._retire_surplus(keep=keep, room=1)
        if row.kind == "adapter" and len(self._resident_adapters() - {row.name}) >= self._demand.max_resident:
            # Not the version's fault: a proof that failed for want of room would condemn it for ever.
            raise EngineUnavailable(f"There is no room for {row.name}: every resident version serves or is in use.")
        adapter = AdapterRef(row.name, row.parent or BASE, row.location, row.manifest_sha256, row.kind)
        # Before it is looked for: what another gateway has loaded must not be taken away meanwhile.
        await self._membership.claim({row.name, *self._engine.resident()} - {BASE})
        proof = await self._engine.install(adapter)
        self._telemetry.swaps.labels("passed" if proof.passed else "failed").inc()
        self._telemetry.swap_seconds.observe(proof.seconds)
        self._telemetry.proofs |= {one.replica: one for one in proof.replicas if one.slope is not None}
        level = logging.INFO if proof.passed else logging.ERROR
        log_event(logger, level, "version.installed", version=row.name, passed=proof.passed, reason=proof.reason)
        return proof

    async def _retire_surplus(self, *, keep: set[str], room: int = 0) -> None:
        resident = self._resident_adapters()
        surplus = len(resident) + room - self._demand.max_resident
        if surplus <= 0:
            return
        await self._membership.refresh()  # what another gateway began to use a moment ago stays loaded
        idle = sorted(resident - keep - self._demand.held(), key=version_number)
        for name in idle[:surplus]:
            await self._engine.retire(name)
        self._telemetry.forget_retired(self._demand.current())

    def _resident_adapters(self) -> set[str]:
        """Adapters that hold a place on the engine."""
        return {name for name in self._engine.resident() if self._catalog.is_adapter(name)}

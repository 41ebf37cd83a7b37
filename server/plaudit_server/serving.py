"""Who serves: the aliases as this process sees them, and the engine brought in line with them.

Two loops. One reads aliases and states every 0.4 s, so that a promotion by another gateway process is in force here
within half a second (a promotion made here is in force at once). The other installs on the engine what may get
traffic, proves what was registered, and retires what nobody needs.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from plaudit.wire.chat import ModelCard
from plaudit.wire.versions import AliasName, ProofReport, VersionState
from plaudit_server.domain.moments import now_ms
from plaudit_server.domain.records import AliasRow, VersionRow
from plaudit_server.domain.traffic import Route, Split, resolve
from plaudit_server.domain.versions import BASE, fingerprint, foundation, version_number
from plaudit_server.engine.base import AdapterRef, Engine
from plaudit_server.errors import Conflict, EngineError, EngineUnavailable, NotFound, PlauditError, SwapFailed
from plaudit_server.membership import Membership
from plaudit_server.store import Connection, aliases, rollouts, versions
from plaudit_server.store.database import Database
from plaudit_server.telemetry import Telemetry, log_event

logger = logging.getLogger(__name__)

POLL_S = 0.4
_SWAP_POLL_S = 0.02
SETTLE_S = 0.5
WANTED_S = 300.0
"""How long a version that was asked for by name stays resident after the last request for it."""

_ATTEMPTS = 2
"""Failed proofs of a version that was proven before, until it is given up."""

SWAP_UNDER_WAY = "swap_under_way"
"""Code of the refusal of a chat whose whole model is about to be live."""

_SERVING_ORDER: tuple[AliasName, ...] = ("stable", "canary", "previous")


class Serving:
    """Routes chats to versions and keeps the engine ready for them.

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
        self._max_resident = max_resident
        self._auto_promote = auto_promote
        self._swap_wait_s = swap_wait_s
        self._membership = membership or Membership(database, engine)
        self._aliases: dict[AliasName, AliasRow] = {}
        self._split: Split | None = None
        self._targets: dict[AliasName, AliasRow] = {}
        self._states: dict[str, VersionState] = {BASE: "ready"}
        self._rows: dict[str, VersionRow] = {}
        self._stale: set[str] = set()
        self._held: Counter[str] = Counter()
        self._wanted: dict[str, float] = {}
        self._failures: Counter[str] = Counter()
        self._reasons: dict[str, str] = {}
        self._expected: list[str] = []
        self._pinned: dict[str, float] = {}
        self._wake = asyncio.Event()
        self._engine_turn = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Read who serves, and begin the loops."""
        await self.refresh()
        self._tasks = [
            asyncio.create_task(forever("aliases", self.refresh, self._sleep_poll)),
            asyncio.create_task(forever("residency", self.settle, self._sleep_settle)),
        ]

    async def close(self) -> None:
        """Stop the loops."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _sleep_poll(self) -> None:
        await asyncio.sleep(POLL_S)

    async def _sleep_settle(self) -> None:
        self._wake.clear()
        # Not `wait_for`: until Python 3.12 it can swallow a cancellation, and closing would wait for ever.
        with suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_S):
                await self._wake.wait()

    async def refresh(self) -> None:
        """Read aliases, states and the rows of versions not seen before, and who is in the fleet."""
        await self._membership.refresh()
        stale = set(self._stale)

        async def read(
            conn: Connection,
        ) -> tuple[dict[AliasName, AliasRow], dict[str, VersionState], Split | None, list[VersionRow]]:
            states = await versions.states(conn)
            new = [await versions.get(conn, name) for name in states if name not in self._rows or name in stale]
            return await aliases.get_all(conn), states, await rollouts.split(conn), new

        self._targets, self._states, self._split, new = await self._database.read(read)
        self._aliases = {name: self._in_force(row) for name, row in self._targets.items()}
        self._rows |= {row.name: row for row in new}
        self._stale -= stale

    def _in_force(self, row: AliasRow) -> AliasRow:
        """What an alias means here. Moved on by another gateway, it follows once this one can answer; back, at once."""
        now = self._aliases.get(row.name)
        if now is None or self._engine.is_ready(row.version) or not self._engine.is_ready(now.version):
            return row
        moved_back = version_number(row.version) <= version_number(now.version)
        if moved_back or not self._states.get(now.version) == self._states.get(row.version) == "ready":
            return row
        self._wake.set()
        return now

    # Routing

    @property
    def stable(self) -> str:
        """The version that `policy` means."""
        return self._aliases["stable"].version if "stable" in self._aliases else BASE

    def fingerprint(self, version: str) -> str:
        """`v42-<sha8>`."""
        row = self._rows.get(version)
        return fingerprint(version, row.manifest_sha256 if row else None)

    async def route(self, model: str, subject: str | None) -> Route:
        """The version that answers, proven and resident. What is not known here is looked for in the store once.

        While the whole model that is asked for is being swapped in, it is waited for; who it is may change meanwhile.

        Raises:
            NotFound: no such model.
            EngineUnavailable: it cannot answer now; the message says why. Another version is never put in its place.
        """
        try:
            return await self._route_in_time(model, subject)
        except NotFound:
            await self.refresh()
            return await self._route_in_time(model, subject)

    async def _route_in_time(self, model: str, subject: str | None) -> Route:
        deadline = time.monotonic() + self._swap_wait_s
        while True:
            try:
                return self._route(model, subject)
            except EngineUnavailable as error:
                if error.code != SWAP_UNDER_WAY or time.monotonic() >= deadline:
                    raise
            await asyncio.sleep(_SWAP_POLL_S)

    def _route(self, model: str, subject: str | None) -> Route:
        targets: dict[str, str] = {name: row.version for name, row in self._aliases.items()}
        if model in ("policy", "policy@stable") and self._states.get(self.stable) != "ready":
            raise EngineUnavailable(self._why_not(self.stable), code="stable_unproven", retry_after_s=30)
        route = resolve(model, aliases=targets, states=self._states, subject=subject, split=self._split)
        if route.arm == "canary" and not self._engine.is_ready(route.version):
            # Being loaded again: its users are not kept waiting, and these answers are no sample of either arm.
            self._wake.set()
            route = Route(self.stable, "stable")
        if route.arm == "pinned":
            self._pinned[self._foundation(route.version)] = time.monotonic()
        self.require(route.version)
        return route

    def require(self, version: str) -> None:
        """Let a version that can answer pass; have any other loaded, if it may be.

        Raises:
            EngineUnavailable: it cannot answer yet.
        """
        if version != BASE and self._states.get(version) == "ready":
            self._wanted[version] = time.monotonic()
        if not self._engine.is_ready(version):
            self._wake.set()
            raise EngineUnavailable(
                self._why_not(version), code=SWAP_UNDER_WAY if self._is_coming(version) else "engine_unavailable"
            )

    def _is_coming(self, version: str) -> bool:
        """Whether the whole model that a version needs is not live on any replica, but is to be."""
        needed = self._foundation(version)
        if not self._engine.is_up() or needed in self._engine.weights() or self._states.get(version) != "ready":
            return False
        return version == self.stable or needed in self._foundations()

    def _why_not(self, version: str) -> str:
        if not self._engine.is_up():
            return "The engine is starting or down. Feedback is still accepted; chat again shortly."
        if self._states.get(version) == "failed":
            row = self._rows.get(version)
            why = self._reasons.get(version) or (row.reason if row else None) or "it could not be proven"
            return f"{version} serves, but could not be proven on the engine: {why}. Roll back (POST /v1/rollback)."
        needed, live = self._foundation(version), sorted(self._engine.weights())
        if needed not in live and version not in self._reasons:
            return (
                f"{version} needs the whole model {needed}, and a replica holds one at a time: "
                f"{', '.join(live) or 'none'} on {self._engine.capacity()} now."
            )
        if version in self._reasons:
            return f"{version} is being loaded again, since its last proof failed: {self._reasons[version]}."
        return f"{version} is being loaded and proven on the engine; chat again shortly."

    def answers(self) -> bool:
        """Whether a chat on `policy` would be answered, now or after the swap that is under way."""
        ready = self._engine.is_ready(self.stable) or self._is_coming(self.stable)
        return self._states.get(self.stable) == "ready" and ready

    @asynccontextmanager
    async def speaking(self, version: str) -> AsyncIterator[None]:
        """Keep a version resident while it is used. Raises as `require`; NotFound where there is no such version."""
        if self._states.get(version) != "ready":
            await self.refresh()
        if self._states.get(version) != "ready":
            raise NotFound(f"There is no ready version {version}.", code="version_not_ready", param="version")
        self._pinned[self._foundation(version)] = time.monotonic()
        self.require(version)
        self.hold(version)
        try:
            yield
        finally:
            self.release(version)

    def models(self) -> list[ModelCard]:
        """What a chat may name: `policy`, the aliases, the ready versions newest first, base."""
        named = {"policy": self.stable} | {f"policy@{name}": row.version for name, row in self._aliases.items()}
        ready = [name for name, state in self._states.items() if state == "ready"]
        named |= {f"policy@{name}": name for name in sorted(ready, key=version_number, reverse=True)}
        return [self._card(model, version) for model, version in named.items()]

    def _card(self, model: str, version: str) -> ModelCard:
        row = self._rows.get(version)
        created = row.created_at_ms // 1000 if row else 0
        return ModelCard(id=model, created=created, version=version, parent=row.parent if row else None)

    def model(self, name: str) -> ModelCard:
        """One of `models`. Raises NotFound."""
        for card in self.models():
            if card.id == name:
                return card
        raise NotFound(f"There is no model {name[:64]!r}.", code="model_not_found", param="model")

    def current(self) -> set[str]:
        """Versions that serve, are held or are resident: those that figures are kept of."""
        serving = {row.version for row in self._aliases.values()}
        return {BASE, *serving, *self._held, *self._engine.resident()}

    def targets(self) -> dict[AliasName, str]:
        """The version that each alias names."""
        return {name: row.version for name, row in self._aliases.items()}

    def states(self) -> "Counter[VersionState]":
        """How many versions are in each state."""
        return Counter(self._states.values())

    def hold(self, version: str) -> None:
        """A request speaks with `version`: it stays resident."""
        self._held[version] += 1

    def release(self, version: str) -> None:
        """That request has ended."""
        self._held[version] -= 1
        if not self._held[version]:
            del self._held[version]

    # Moves

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
        with self._telemetry.span("alias.move", **{"plaudit.alias": name, "plaudit.version": version}):
            if name == "canary":
                await self.check_room(version)
            async with self._expecting(version):
                return await self._move(name, version, if_match=if_match, actor=actor, reason=reason, action=action)

    async def _move(
        self, name: AliasName, version: str, *, if_match: str | None, actor: str, reason: str | None, action: str
    ) -> AliasRow:
        await self.ensure_resident(version)

        async def point(conn: Connection) -> AliasRow:
            if name == "canary":
                await rollouts.check_none(conn)
            return await aliases.move(
                conn, name, version, if_match=if_match, actor=actor, reason=reason, now_ms=now_ms(), action=action
            )

        row = await self._database.write(point)
        await self.moved(name, "operator")
        return row

    async def check_room(self, candidate: str) -> None:
        """Let a version be tried beside the stable one, if both can be live at once.

        Raises:
            Conflict: they need different whole models, and there is one replica.
        """
        if candidate not in self._states:
            await self.refresh()
        needed, stable = self._foundation(candidate), self._foundation(self.stable)
        if needed != stable and self._engine.capacity() < 2:
            raise Conflict(
                f"{candidate} needs the whole model {needed} and {self.stable} needs {stable}: to try one beside the "
                "other takes two engine replicas, and there is one. Promote it instead, or add a replica.",
                code="needs_two_replicas",
            )

    @asynccontextmanager
    async def _expecting(self, version: str) -> AsyncIterator[None]:
        """While a version is about to serve, nothing takes its whole model's place."""
        self._expected.append(version)
        try:
            yield
        finally:
            self._expected.remove(version)

    async def rollback(self, to: str, *, actor: str, reason: str) -> AliasRow:
        """Move `stable` back. Waits for the engine no longer than one adapter, or one whole model, takes."""
        previous = self._aliases.get("previous")
        target = previous.version if to == "previous" and previous else to
        span = self._telemetry.span("alias.rollback", **{"plaudit.alias": "stable", "plaudit.version": target})
        async with self._expecting(target):
            with span:
                return await self._roll_back(to, target, actor=actor, reason=reason)

    async def _roll_back(self, to: str, target: str, *, actor: str, reason: str) -> AliasRow:
        await self.ensure_resident(target)
        row = await self._database.write(
            lambda conn: aliases.rollback(conn, to, actor=actor, reason=reason, now_ms=now_ms())
        )
        await self.moved("stable", "rollback")
        return row

    async def registered(self) -> None:
        """A version was registered: prove it now and not at the next tick."""
        await self.refresh()
        self._wake.set()

    async def moved(self, name: AliasName, by: str) -> None:
        """An alias was moved here by `by`: follow at once."""
        self._telemetry.alias_moves.labels(name, by).inc()
        await self.refresh()
        self._wake.set()

    async def ensure_resident(self, version: str) -> None:
        """Load and prove a version that is to serve, unless the engine holds it or is down.

        Raises:
            SwapFailed: the engine cannot prove it.
        """
        if self._states.get(version) != "ready":  # it may have become so a moment ago, and the move below would see it
            await self.refresh()
        # With the engine down there is nothing to wait for: it will load what the aliases name before it serves.
        if self._states.get(version) != "ready" or self._engine.is_ready(version) or not self._engine.is_up():
            return
        row = self._rows[version]
        async with self._engine_turn:
            if self._foundation(version) == BASE and BASE not in self._engine.weights():
                await self._engine.place(self._foundations())
            if self._engine.is_ready(version):
                return
            if version == BASE:
                raise SwapFailed("The base model could not be put back; see the server's log.", code="swap_failed")
            proof = await self._install(row, keep={version})
        if not proof.passed:
            raise SwapFailed(f"{version} could not be proven on the engine: {proof.reason}.", code="swap_failed")

    # Residency

    async def settle(self) -> None:
        """Bring the engine in line: serving versions first, then what waits for its proof; then retire the rest."""
        if not self._engine.is_up():
            return
        await self._membership.claim(self._engine.resident() - {BASE})
        async with self._engine_turn:
            await self._place()
            for name in self._desired():
                if not self._engine.is_ready(name) and self._states.get(name) == "ready":
                    await self._reinstall(self._rows[name])
            loading = await self._database.read(lambda conn: versions.in_state(conn, "loading"))
            for row in sorted(loading, key=lambda row: row.kind == "full"):  # adapters first, which interrupt nobody
                if row.kind == "full" or BASE in self._engine.weights():
                    await self._prove(row)
            await self._place()  # where a whole model was tried, what serves comes back
            await self._retire_surplus(keep=set(self._desired()))

    def _foundation(self, version: str) -> str:
        row = self._rows.get(version)
        return foundation(version, row.kind) if row else BASE

    def _foundations(self) -> list[str]:
        """Whole models that should be live, most needed first, as many as there can be."""
        rows = [row for aliases in (self._aliases, self._targets) for row in aliases.values() if row.name != "previous"]
        soon = time.monotonic() - WANTED_S
        self._pinned = {name: at for name, at in self._pinned.items() if at > soon}
        asked_for = sorted(self._pinned, key=lambda name: -self._pinned[name])
        loading = [name for name, state in self._states.items() if state == "loading" and self._is_adapter(name)]
        names = [*self._expected, self.stable, *(row.version for row in rows), *self._held, *asked_for, *loading]
        needed = dict.fromkeys(self._foundation(name) for name in names)
        ready = [name for name in needed if self._states.get(name) == "ready"]
        return ready[: max(1, self._engine.capacity())] or [BASE]

    async def _place(self) -> None:
        """Bring whole models to where they should be; in a fleet of adapters on the base model nothing is to do."""
        wanted = self._foundations()
        for name in wanted:
            if name != BASE and not self._engine.is_ready(name):
                await self._reinstall(self._rows[name])
        await self._engine.place(wanted)

    def _desired(self) -> list[str]:
        """Adapters that should be resident, most needed first; none while no replica holds the base model."""
        if BASE not in self._engine.weights():
            return []
        soon = time.monotonic() - WANTED_S
        self._wanted = {name: at for name, at in self._wanted.items() if at > soon}
        serving = [self._aliases[name].version for name in _SERVING_ORDER if name in self._aliases]
        serving += [self._targets[name].version for name in _SERVING_ORDER if name in self._targets]
        asked_for = sorted(self._wanted, key=lambda name: -self._wanted[name])
        newest = sorted((n for n, state in self._states.items() if state == "ready"), key=version_number, reverse=True)
        order = dict.fromkeys([*serving, *self._held, *asked_for, *newest])
        return [name for name in order if self._is_adapter(name)][: self._max_resident]

    def _is_adapter(self, name: str) -> bool:
        return name != BASE and self._foundation(name) == BASE

    def _adapters(self) -> set[str]:
        """Adapters that hold a place on the engine."""
        return {name for name in self._engine.resident() if self._is_adapter(name)}

    async def _reinstall(self, row: VersionRow) -> None:
        proof = await self._install(row, keep=set(self._desired()))
        if proof.passed:
            self._failures.pop(row.name, None)
            self._reasons.pop(row.name, None)
            return
        # What could not be proven must not hold a place on the engine either.
        await self._engine.retire(row.name)
        self._failures[row.name] += 1
        self._reasons[row.name] = proof.reason or "the probe did not pass"
        if self._failures[row.name] >= _ATTEMPTS:
            reason = f"could not be proven again: {self._reasons[row.name]}"
            await self._database.write(lambda conn: versions.set_state(conn, row.name, "failed", reason))
            await self._reload(row.name)

    async def _prove(self, row: VersionRow) -> None:
        # The least needed gives its place to the new one for as long as its proof takes.
        proof = await self._install(row, keep={row.name, *self._desired()[: self._max_resident - 1]})

        async def settle(conn: Connection) -> bool:
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

        promoted = await self._database.write(settle)
        await self._reload(row.name)
        if promoted:
            self._telemetry.alias_moves.labels("stable", "auto_promote").inc()

    async def _reload(self, name: str) -> None:
        self._stale.add(name)  # and kept meanwhile: what kind it is must be known at every moment
        await self.refresh()

    async def _install(self, row: VersionRow, *, keep: set[str]) -> ProofReport:
        """Load and prove one version; the engine's turn must be held."""
        assert row.location is not None and row.manifest_sha256 is not None, "only base has neither"
        if row.kind == "adapter":
            await self._retire_surplus(keep=keep, room=1)
        if row.kind == "adapter" and len(self._adapters() - {row.name}) >= self._max_resident:
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
        resident = self._adapters()
        surplus = len(resident) + room - self._max_resident
        if surplus <= 0:
            return
        await self._membership.refresh()  # what another gateway began to use a moment ago stays loaded
        idle = sorted(resident - keep - set(self._held), key=version_number)
        for name in idle[:surplus]:
            await self._engine.retire(name)
        self._telemetry.forget_retired(self.current())


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

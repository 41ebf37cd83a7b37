"""Rollouts as they run: a look at the evidence every few seconds, and the deed that follows from it.

Looking needs one read. Where something must be done, it is decided once more and done in one write transaction, so
that what is decided is what the rows say at that moment. Every gateway process looks; the one whose transaction comes
first acts, and the others find the rollout changed.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from plaudit.wire.rollouts import RolloutCreate, RolloutDecision, RolloutReport, RolloutState
from plaudit.wire.versions import AliasName
from plaudit_server.domain.moments import now_ms
from plaudit_server.domain.records import RolloutRow
from plaudit_server.domain.rollouts import assess
from plaudit_server.errors import Conflict
from plaudit_server.serving import Serving, forever
from plaudit_server.store import Connection, aliases, rollouts
from plaudit_server.store.database import Database
from plaudit_server.telemetry import Telemetry, log_event

logger = logging.getLogger(__name__)

ACTOR = "rollout"
"""Who acts, in the audit log, where no person did."""

_SHARE_OF_TIME = 0.1
"""Looking takes at most this part of the time, however many answers there are to count."""

_ENDS: dict[RolloutDecision, RolloutState] = {"promote": "promoted", "rollback": "rolled_back", "expire": "expired"}


class Rollouts:
    """Begins, watches and ends rollouts.

    Args:
        tick_s: seconds between two looks.
    """

    def __init__(self, database: Database, serving: Serving, telemetry: Telemetry, *, tick_s: float) -> None:
        self._database = database
        self._serving = serving
        self._telemetry = telemetry
        self._tick_s = tick_s
        self._took_s = 0.0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look. What was under way before a restart goes on."""
        self._task = asyncio.create_task(forever("rollout", self.tick, self._rest))

    async def close(self) -> None:
        """Stop looking."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _rest(self) -> None:
        await asyncio.sleep(max(self._tick_s, self._took_s / _SHARE_OF_TIME))

    # What an operator asks

    async def begin(self, request: RolloutCreate, *, actor: str) -> RolloutRow:
        """Begin one; it serves when this returns.

        Raises as `store.rollouts.create`, SwapFailed, and Conflict where candidate and stable cannot be live at once.
        """
        await self._serving.check_room(request.candidate)
        await self._serving.reconciler.ensure_resident(request.candidate)
        row = await self._database.write(lambda conn: rollouts.create(conn, request, actor=actor, now_ms=now_ms()))
        await self._serving.moved("canary", "rollout")
        return row

    async def look(self, rollout_id: str) -> tuple[RolloutRow, RolloutReport | None]:
        """One rollout, with its report of now while it lasts, and of its end afterwards. Raises NotFound."""

        async def read(conn: Connection) -> tuple[RolloutRow, RolloutReport | None]:
            row = await rollouts.get(conn, rollout_id)
            return row, await _report(conn, row) if row.is_live else row.report

        return await self._database.read(read)

    async def promote(self, rollout_id: str, *, actor: str, reason: str | None) -> None:
        """A person makes the candidate stable. Raises as `store.rollouts.finish`, NotFound, and SwapFailed."""
        row = await self._database.read(lambda conn: rollouts.get(conn, rollout_id))
        await self._serving.reconciler.ensure_resident(row.candidate)
        await self._end(rollout_id, "promoted", actor=actor, reason=reason)
        await self._serving.moved("stable", "operator")

    async def abort(self, rollout_id: str, *, actor: str, reason: str | None) -> None:
        """A person ends it; stable serves everybody. Raises NotFound, and Conflict where it is over."""
        await self._end(rollout_id, "aborted", actor=actor, reason=reason)
        await self._serving.moved("canary", "operator")

    async def pause(self, rollout_id: str, *, actor: str, reason: str | None) -> None:
        """Go no further by itself. Raises NotFound, and Conflict unless it is running."""
        await self._change(rollout_id, rollouts.pause, actor=actor, reason=reason)

    async def resume(self, rollout_id: str, *, actor: str, reason: str | None) -> None:
        """Go on. Raises NotFound, and Conflict unless it is paused."""
        await self._change(rollout_id, rollouts.resume, actor=actor, reason=reason)

    async def _end(self, rollout_id: str, state: RolloutState, *, actor: str, reason: str | None) -> None:
        words = reason or f"{state} by {actor}"

        async def end(conn: Connection) -> None:
            row = await rollouts.get(conn, rollout_id)
            report = await _report(conn, row) if row.is_live else None
            await rollouts.finish(conn, row, state, report=report, actor=actor, reason=words, now_ms=now_ms())

        await self._database.write(end)

    async def _change(
        self, rollout_id: str, change: Callable[..., Awaitable[None]], *, actor: str, reason: str | None
    ) -> None:
        async def apply(conn: Connection) -> None:
            row = await rollouts.get(conn, rollout_id)
            await change(conn, row, actor=actor, reason=reason, now_ms=now_ms())

        await self._database.write(apply)

    # What happens by itself

    async def tick(self) -> None:
        """Look once, and act where the evidence says so."""
        began = time.monotonic()
        row, report, superseded = await self._database.read(_look)
        self._took_s = time.monotonic() - began
        self._measure(row, report)
        if row is None or report is None or not (superseded or report.automatic):
            return
        if report.decision == "promote" and not superseded:
            await self._serving.reconciler.ensure_resident(row.candidate)
        try:
            moved = await self._database.write(_act)
        except Conflict as error:  # another process acted, or a person did
            log_event(logger, logging.INFO, "rollout.overtaken", rollout=row.id, reason=error.message)
            moved = None
        if moved is not None:
            await self._serving.moved(moved, "rollout")

    def _measure(self, row: RolloutRow | None, report: RolloutReport | None) -> None:
        shown = self._telemetry
        shown.rollout_weight.set(row.weight if row else 0)
        shown.rollout_e_value.set(report.e_value if report else 0)
        shown.rollout_raters.labels("stable").set(report.stable.raters if report else 0)
        shown.rollout_raters.labels("canary").set(report.canary.raters if report else 0)


async def _report(conn: Connection, row: RolloutRow) -> RolloutReport:
    return assess(row, await rollouts.evidence(conn, row), now_ms=now_ms())


async def _look(conn: Connection) -> tuple[RolloutRow | None, RolloutReport | None, bool]:
    row = await rollouts.live(conn)
    if row is None:
        return None, None, False
    return row, await _report(conn, row), await rollouts.is_superseded(conn, row)


async def _act(conn: Connection) -> AliasName | None:
    """Decide and do it; the alias that traffic must follow, or None where nothing was to be done after all."""
    row, report, superseded = await _look(conn)
    if row is None or report is None:
        return None
    if superseded:
        return await _give_way(conn, row, report)
    if not report.automatic:
        return None
    if report.decision == "advance":
        await rollouts.advance(conn, row, report, actor=ACTOR, now_ms=now_ms())
    else:
        await _finish(conn, row, _ENDS[report.decision], report, report.words)
    return "stable" if report.decision == "promote" else "canary"


async def _give_way(conn: Connection, row: RolloutRow, report: RolloutReport) -> AliasName:
    """A person moved `stable`: the comparison is void, and whatever they chose stays."""
    stable = (await aliases.get_all(conn))["stable"]
    if stable.version == row.candidate:
        await _finish(conn, row, "promoted", report, f"{stable.actor} made {row.candidate} stable.")
    else:
        words = f"{stable.actor} moved stable (now {stable.version}): there is nothing left to compare with."
        await _finish(conn, row, "aborted", report, words)
    return "canary"


async def _finish(conn: Connection, row: RolloutRow, state: RolloutState, report: RolloutReport, words: str) -> None:
    await rollouts.finish(conn, row, state, report=report, actor=ACTOR, reason=words, now_ms=now_ms())
    log_event(logger, logging.WARNING if state == "rolled_back" else logging.INFO, f"rollout.{state}", rollout=row.id)

"""What is fetched when somebody looks: figures that lie in the engine, in memory or in the database.

One read transaction with one query for each table, all by an index; nothing here is on the path of a chat.
"""

import time
from dataclasses import dataclass
from typing import get_args

from plaudit.wire.training import RunState
from plaudit.wire.versions import VersionState
from plaudit_server.domain.figures import known_stage, watched
from plaudit_server.domain.moments import now_ms
from plaudit_server.domain.records import HeldLeases, NewestRun
from plaudit_server.services import Services
from plaudit_server.store import Connection, counts, leases
from plaudit_server.telemetry import ENGINE_STATES, Telemetry


@dataclass(frozen=True, slots=True)
class _Stored:
    """What the database knows."""

    waiting: int
    held: HeldLeases
    runs: dict[RunState, int]
    newest: NewestRun | None


async def scrape(services: Services) -> bytes:
    """Every figure, in Prometheus' text format."""
    began = time.monotonic()
    stored = await services.database.read(_read)
    # From here on nothing awaits: two who scrape at once each see a whole picture.
    telemetry = services.telemetry
    telemetry.forget_retired(services.serving.demand.current())
    _show_engine(services)
    _show_serving(services)
    _show_queues(services)
    _show_training(telemetry, stored)
    _show_trainer(services, stored.newest)
    telemetry.scrape_seconds.set(time.monotonic() - began)
    return telemetry.render()


async def _read(conn: Connection) -> _Stored:
    return _Stored(
        await leases.waiting(conn),
        await counts.held_leases(conn),
        await counts.runs(conn),
        await counts.newest_run(conn),
    )


def _show_engine(services: Services) -> None:
    """Replicas come and go, so their series are made anew; a proof is shown while its replica is there."""
    telemetry, settings = services.telemetry, services.settings
    low, high = settings.probe_slope_low, settings.probe_slope_high
    telemetry.probe_bound.labels("low").set(low)
    telemetry.probe_bound.labels("high").set(high)
    probed = (telemetry.probe_slope, telemetry.probe_low, telemetry.probe_high, telemetry.probe_margin)
    for gauge in (telemetry.engine_state, telemetry.engine_restarts, *probed):
        gauge.clear()
    for replica in services.engine.health():
        for state in ENGINE_STATES:
            telemetry.engine_state.labels(replica.replica, state).set(replica.state == state)
        telemetry.engine_restarts.labels(replica.replica).set(replica.restarts)
        proof = telemetry.proofs.get(replica.replica)
        if proof is None or proof.slope is None:
            continue
        telemetry.probe_slope.labels(replica.replica).set(proof.slope)
        if proof.low is not None and proof.high is not None:
            telemetry.probe_low.labels(replica.replica).set(proof.low)
            telemetry.probe_high.labels(replica.replica).set(proof.high)
            telemetry.probe_margin.labels(replica.replica).set(min(proof.low - low, high - proof.high))


def _show_serving(services: Services) -> None:
    telemetry, serving = services.telemetry, services.serving
    telemetry.alias_version.clear()
    for alias, row in serving.catalog.targets.items():
        telemetry.alias_version.labels(alias, row.version).set(1)
    telemetry.stable_proven.set(serving.routing.answers())
    telemetry.versions_resident.set(len(services.engine.resident() - {"base"}))
    states = serving.catalog.counts()
    for state in get_args(VersionState):
        telemetry.versions.labels(state).set(states[state])


def _show_queues(services: Services) -> None:
    services.telemetry.answers_waiting.set(services.answering.unwritten)
    services.telemetry.writer_queue.set(services.database.waiting)


def _show_training(telemetry: Telemetry, stored: _Stored) -> None:
    telemetry.records_waiting.set(stored.waiting)
    for state in get_args(RunState):
        telemetry.runs.labels(state).set(stored.runs.get(state, 0))
    held, now = stored.held, now_ms()
    telemetry.leases_held.set(held.count)
    telemetry.lease_age.set(_seconds_since(held.oldest_at_ms, now))
    telemetry.lease_overdue.set(_seconds_since(held.first_expiry_ms, now))
    telemetry.stage.clear()
    telemetry.figures.clear()
    run = stored.newest
    going = run if run is not None and run.state == "running" else None
    telemetry.progress.set((going.progress if going else None) or 0)
    telemetry.step.set((going.step if going else None) or 0)
    if going is not None and going.stage is not None:
        telemetry.stage.labels(known_stage(going.stage)).set(1)
    for figure, value in (watched(run.metrics) if run else {}).items():
        telemetry.figures.labels(figure).set(value)


def _show_trainer(services: Services, run: NewestRun | None) -> None:
    """Another gateway process may be the one that the trainer calls: what it told of its run is in the database."""
    began_ms = now_ms() - round((time.monotonic() - services.started) * 1000)
    heard_ms = max(began_ms, services.trainer_seen_ms or 0, run.updated_at_ms if run else 0)
    services.telemetry.trainer_silent.set(_seconds_since(heard_ms, now_ms()))


def _seconds_since(moment_ms: int | None, now: int) -> float:
    return 0 if moment_ms is None else max(0, now - moment_ms) / 1000

"""How the loop stands, gathered from the store in one read: for one look (`GET /v1/overview`) or many (`live.py`)."""

from dataclasses import dataclass
from importlib.metadata import version as release_of
from typing import get_args

from plaudit.wire.overview import Counts, Newest, Overview, Refusal, RunNow, ServerNow, Waiting
from plaudit.wire.training import BatchState, RunState
from plaudit.wire.versions import VersionState
from plaudit_server import views
from plaudit_server.domain.moments import to_moment
from plaudit_server.domain.records import AliasRow, NewestMarks, RefusalRow, RolloutRow, RunRow, StageSpan
from plaudit_server.domain.standing import Standing, standing
from plaudit_server.domain.versions import BASE
from plaudit_server.services import Services
from plaudit_server.store import Connection, aliases, counts, leases, rollouts, signals
from plaudit_server.store import overview as store

RELEASE = release_of("plaudit")


@dataclass(frozen=True, slots=True)
class _Stored:
    """What the database knows."""

    aliases: list[AliasRow]
    waiting: Waiting
    counts: Counts
    marks: NewestMarks
    run: tuple[RunRow, StageSpan] | None
    refusal: RefusalRow | None
    rollout: RolloutRow | None


async def look(services: Services) -> Overview:
    """Look at everything once. A dozen short queries, and the evidence of a rollout that is under way."""
    stored = await services.database.read(_read)
    rollout = None
    if stored.rollout is not None:
        rollout = views.rollout(*await services.rollouts.look(stored.rollout.id))
    marks = stored.marks
    return Overview(
        server=_server(services, stored.run),
        aliases=[views.alias(row) for row in stored.aliases],
        waiting=stored.waiting,
        counts=stored.counts,
        newest=Newest(
            feedback_at=None if marks.feedback_ms is None else to_moment(marks.feedback_ms),
            answer=marks.answer,
            audit=marks.audit,
        ),
        run=None if stored.run is None else run_now(*stored.run),
        refusal=None if stored.refusal is None else _refusal(stored.refusal),
        rollout=rollout,
    )


def run_now(row: RunRow, span: StageSpan) -> RunNow:
    """A run with where its stage stands. A run that is over has no end to wait for."""
    at = standing(row.progress, span.first, span.last) if row.state == "running" else Standing()
    ends_at = None if at.ends_at_ms is None else to_moment(at.ends_at_ms)
    return RunNow(**views.run(row).model_dump(), step=at.step, steps=at.steps, stage_ends_at=ends_at)


async def _read(conn: Connection) -> _Stored:
    newest = (await rollouts.page(conn, limit=1)).items
    versions, batches = await store.states(conn, "versions"), await store.states(conn, "batches")
    runs = await counts.runs(conn)
    return _Stored(
        aliases=list((await aliases.get_all(conn)).values()),
        waiting=Waiting(records=await leases.waiting(conn), passed_over=await signals.passed_over(conn)),
        counts=Counts(
            versions={state: versions.get(state, 0) for state in get_args(VersionState)},
            runs={state: runs.get(state, 0) for state in get_args(RunState)},
            batches={state: batches.get(state, 0) for state in get_args(BatchState)},
        ),
        marks=await store.marks(conn),
        run=await store.newest_run(conn),
        refusal=await store.last_refusal(conn),
        rollout=newest[0] if newest else None,
    )


def _server(services: Services, run: tuple[RunRow, StageSpan] | None) -> ServerNow:
    """Another gateway process may be the one that the trainer calls: what it told of its run is in the database."""
    states = [replica.state for replica in services.engine.health()]
    answers = services.serving.routing.answers()
    engine = "ready" if "ready" in states else "starting" if "starting" in states else "down"
    heard = [moment for moment in (services.trainer_seen_ms, run and run[0].updated_at_ms) if moment]
    return ServerNow(
        status="ok" if answers else "degraded" if services.engine.is_ready(BASE) or engine == "down" else "starting",
        engine=engine,
        fake_engine=services.engine.is_fake,
        release=RELEASE,
        replicas=len(states),
        replicas_ready=states.count("ready"),
        trainer_seen_at=to_moment(max(heard)) if heard else None,
    )


def _refusal(row: RefusalRow) -> Refusal:
    return Refusal(subject=row.subject, kind=row.kind, at=to_moment(row.at_ms), reason=row.reason)

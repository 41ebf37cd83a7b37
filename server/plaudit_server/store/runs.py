"""Training runs: one a batch, with the version name reserved for it."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Row, func, insert, select
from sqlalchemy import update as sql_update
from sqlalchemy.ext.asyncio import AsyncConnection

from plaudit.wire.training import RunCreate, RunState, RunUpdate
from plaudit_server.domain.ids import new_id
from plaudit_server.domain.records import MetricPoint, Rows, RunRow
from plaudit_server.domain.versions import check_parent, version_name
from plaudit_server.errors import Conflict, NotFound
from plaudit_server.store import leases, paging
from plaudit_server.store import tables as t


async def create(conn: AsyncConnection, request: RunCreate, *, now_ms: int) -> RunRow:
    """Begin a run on a leased batch, or find the one that was begun; without a batch, on a new empty one.

    Allots the next version number (never given twice), the parent (`stable` now), its folder, and the folder to start
    reward model and critic from. A run that failed while its batch stayed leased goes on.

    Raises:
        NotFound: there is no such batch, or no such parent.
        Conflict: this worker does not hold it (code `lease_lost`), or without a batch, holds one; the parent was given
            though there is a batch, cannot serve, or is a whole model that no adapter can be trained on.
    """
    batch_id = request.batch_id
    if batch_id is None:
        batch_id = await leases.open_empty(conn, request.worker, request.lease_seconds, now_ms=now_ms)
    elif request.parent is not None:
        raise Conflict("A run on a batch starts from the stable version: leave parent out.", code="parent_given")
    await leases.check_held(conn, batch_id, request.worker, now_ms=now_ms)
    known = (await conn.execute(select(t.runs.c.id).where(t.runs.c.batch_id == batch_id))).scalar_one_or_none()
    if known is not None:
        failed = (t.runs.c.id == known, t.runs.c.state == "failed")
        await conn.execute(sql_update(t.runs).where(*failed).values(state="running", reason=None, updated_at=now_ms))
        return await get(conn, known)
    run_id = new_id("run_")
    await conn.execute(insert(t.runs).values({"id": run_id, **await _new(conn, request, batch_id, now_ms)}))
    return await get(conn, run_id)


async def update(conn: AsyncConnection, run_id: str, request: RunUpdate, *, now_ms: int) -> RunRow:
    """Record progress, metrics, or the failure of a run.

    Raises:
        NotFound: there is no such run.
        Conflict: it is over (code `run_over`). Reporting the same failure again is harmless.
    """
    run = await get(conn, run_id)
    if run.state == "failed" and request.state == "failed":
        return run
    if run.state != "running":
        raise Conflict(f"Run {run_id} is over: {run.state}.", code="run_over")
    given = {name: getattr(request, name) for name in ("stage", "progress", "state", "reason")}
    values = {name: value for name, value in given.items() if value is not None}
    newest = {**run.metrics, **request.metrics}
    await conn.execute(
        sql_update(t.runs).where(t.runs.c.id == run_id).values({**values, "updated_at": now_ms, "metrics": newest})
    )
    if request.metrics:
        stage = request.stage or run.stage
        await add_metrics(conn, run_id, request.metrics, stage=stage, step=request.step, now_ms=now_ms)
    return await get(conn, run_id)


async def finish(conn: AsyncConnection, run_id: str, state: RunState, reason: str | None, *, now_ms: int) -> None:
    """End a run whose version was registered."""
    values = {"state": state, "reason": reason, "progress": 1.0, "updated_at": now_ms}
    await conn.execute(sql_update(t.runs).where(t.runs.c.id == run_id).values(values))


async def get(conn: AsyncConnection, run_id: str) -> RunRow:
    """One run. Raises NotFound."""
    row = (await conn.execute(select(t.runs).where(t.runs.c.id == run_id))).one_or_none()
    if row is None:
        raise NotFound(f"There is no run {run_id}.", code="run_not_found")
    return _from_row(row)


async def page(
    conn: AsyncConnection, *, state: RunState | None = None, after: str | None = None, limit: int = 20
) -> Rows[RunRow]:
    """Runs, newest first."""
    query = select(t.runs) if state is None else select(t.runs).where(t.runs.c.state == state)
    return await paging.page(conn, query, by=t.runs.c.id, after=after, limit=limit, read=_from_row)


async def add_metrics(
    conn: AsyncConnection,
    run_id: str,
    metrics: Mapping[str, float],
    *,
    stage: str | None,
    step: int | None,
    now_ms: int,
) -> None:
    """Append one step's metrics."""
    values = {"run_id": run_id, "at": now_ms, "stage": stage, "step": step, "metrics": dict(metrics)}
    await conn.execute(insert(t.run_metrics).values(values))


async def metrics(conn: AsyncConnection, run_id: str) -> list[MetricPoint]:
    """All metrics of a run, in the order they came."""
    point = t.run_metrics.c
    rows = await conn.execute(select(t.run_metrics).where(point.run_id == run_id).order_by(point.id))
    return [MetricPoint(row.stage, row.step, row.at, row.metrics) for row in rows]


async def _new(conn: AsyncConnection, request: RunCreate, batch_id: str, now_ms: int) -> dict[str, Any]:
    version = t.versions.c
    parent = await _parent(conn, request.parent)
    if request.batch_id is not None:  # what learns from feedback trains an adapter
        check_parent("adapter", parent.name, parent.kind)
    # A tuned version has learnt from no votes: it has no reward model and critic that could go on.
    taught = (version.location.is_not(None), version.records > 0)
    newest = select(version.location).where(*taught).order_by(version.number.desc()).limit(1)
    last_number = (await conn.execute(select(func.max(t.runs.c.number)))).scalar_one_or_none() or 0
    return {
        "batch_id": batch_id,
        "worker": request.worker,
        "number": last_number + 1,
        "parent": parent.name,
        "parent_location": parent.location,
        "warm_start_location": (await conn.execute(newest)).scalar_one_or_none(),
        "state": "running",
        "config": request.config,
        "created_at": now_ms,
        "updated_at": now_ms,
        "metrics": {},
    }


async def _parent(conn: AsyncConnection, name: str | None) -> Row[Any, Any, Any, Any]:
    """Name, location, state of what a run starts from. Raises NotFound, or Conflict where it was never proven."""
    version, alias = t.versions.c, t.aliases.c
    known = select(version.name, version.location, version.state, version.kind)
    if name is None:
        return (await conn.execute(known.join_from(t.aliases, t.versions).where(alias.name == "stable"))).one()
    found = (await conn.execute(known.where(version.name == name))).first()
    if found is None:
        raise NotFound(f"There is no version {name}.", code="version_not_found")
    if found.state != "ready":
        raise Conflict(f"{name} is {found.state}: only a proven version can be a parent.", code="parent_not_ready")
    return found


def _from_row(row: Row[Any]) -> RunRow:
    values = dict(row._mapping)
    values["version"] = version_name(values.pop("number"))
    return RunRow(created_at_ms=values.pop("created_at"), updated_at_ms=values.pop("updated_at"), **values)

"""Policy versions and where they come from."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import CTE, ColumnElement, Row, bindparam, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from plaudit.wire.training import RunState
from plaudit.wire.versions import AliasName, GateReport, ProofReport, VersionCreate, VersionState
from plaudit_server.domain.records import LineageData, Rows, RunRow, VersionRow
from plaudit_server.domain.versions import check_parent, check_transition, version_number
from plaudit_server.errors import Conflict, NotFound
from plaudit_server.store import leases, paging, runs
from plaudit_server.store import tables as t

_version = t.versions.c


async def register(conn: AsyncConnection, request: VersionCreate, *, now_ms: int) -> tuple[VersionRow, bool]:
    """Register a published version and consume its batches, in this transaction.

    Returns:
        The version (`loading`, or `rejected` where the gate refused it), and whether it is new: registering the same
        again changes nothing.

    A version that was trained while one of its sources was being erased is tainted from the start.

    Raises:
        NotFound: there is no such run.
        Conflict: the run reserved another name, the batches or the parent are not the run's, the parent is of a kind
            that this one cannot be trained from, the lease is lost, or something else was registered under the name.
    """
    run = await runs.get(conn, request.run_id)
    known = (await conn.execute(select(t.versions).where(_version.name == request.name))).one_or_none()
    if known is not None:
        _check_same(known, request)
        return await get(conn, request.name), False
    _check_run(run, request)
    check_parent(request.kind, request.parent, (await get(conn, request.parent)).kind)
    await leases.check_held(conn, run.batch_id, run.worker, now_ms=now_ms)
    await conn.execute(insert(t.versions).values(_to_row(request, now_ms)))
    records = await leases.consume(conn, request.batch_ids, request.name, now_ms=now_ms)
    tainted = await _erased_sources(conn, t.batches.c.version == request.name) > 0
    await conn.execute(update(t.versions).where(_version.name == request.name).values(records=records, tainted=tainted))
    state: RunState = "published" if request.outcome == "candidate" else "rejected"
    await runs.finish(conn, run.id, state, request.reason, now_ms=now_ms)
    return await get(conn, request.name), True


async def set_proof(conn: AsyncConnection, name: str, proof: ProofReport) -> VersionRow:
    """Keep the proof and make the version `ready` or, with its reason, `failed`.

    Raises:
        NotFound: there is no such version.
        Conflict: the state machine forbids it; the proof is not kept then.
    """
    state: VersionState = "ready" if proof.passed else "failed"
    await set_state(conn, name, state, None if proof.passed else proof.reason or "the swap probe failed")
    values = {"proof": proof.model_dump(mode="json")}
    await conn.execute(update(t.versions).where(_version.name == name).values(values))
    return await get(conn, name)


async def set_state(conn: AsyncConnection, name: str, state: VersionState, reason: str | None = None) -> VersionRow:
    """Change a version's state. Raises NotFound, or Conflict where the state machine forbids it."""
    now = await get(conn, name)
    check_transition(name, now.state, state)
    await conn.execute(update(t.versions).where(_version.name == name).values(state=state, reason=reason))
    return await get(conn, name)


async def get(conn: AsyncConnection, name: str) -> VersionRow:
    """One version. Raises NotFound."""
    rows = (await conn.execute(select(t.versions).where(_version.name == name))).all()
    if not rows:
        raise NotFound(f"There is no version {name}.", code="version_not_found")
    return (await _complete(conn, rows))[0]


async def page(
    conn: AsyncConnection, *, state: VersionState | None = None, after: str | None = None, limit: int = 20
) -> Rows[VersionRow]:
    """Versions, newest first, base last. `after` is a version's name."""
    query = select(t.versions) if state is None else select(t.versions).where(_version.state == state)
    below = None if after is None else version_number(after)
    found = await paging.page(conn, query, by=_version.number, after=below, limit=limit, read=lambda row: row)
    return Rows(await _complete(conn, found.items), found.has_more)


async def in_state(conn: AsyncConnection, state: VersionState) -> list[VersionRow]:
    """All versions in a state, oldest first."""
    query = select(t.versions).where(_version.state == state).order_by(_version.number)
    return await _complete(conn, (await conn.execute(query)).all())


async def states(conn: AsyncConnection) -> dict[str, VersionState]:
    """The state of every version."""
    return {row.name: row.state for row in await conn.execute(select(_version.name, _version.state))}


async def lineage(conn: AsyncConnection, name: str) -> LineageData:
    """Ancestors, nearest first, and the batches that they and the version learned from. Raises NotFound."""
    line = _line(name).c
    chain = (await conn.execute(select(line.name).order_by(line.number.desc()))).scalars().all()
    if not chain:
        raise NotFound(f"There is no version {name}.", code="version_not_found")
    learned = t.batches.c.version.in_(select(_line(name).c.name))
    batches = await conn.execute(select(t.batches).where(learned).order_by(t.batches.c.id))
    read = [leases.from_row(row) for row in batches]
    return LineageData(name, list(chain[1:]), read, await _erased_sources(conn, learned))


async def taint(conn: AsyncConnection, names: Sequence[str]) -> list[str]:
    """Mark versions and all their descendants as having learned from something erased; the names newly marked."""
    tainted, fresh = set(names), []
    lines = select(_version.name, _version.parent, _version.tainted)
    for row in await conn.execute(lines.order_by(_version.number)):  # parents have lower numbers than their children
        if row.name in tainted or row.parent in tainted:
            tainted.add(row.name)
            if not row.tainted:
                fresh.append(row.name)
    if fresh:
        mark = update(t.versions).where(_version.name == bindparam("marked")).values(tainted=True)
        await conn.execute(mark, [{"marked": name} for name in fresh])
    return fresh


def _line(name: str) -> CTE:
    """A version and its ancestors, found by the database: a line may be longer than a statement has parameters."""
    columns = _version.name, _version.number, _version.parent
    line = select(*columns).where(_version.name == name).cte("line", recursive=True)
    return line.union_all(select(*columns).join(line, _version.name == line.c.parent))


async def _erased_sources(conn: AsyncConnection, learned: ColumnElement[bool]) -> int:
    """How many answers of these batches were erased since a version learned from them, or during its training.

    From the erased, which are few, to the batches: what was ever learned from is much.
    """
    erased = select(t.tombstones.c.response_id).where(t.tombstones.c.fate == "erased")
    query = (
        select(func.count())
        .select_from(t.consumptions)
        .join(t.batches, t.batches.c.id == t.consumptions.c.batch_id)
        .where(t.consumptions.c.item_id.in_(erased), learned)
    )
    return int((await conn.execute(query)).scalar_one())


def _check_same(known: Row[Any], request: VersionCreate) -> None:
    was = (known.run_id, known.manifest_sha256, known.location, known.parent, known.kind, known.state == "rejected")
    outcome = request.outcome == "rejected"
    if was != (request.run_id, request.manifest_sha256, request.location, request.parent, request.kind, outcome):
        raise Conflict(f"Something else was registered as {request.name} before.", code="version_exists")


def _check_run(run: RunRow, request: VersionCreate) -> None:
    if run.version != request.name:
        raise Conflict(f"Run {run.id} reserved the name {run.version}, not {request.name}.", code="wrong_name")
    if run.parent != request.parent:
        raise Conflict(f"Run {run.id} started from {run.parent}, not {request.parent}.", code="wrong_parent")
    if set(request.batch_ids) != {run.batch_id}:
        raise Conflict(f"Run {run.id} trained on {run.batch_id} and on nothing else.", code="wrong_batches")
    if run.state != "running":
        raise Conflict(f"Run {run.id} is over: {run.state}.", code="run_over")
    if request.outcome == "candidate" and not request.gate.passed:
        raise Conflict("The gate refused this version: register it as rejected.", code="gate_failed")


def _to_row(request: VersionCreate, now_ms: int) -> dict[str, Any]:
    refusal = "; ".join(request.gate.refusals) or None
    return {
        "name": request.name,
        "number": version_number(request.name),
        "kind": request.kind,
        "state": "loading" if request.outcome == "candidate" else "rejected",
        "reason": request.reason or refusal if request.outcome == "rejected" else None,
        "parent": request.parent,
        "location": request.location,
        "manifest_sha256": request.manifest_sha256,
        "run_id": request.run_id,
        "records": 0,
        "created_at": now_ms,
        "gate": request.gate.model_dump(mode="json"),
        "proof": None,
        "metrics": request.metrics,
        "tainted": False,
    }


async def _complete(conn: AsyncConnection, rows: Sequence[Row[Any]]) -> list[VersionRow]:
    """Rows with their aliases and batches."""
    names = [row.name for row in rows]
    aliases: dict[str, list[AliasName]] = {name: [] for name in names}
    for row in await conn.execute(select(t.aliases).where(t.aliases.c.version.in_(names)).order_by(t.aliases.c.name)):
        aliases[row.version].append(row.name)
    batches: dict[str, list[str]] = {name: [] for name in names}
    for row in await conn.execute(select(t.batches).where(t.batches.c.version.in_(names)).order_by(t.batches.c.id)):
        batches[row.version].append(row.id)
    return [_from_row(row, aliases[row.name], batches[row.name]) for row in rows]


def _from_row(row: Row[Any], aliases: list[AliasName], batch_ids: list[str]) -> VersionRow:
    values = dict(row._mapping)
    values["gate"] = None if row.gate is None else GateReport.model_validate(row.gate)
    values["proof"] = None if row.proof is None else ProofReport.model_validate(row.proof)
    return VersionRow(created_at_ms=values.pop("created_at"), aliases=aliases, batch_ids=batch_ids, **values)

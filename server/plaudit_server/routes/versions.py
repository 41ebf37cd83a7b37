"""Versions, aliases, promotion and rollback."""

from typing import Annotated, Literal

from fastapi import Header, Query, Response
from fastapi.params import Path as PathParameter

from plaudit.wire.base import Page, VersionName
from plaudit.wire.versions import (
    Alias,
    AliasUpdate,
    Lineage,
    PromoteRequest,
    RollbackRequest,
    Version,
    VersionCreate,
    VersionState,
)
from plaudit_server import views
from plaudit_server.domain.moments import now_ms
from plaudit_server.domain.records import AliasRow
from plaudit_server.errors import BadRequest
from plaudit_server.routes.shared import Limit, Operator, S, Trainer, Viewer, errors, guarded_router, page
from plaudit_server.store import aliases, versions

router = guarded_router("versions")

Name = Annotated[VersionName, PathParameter(description="base or v<number>")]


@router.get("/v1/versions", summary="List versions")
async def list_versions(
    services: S,
    principal: Viewer,
    state: VersionState | None = None,
    after: Annotated[VersionName | None, Query(description="`next` of the page before")] = None,
    limit: Limit = 20,
) -> Page[Version]:
    """Versions, newest first."""
    rows = await services.database.read(lambda conn: versions.page(conn, state=state, after=after, limit=limit))
    items = [views.version(row) for row in rows.items]
    return page(items, has_more=rows.has_more, last_id=rows.items[-1].name if rows.items else None)


@router.post("/v1/versions", status_code=201, responses=errors(404, 409), summary="Register a version")
async def register(given: VersionCreate, response: Response, services: S, principal: Trainer) -> Version:
    """Register a published folder and consume its batches, in one transaction.

    Answers at once with state `loading` (or `rejected`); the engine loads and proves it in the background. The same
    again is a 200.
    """
    row, is_new = await services.database.write(lambda conn: versions.register(conn, given, now_ms=now_ms()))
    if not is_new:
        response.status_code = 200
    await services.serving.registered()
    return views.version(row)


@router.get("/v1/versions/{version}", responses=errors(404), summary="One version")
async def get_version(version: Name, services: S, principal: Viewer) -> Version:
    """A version with its gate, its proof and its aliases."""
    return views.version(await services.database.read(lambda conn: versions.get(conn, version)))


@router.get("/v1/versions/{version}/lineage", responses=errors(404), summary="Where a version comes from")
async def get_lineage(version: Name, services: S, principal: Viewer) -> Lineage:
    """Parents, batches and counts of feedback."""
    return views.lineage(await services.database.read(lambda conn: versions.lineage(conn, version)))


@router.post("/v1/versions/{version}/promote", responses=errors(404, 409), summary="Make a version stable")
async def promote(version: Name, services: S, principal: Operator, given: PromoteRequest | None = None) -> Alias:
    """In force for new requests when this answers; streams in flight finish on their own version."""
    reason = given.reason if given else None
    row = await services.serving.move(
        "stable", version, if_match=None, actor=principal.name, reason=reason, action="promote"
    )
    return views.alias(row)


@router.post("/v1/rollback", responses=errors(404, 409), summary="Move stable back")
async def rollback(given: RollbackRequest, services: S, principal: Operator) -> Alias:
    """To the version that was stable before, or to a named one."""
    return views.alias(await services.serving.rollback(given.to, actor=principal.name, reason=given.reason))


@router.get("/v1/aliases", summary="Who serves")
async def list_aliases(services: S, principal: Viewer) -> Page[Alias]:
    """`stable`, and `canary` and `previous` where they point somewhere."""
    rows = await services.database.read(aliases.get_all)
    return Page(data=[views.alias(row) for row in rows.values()])


@router.put("/v1/aliases/{name}", responses=errors(404, 409, 412), summary="Point an alias at a version")
async def put_alias(
    *,
    name: Literal["stable", "canary"],
    given: AliasUpdate,
    response: Response,
    services: S,
    principal: Operator,
    if_match: Annotated[str | None, Header(description="the alias's etag, or * for whatever it is")] = None,
) -> Alias:
    """Move an alias, if nobody else has moved it since its etag was read."""
    row: AliasRow = await services.serving.move(
        name, given.version, if_match=_etag(if_match), actor=principal.name, reason=given.reason
    )
    response.headers["ETag"] = f'"{row.etag}"'
    return views.alias(row)


def _etag(header: str | None) -> str | None:
    if header is None:
        raise BadRequest(
            "Send If-Match with the alias's etag (GET /v1/aliases), or * to move it whatever it is.",
            param="If-Match",
            code="missing_if_match",
        )
    etag = header.strip().removeprefix("W/").strip('"')
    return None if etag == "*" else etag

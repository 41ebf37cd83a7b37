"""Keys and the audit log."""

from typing import Annotated

from fastapi import Query

from plaudit.wire.base import Page
from plaudit.wire.ops import Key, KeyCreate, NewKey, OwnKey
from plaudit.wire.versions import AuditEntry
from plaudit_server import views
from plaudit_server.domain.moments import now_ms
from plaudit_server.domain.records import KeyRow
from plaudit_server.routes.shared import Admin, After, Anybody, Limit, Reader, S, errors, guarded_router, page
from plaudit_server.store import Connection, audit, keys

router = guarded_router("governance")


@router.post("/v1/keys", status_code=201, summary="Make a key")
async def create_key(given: KeyCreate, services: S, principal: Admin) -> NewKey:
    """The only time that its secret is shown; for that reason Idempotency-Key has no effect here."""

    async def create(conn: Connection) -> tuple[KeyRow, str]:
        row, secret = await keys.create(conn, name=given.name, roles=given.roles, now_ms=now_ms())
        await audit.append(
            conn,
            actor=principal.name,
            action="key.created",
            subject=row.id,
            detail={"name": row.name, "roles": list(row.roles)},
            now_ms=now_ms(),
        )
        return row, secret

    row, secret = await services.database.write(create)
    return NewKey(**views.key(row).model_dump(), secret=secret)


@router.get("/v1/keys", summary="List keys")
async def list_keys(services: S, principal: Admin, after: After = None, limit: Limit = 20) -> Page[Key]:
    """Keys without their secrets, newest first, revoked ones too."""
    rows = await services.database.read(lambda conn: keys.page(conn, after=after, limit=limit))
    items = [views.key(row) for row in rows.items]
    return page(items, has_more=rows.has_more, last_id=rows.items[-1].id if rows.items else None)


@router.get("/v1/keys/self", summary="The key of this request")
async def own_key(principal: Anybody) -> OwnKey:
    """Its name and roles: what whoever holds it may do."""
    return OwnKey(id=principal.key_id, name=principal.name, roles=sorted(principal.roles))


@router.delete("/v1/keys/{key_id}", responses=errors(404), summary="Revoke a key")
async def revoke_key(key_id: str, services: S, principal: Admin) -> Key:
    """In force within a second, here at once."""

    async def revoke(conn: Connection) -> KeyRow:
        row = await keys.revoke(conn, key_id, now_ms=now_ms())
        await audit.append(conn, actor=principal.name, action="key.revoked", subject=key_id, now_ms=now_ms())
        return row

    row = await services.database.write(revoke)
    services.keys.forget()
    return views.key(row)


@router.get("/v1/audit", summary="Who with power did what")
async def list_audit(
    services: S, principal: Reader, after: Annotated[int | None, Query(ge=0, lt=2**63)] = None, limit: Limit = 20
) -> Page[AuditEntry]:
    """Entries, newest first."""
    rows = await services.database.read(lambda conn: audit.page(conn, after=after, limit=limit))
    items = [views.audit(row) for row in rows.items]
    return page(items, has_more=rows.has_more, last_id=str(rows.items[-1].id) if rows.items else None)

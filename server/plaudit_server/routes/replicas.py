"""Engine replicas: who there is, who comes, who goes."""

from typing import Annotated

from fastapi import Response
from fastapi.params import Path as PathParameter

from plaudit.wire.base import Page
from plaudit.wire.ops import Replica, ReplicaAdd
from plaudit_server import views
from plaudit_server.routes.shared import Operator, Reader, S, errors, guarded_router
from plaudit_server.services import Services

router = guarded_router("replicas")

Name = Annotated[str, PathParameter(description="such as engine-1", max_length=128)]


@router.get("/v1/replicas", summary="List engine replicas")
async def list_replicas(services: S, principal: Reader) -> Page[Replica]:
    """All of them, with their health as this gateway sees it."""
    await services.membership.refresh()
    return Page(data=_all(services))


@router.post("/v1/replicas", status_code=201, summary="Add an engine replica")
async def add_replica(given: ReplicaAdd, response: Response, services: S, principal: Operator) -> Replica:
    """Known to every gateway within a second; it answers chats once everything that serves was proven on it.

    A drained or removed one comes back under its old name. The same again is a 200.
    """
    row, is_new = await services.membership.add(given.url, actor=principal.name)
    if not is_new:
        response.status_code = 200
    return _one(services, row.name)


@router.post("/v1/replicas/{name}/drain", responses=errors(404, 409), summary="Drain an engine replica")
async def drain_replica(name: Name, services: S, principal: Operator) -> Replica:
    """It is given nothing new, and may be stopped once `detail` says `drained` on every gateway."""
    row = await services.membership.leave(name, "draining", actor=principal.name)
    return _one(services, row.name)


@router.delete("/v1/replicas/{name}", responses=errors(404, 409), summary="Remove an engine replica")
async def remove_replica(name: Name, services: S, principal: Operator) -> Replica:
    """It is given nothing new; answers that it has begun end by themselves. The settings do not bring it back."""
    row = await services.membership.leave(name, "removed", actor=principal.name)
    return views.replica(row, None)


def _all(services: Services) -> list[Replica]:
    rows = {row.name: row for row in services.membership.rows}
    health = {one.replica: one for one in services.engine.health()}
    return [views.replica(rows.get(name), health.get(name), name) for name in dict.fromkeys([*health, *rows])]


def _one(services: Services, name: str) -> Replica:
    return next(replica for replica in _all(services) if replica.name == name)

"""Every route needs a key, save the few that are listed here, and says which roles may use it."""

from pathlib import Path
from typing import Any, get_args

import pytest
from fastapi import APIRouter, FastAPI

from plaudit.wire.ops import Role
from plaudit_server.app import create_app
from plaudit_server.guarded import LIMITED
from plaudit_server.routes.shared import guarded_router
from plaudit_server.settings import Settings
from tests.support.server import Harness, serving

OPEN = {"/healthz", "/readyz", "/openapi.json", "/docs", "/docs/oauth2-redirect", "/", "/console", "/assets/{name}"}
"""Load balancers have no keys; documents and pages tell nothing that the source does not."""

SIGNED = {"/v1/feedback/t/{token}"}
"""A signed token in the address stands in for the key."""

ROLES = set(get_args(Role))
DOCUMENT = create_app(Settings.model_construct()).openapi()
OPERATIONS = [(path, method, op) for path, ops in DOCUMENT["paths"].items() for method, op in ops.items()]
CONCRETE = {"{version}": "v1", "{name}": "stable", "{token}": "ft1_forged"}


def roles(op: dict[str, Any]) -> set[str]:
    """The roles that an operation names; none where it is not guarded."""
    requirements = op.get("security", [])
    return set(requirements[0].get("key", ())) if len(requirements) == 1 else set()


def unguarded(app: FastAPI) -> set[str]:
    """Every path of an app that is not in the lists above and does not name its roles."""
    paths = app.openapi()["paths"]
    nameless = {path for path, ops in paths.items() for op in ops.values() if not (roles(op) and roles(op) <= ROLES)}
    # A route hidden from the document, or another app mounted, would escape.
    hidden = {route.path for route in app.routes} - set(paths)  # type: ignore[attr-defined]
    return (nameless | hidden) - OPEN - SIGNED


def concrete(path: str) -> str:
    for name, value in CONCRETE.items():
        path = path.replace(name, value)
    return path


def test_every_operation_names_its_roles() -> None:
    assert unguarded(create_app(Settings.model_construct())) == set()
    assert len(OPERATIONS) > 40
    assert not [path for path, _, op in OPERATIONS if path in OPEN | SIGNED and "security" in op]


@pytest.mark.parametrize("kind", ["plain", "guarded without a role", "hidden", "mounted"])
def test_an_unguarded_route_would_be_found(kind: str) -> None:
    app = create_app(Settings.model_construct())
    router = guarded_router("x") if kind == "guarded without a role" else APIRouter()

    @router.get("/v1/forgotten", include_in_schema=kind != "hidden")
    async def forgotten() -> str:
        return "everything"

    if kind == "mounted":
        app.mount("/v1/forgotten", FastAPI())
    else:
        app.include_router(router)
    assert unguarded(app) == {"/v1/forgotten"}


def test_what_end_users_cause_is_limited() -> None:
    """A POST for chat or feedback that is missing from the list would cost its caller nothing."""
    caused = {path for path, method, op in OPERATIONS if method == "post" and roles(op) in ({"chat"}, {"feedback"})}
    assert caused == set(LIMITED)


async def test_without_a_key_nothing_answers(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        for path, method, _ in OPERATIONS:
            answer = await server.anonymous.request(method.upper(), concrete(path), content=b"{")
            if path in OPEN:
                assert answer.status_code == 200, path
            else:
                assert answer.status_code == 401, (method, path)


@pytest.mark.parametrize("role", sorted(ROLES - {"admin"}))
async def test_a_role_is_refused_wherever_it_is_not_named(tmp_path: Path, role: str) -> None:
    """What the document says is what is enforced."""
    async with serving(tmp_path) as server:
        client = await server.client(role)
        for path, method, op in OPERATIONS:
            if path not in OPEN | SIGNED and role not in roles(op):
                answer = await client.request(method.upper(), concrete(path), json={})
                assert (answer.status_code, answer.json()["error"]["code"]) == (403, "missing_role"), (method, path)
        await _audited(server, role)


async def _audited(server: Harness, role: str) -> None:
    entries = (await server.admin.get("/v1/audit", params={"limit": 100})).json()["data"]
    denied = [entry for entry in entries if entry["action"] == "access.denied"]
    assert {entry["actor"] for entry in denied} == {role}
    assert 10 < len(denied) <= 21  # bounded: whoever is refused in a loop must not fill the log
    counted = (await server.admin.get("/metrics")).text
    assert 'plaudit_denied_total{route="/v1/keys"} 2.0' in counted

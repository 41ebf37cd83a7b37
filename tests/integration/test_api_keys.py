"""Keys and roles."""

import asyncio
import stat
from pathlib import Path

import pytest

from tests.support.server import HELLO, serving

REQUESTS = {
    "chat": ("POST", "/v1/chat/completions", {"messages": HELLO}),
    "feedback": ("POST", "/v1/feedback/batch", {"items": [{}]}),
    "viewer": ("GET", "/v1/feedback", None),
    "operator": ("POST", "/v1/rollback", {"to": "base", "reason": "test"}),
    "trainer": ("POST", "/v1/batches:lease", {"worker": "w"}),
    "admin": ("GET", "/v1/keys", None),
}
ALSO = {("operator", "viewer")}  # whoever may act may look


@pytest.mark.parametrize("role", REQUESTS)
async def test_a_role_may_its_own_and_nothing_else(tmp_path: Path, role: str) -> None:
    async with serving(tmp_path) as server:
        client = await server.client(role)
        for needed, (method, path, body) in REQUESTS.items():
            answer = await client.request(method, path, json=body)
            allowed = role in (needed, "admin") or (role, needed) in ALSO
            assert (answer.status_code != 403) is allowed, (needed, answer.text)
            if not allowed:
                assert answer.json()["error"]["code"] == "missing_role"


async def test_a_revoked_key_is_refused_at_once_here(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        client = await server.client("viewer")
        assert (await client.get("/v1/feedback")).status_code == 200
        (key_id,) = server.clients
        assert (await server.admin.delete(f"/v1/keys/{key_id}")).json()["revoked_at"]
        assert (await client.get("/v1/feedback")).status_code == 401
        assert (await server.admin.delete(f"/v1/keys/{key_id}")).status_code == 200


async def test_a_key_revoked_elsewhere_is_refused_within_a_second(tmp_path: Path) -> None:
    from plaudit_server.domain.moments import now_ms
    from plaudit_server.store import keys

    async with serving(tmp_path) as server:
        client = await server.client("viewer")
        assert (await client.get("/v1/feedback")).status_code == 200
        (key_id,) = server.clients
        await server.services.database.write(lambda conn: keys.revoke(conn, key_id, now_ms=now_ms()))
        await asyncio.sleep(1.0)
        assert (await client.get("/v1/feedback")).status_code == 401


async def test_first_keys_are_made_once_private_and_work(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        names = {key["name"]: key["roles"] for key in (await server.admin.get("/v1/keys")).json()["data"]}
        assert names == {"admin": ["admin"], "trainer": ["trainer"]}
    files = {name: tmp_path / "data" / name for name in ("admin.key", "trainer.key", "hash.key")}
    before = {name: path.read_text(encoding="ascii") for name, path in files.items()}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files.values()} == {0o600}
    async with serving(tmp_path) as server:
        assert len((await server.admin.get("/v1/keys")).json()["data"]) == 2
    assert {name: path.read_text(encoding="ascii") for name, path in files.items()} == before


@pytest.mark.sqlite  # with several servers on a database, the file may lie in another one's folder
async def test_a_lost_key_file_is_replaced(tmp_path: Path) -> None:
    async with serving(tmp_path):
        pass
    (tmp_path / "data" / "admin.key").unlink()
    async with serving(tmp_path) as server:
        assert (await server.admin.get("/v1/keys")).status_code == 200


async def test_no_secret_is_ever_written(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        made = await server.admin.post(
            "/v1/keys", json={"name": "app", "roles": ["chat"]}, headers={"Idempotency-Key": "once"}
        )
        secret = made.json()["secret"]
        assert secret.startswith(made.json()["hint"].removesuffix("…"))
        listed = (await server.admin.get("/v1/keys")).text
        assert secret not in listed
    for path in (tmp_path / "data").rglob("*"):
        assert secret.encode() not in (path.read_bytes() if path.is_file() else b""), path


@pytest.mark.parametrize("body", [{"name": "a", "roles": []}, {"name": "a", "roles": ["king"]}, {"roles": ["chat"]}])
async def test_bad_keys_are_not_made(tmp_path: Path, body: dict[str, object]) -> None:
    async with serving(tmp_path) as server:
        assert (await server.admin.post("/v1/keys", json=body)).status_code == 422


async def test_who_did_what_is_in_the_audit_log(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        await server.client("viewer")
        (entry,) = (await server.admin.get("/v1/audit")).json()["data"]
        assert (entry["actor"], entry["action"], entry["detail"]["name"]) == ("admin", "key.created", "viewer")

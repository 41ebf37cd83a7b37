"""`plaudit doctor` against the real app on a real socket: well, half well, and not at all."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from plaudit.cli import app as command
from plaudit_server.errors import StorageFull
from tests.support.metrics import value
from tests.support.server import Harness, listening, serving


async def doctor(url: str, key: str, *options: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Its exit code and its findings by name."""
    arguments = ["--url", url, "--key", key, "doctor", "--json", *options]
    result = await asyncio.to_thread(CliRunner().invoke, command, arguments)
    return result.exit_code, {check["name"]: check for check in json.loads(result.stdout)}


async def own_key(server: Harness, *roles: str) -> str:
    made = await server.admin.post("/v1/keys", json={"name": "k", "roles": list(roles)})
    secret: str = made.json()["secret"]
    return secret


@pytest.fixture
def _real(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The fake engine passes for a real one; how full the disk is here does not count."""
    monkeypatch.setattr("plaudit_server.engine.fake.FakeEngine.is_fake", False)
    monkeypatch.setattr("plaudit.cli.doctor.FREE_BYTES_NEEDED", 0)
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("PLAUDIT_DATA", str(tmp_path / "data"))


@pytest.mark.usefixtures("_real")
async def test_a_server_that_is_well(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, listening(server.app) as url:
        await server.admin.post("/v1/batches:lease", json={"worker": "w"})
        code, found = await doctor(url, (tmp_path / "data" / "admin.key").read_text().strip())
        assert (code, [name for name, check in found.items() if not check["ok"]]) == (0, [])
        assert "base answered in" in found["chat"]["detail"]
        figures = found["chat"]["figures"]
        assert 0 < figures["first_token_seconds"] <= figures["seconds"]
        assert abs(found["clock"]["figures"]["skew_seconds"]) < 1
        assert "admin" in found["key"]["detail"]
        # Nothing stays of it but the counters.
        assert (await server.admin.get("/v1/chat/completions")).json()["data"] == []
        assert (await server.admin.get("/v1/feedback")).json()["data"] == []
        page = (await server.admin.get("/metrics")).text
        assert value(page, "plaudit_records_waiting") == 0
        assert value(page, "plaudit_votes_total", version="base", value="up") == 1


@pytest.mark.usefixtures("_real")
async def test_read_only_writes_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, listening(server.app) as url:
        code, found = await doctor(url, await own_key(server, "viewer"), "--read-only")
        assert code == 0
        assert not {"chat", "vote", "store"} & set(found)
        assert server.engine.bodies == []


@pytest.mark.usefixtures("_real")
@pytest.mark.parametrize(
    ("roles", "undecided"),
    [
        (["viewer"], {"chat", "vote", "store"}),
        (["chat"], {"vote", "store", "stable version"}),
        (["chat", "feedback"], {"store", "stable version"}),
        (["chat", "feedback", "viewer"], set()),
    ],
)
async def test_what_a_key_may_not_do_is_undecided_and_no_failure(
    tmp_path: Path, roles: list[str], undecided: set[str]
) -> None:
    async with serving(tmp_path) as server, listening(server.app) as url:
        name = await server.publish()
        assert (await server.admin.post(f"/v1/versions/{name}/promote")).is_success
        code, found = await doctor(url, await own_key(server, *roles))
        assert code == 0, found
        assert {name for name, check in found.items() if check["ok"] is None} - {"trainer"} == undecided
        assert all(role in found["key"]["detail"] for role in roles)


@pytest.mark.usefixtures("_real")
async def test_a_full_disk_is_found_by_the_vote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(tmp_path) as server, listening(server.app) as url:
        key = await own_key(server, "chat", "feedback")

        async def full(_op: Any, **_: Any) -> Any:
            raise StorageFull()

        monkeypatch.setattr(server.services.database, "write", full)
        code, found = await doctor(url, key)
        assert code == 1
        assert found["vote"]["ok"] is False
        assert "disk is full" in found["vote"]["detail"]
        assert found["vote"]["mend"]


@pytest.mark.usefixtures("_real")
async def test_an_engine_that_breaks_down_is_found_by_the_chat(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, listening(server.app) as url:
        server.engine.fail_after_tokens = 0
        code, found = await doctor(url, await own_key(server, "chat", "feedback", "viewer"))
        assert code == 1
        assert (found["chat"]["ok"], found["vote"]["ok"], found["store"]["ok"]) == (False, None, None)


async def test_any_key_may_be_told_what_it_is(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        for role in ("chat", "feedback", "viewer", "operator", "trainer"):
            client = await server.client(role)
            told = (await client.get("/v1/keys/self")).json()
            assert (told["name"], told["roles"]) == (role, [role])
            assert told["id"].startswith("key_")
            assert "secret" not in told
        assert (await server.admin.get("/v1/keys/self")).json()["roles"] == ["admin"]
        assert (await server.anonymous.get("/v1/keys/self")).status_code == 401

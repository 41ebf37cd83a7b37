"""Two gateways on one database: moves by one are seamless at the other, and they share what replicas hold."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from plaudit_server.engine.vllm import VllmEngine
from plaudit_server.settings import Settings
from plaudit_server.store.database import sqlite_url
from tests.support.engine_folders import make_base
from tests.support.engine_stub import StubVllm, make_version
from tests.support.server import Harness, serving

pytestmark = pytest.mark.sqlite  # two servers on one PostgreSQL have tests of their own


@contextlib.asynccontextmanager
async def two(folder: Path) -> AsyncIterator[tuple[Harness, Harness]]:
    url = sqlite_url(folder / "shared.db")
    async with (
        serving(folder / "one", database_url=url) as one,
        serving(folder / "two", database_url=url, hash_key_file=one.settings.data / "hash.key") as other,
    ):
        yield one, other


async def promote(server: Harness, version: str) -> None:
    assert (await server.admin.post(f"/v1/versions/{version}/promote")).status_code == 200


async def speaker(server: Harness) -> str:
    return str((await server.chat())["model"])  # fails where the answer is not 200


async def test_a_promotion_elsewhere_waits_here_until_it_can_be_answered(tmp_path: Path) -> None:
    async with two(tmp_path) as (one, other):
        other.engine.install_s = 1.0
        v1 = await one.publish()
        await promote(one, v1)
        assert await speaker(one) == f"policy@{v1}"

        spoke = [await speaker(other)]
        while spoke[-1] != f"policy@{v1}":
            await asyncio.sleep(0.01)
            spoke.append(await speaker(other))
            assert len(spoke) < 1000
        assert spoke[0] == "policy@base" and sorted(set(spoke)) == ["policy@base", f"policy@{v1}"]


@pytest.mark.parametrize("resident", [True, False])
async def test_a_rollback_elsewhere_is_in_force_here_at_once(tmp_path: Path, resident: bool) -> None:
    async with two(tmp_path) as (one, other):
        v1 = await one.publish()
        await promote(one, v1)
        v2 = await one.publish()
        await promote(one, v2)
        await other.until(lambda: other.services.serving.catalog.stable == v2)
        if not resident:
            other.engine.install_s = 60
            await other.engine.retire(v1)
        await one.admin.post("/v1/rollback", json={"to": v1, "reason": "bad"})
        await other.until(lambda: other.services.serving.catalog.stable == v1, seconds=1)
        if resident:
            assert await speaker(other) == f"policy@{v1}"
        else:  # nothing may speak with what was rolled back
            answer = await other.admin.post(
                "/v1/chat/completions", json={"messages": [{"role": "user", "content": "x"}]}
            )
            assert answer.status_code == 503


async def test_a_proof_that_fails_elsewhere_later_does_not_undo_one_that_passed(tmp_path: Path) -> None:
    async with two(tmp_path) as (one, other):
        other.engine.install_s = 0.5  # it begins while the version is loading, and ends when it is ready
        other.engine.unproven = {"v1"}
        proofs = other.services.serving.reconciler._prove
        ended = []

        async def prove(row: Any) -> None:
            await proofs(row)
            ended.append(row.name)

        other.services.serving.reconciler._prove = prove  # type: ignore[method-assign]
        one.engine.install_s = 0.1
        assert await one.publish() == "v1"
        await other.until(lambda: ended or other.services.serving.reconciler._failures["v1"])
        assert await one.state_is("v1", "ready")


# ---- the same replicas


@contextlib.asynccontextmanager
async def sharing(folder: Path) -> AsyncIterator[tuple[Harness, Harness, list[StubVllm]]]:
    """Two gateways over the same two stubs of vLLM."""
    base = make_base(folder / "base")
    stubs = {"http://a": StubVllm(), "http://b": StubVllm()}
    url = sqlite_url(folder / "shared.db")

    def engine() -> Any:
        settings = Settings(engine_urls=list(stubs), data=folder / "x")
        made: Any = VllmEngine(settings, base, connect=lambda at: stubs[at].client())
        made.start_s = 0  # so that the harness waits for it
        return made

    given: dict[str, Any] = {"database_url": url, "engine_urls": ",".join(stubs)}
    async with (
        serving(folder / "one", engine(), **given) as one,
        serving(folder / "two", engine(), **given, hash_key_file=one.settings.data / "hash.key") as other,
    ):
        yield one, other, list(stubs.values())


async def publish(server: Harness, folder: Path) -> str:
    """A version whose probe fits the stubs."""
    name = "v1"
    ref = make_version(folder, folder / "base", name)
    made = await server.register(location=ref.location, manifest_sha256=ref.manifest_sha256)
    assert made["name"] == name
    await server.until(lambda: server.state_is(name, "ready"), seconds=20)
    return name


async def test_two_gateways_share_what_the_replicas_hold(tmp_path: Path) -> None:
    async with sharing(tmp_path) as (one, other, stubs):
        v1 = await publish(one, tmp_path)
        await promote(one, v1)
        await other.until(lambda: other.services.serving.catalog.stable == v1, seconds=20)

        assert await speaker(one) == await speaker(other) == f"policy@{v1}"
        assert [len(stub.names) for stub in stubs] == [len(stub.tensors) for stub in stubs] == [1, 1]


async def test_a_replica_that_restarts_is_mended_once_for_both(tmp_path: Path) -> None:
    async with sharing(tmp_path) as (one, other, stubs):
        v1 = await publish(one, tmp_path)
        await promote(one, v1)
        await other.until(lambda: other.services.serving.catalog.stable == v1, seconds=20)
        stubs[0].restart()

        def mended() -> bool:
            engines: list[Any] = [one.services.engine, other.services.engine]
            return bool(stubs[0].names) and all(len(engine.fleet.serving(v1)) == 2 for engine in engines)

        for _ in range(20):
            assert await speaker(one) == await speaker(other) == f"policy@{v1}"
        await other.until(mended, seconds=25)
        assert len(stubs[0].names) == len(stubs[0].tensors) == 1


async def test_a_gateway_that_ends_leaves_the_other_what_it_uses(tmp_path: Path) -> None:
    async with sharing(tmp_path) as (one, other, stubs):
        v1 = await publish(one, tmp_path)
        await promote(one, v1)
        await other.until(lambda: other.services.serving.catalog.stable == v1, seconds=20)
        await one.services.serving.close()
        await one.services.engine.close()
        await one.services.membership.close()
        await other.until(lambda: other.services.engine.residency.others is None)  # type: ignore[attr-defined]
        replicas = other.services.engine.fleet.replicas  # type: ignore[attr-defined]
        for replica in replicas:
            await other.services.engine.residency.look(replica)  # type: ignore[attr-defined]
        assert await speaker(other) == f"policy@{v1}" and [len(stub.names) for stub in stubs] == [1, 1]

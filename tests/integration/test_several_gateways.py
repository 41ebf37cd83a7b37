"""Two gateways on one database, each with an engine of its own: moves by one are seamless at the other."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from plaudit_server.store.database import sqlite_url
from tests.support.server import Harness, serving


@contextlib.asynccontextmanager
async def two(folder: Path) -> AsyncIterator[tuple[Harness, Harness]]:
    url = sqlite_url(folder / "shared.db")
    async with serving(folder / "one", database_url=url) as one, serving(folder / "two", database_url=url) as other:
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
            spoke.append(await speaker(other))
            assert len(spoke) < 2000
        assert spoke[0] == "policy@base" and sorted(set(spoke)) == ["policy@base", f"policy@{v1}"]


@pytest.mark.parametrize("resident", [True, False])
async def test_a_rollback_elsewhere_is_in_force_here_at_once(tmp_path: Path, resident: bool) -> None:
    async with two(tmp_path) as (one, other):
        v1 = await one.publish()
        await promote(one, v1)
        v2 = await one.publish()
        await promote(one, v2)
        await other.until(lambda: other.services.serving.stable == v2)
        if not resident:
            other.engine.install_s = 60
            await other.engine.retire(v1)
        await one.admin.post("/v1/rollback", json={"to": v1, "reason": "bad"})
        await other.until(lambda: other.services.serving.stable == v1, seconds=1)
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
        proofs = other.services.serving._prove
        ended = []

        async def prove(row: Any) -> None:
            await proofs(row)
            ended.append(row.name)

        other.services.serving._prove = prove  # type: ignore[method-assign]
        one.engine.install_s = 0.1
        assert await one.publish() == "v1"
        await other.until(lambda: ended or other.services.serving._failures["v1"])
        assert await one.state_is("v1", "ready")

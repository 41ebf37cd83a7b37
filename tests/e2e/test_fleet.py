"""Two gateways on one PostgreSQL before two real vLLM servers: proofs, flips, votes, and the death of a replica."""

import asyncio
import contextlib
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from benchmarks.load import open_client
from benchmarks.services import Made, Operator, gateway, make_versions, vllm
from tests.support import databases
from tests.support.stack import Stack, free_port

pytestmark = [pytest.mark.e2e, pytest.mark.postgres, pytest.mark.timeout(900)]

PROMPTS = [f"Name {n} things that {what}." for n in ("two", "three", "four") for what in ("float", "shine", "grow")]
TOKENS = 128
"""Of an answer; the probe needs 1,024 tokens in all."""
FLIP_S = 3.0
"""Within a second it reaches every gateway that is given processor time; here two engines want both cores."""


@pytest.fixture
def database(database_kind: str) -> str:
    server = databases.server_url()
    assert database_kind == "postgres" and server is not None
    return databases.new_database(server)


@contextlib.asynccontextmanager
async def fleet(base: Path, folder: Path, database: str, ports: list[int]) -> AsyncIterator[list[Stack]]:
    """Two replicas, two gateways that share database, hash key and versions."""
    async with contextlib.AsyncExitStack() as opened:
        # One after the other: two that load at once starve each other on two cores.
        urls = [await opened.enter_async_context(vllm(base, folder / f"engine-{p}", port=p)) for p in ports]
        environment = {"PLAUDIT_DATABASE_URL": database, "PLAUDIT_ENGINE_URLS": ",".join(urls)}
        stacks: list[Stack] = []
        for name in ("a", "b"):
            data = folder / name
            if stacks:
                data.mkdir()
                shutil.copy(stacks[0].data / "hash.key", data)
            stacks.append(opened.enter_context(gateway(data, base, environment)))
        yield stacks


async def until(what: str, look: Callable[[], Awaitable[bool]], seconds: float) -> float:
    """Seconds until it was so."""
    began = time.monotonic()
    while not await look():
        assert time.monotonic() - began < seconds, f"{what}: not within {seconds:g} s"
        await asyncio.sleep(0.05)
    return time.monotonic() - began


async def chat(http: httpx.AsyncClient, question: str, **more: Any) -> httpx.Response:
    body = {"model": "policy", "messages": [{"role": "user", "content": question}], "max_tokens": 4, **more}
    return await http.post("/v1/chat/completions", json=body)


async def replica(http: httpx.AsyncClient, name: str) -> dict[str, Any]:
    rows = (await http.get("/v1/replicas")).raise_for_status().json()["data"]
    found: dict[str, Any] = next(row for row in rows if row["name"] == name)
    return found


async def publish(operator: Operator, folder: Path, base: Path) -> Made:
    sequences = await operator.draw(PROMPTS, TOKENS)
    (version,) = await asyncio.to_thread(make_versions, folder, base, 1, sequences)
    await operator.register(await operator.reserve(version))
    return version


def kill_listener(port: int) -> None:
    """`kill -9` of the vLLM on a port, and of all that it started."""
    family = [p for p in psutil.Process().children(recursive=True) if str(port) in p.cmdline()]
    assert family
    doomed = {child for process in family for child in (process, *process.children(recursive=True))}
    for process in doomed:
        process.kill()
    psutil.wait_procs(list(doomed), timeout=20)


def test_two_gateways_and_two_replicas(base_model: Path, tmp_path: Path, database: str) -> None:
    asyncio.run(_play(base_model, tmp_path, database))


async def _play(base: Path, folder: Path, database: str) -> None:
    ports = [free_port(), free_port()]
    async with fleet(base, folder, database, ports) as (one, two), contextlib.AsyncExitStack() as opened:
        key = one.key()  # one database, one set of keys
        a, b = [await opened.enter_async_context(open_client(s.url, key)) for s in (one, two)]
        operator, other = Operator(a), Operator(b)
        version = await publish(operator, one.data / "versions", base)
        proof = (await operator.until_ready(version.name))["proof"]
        assert {r["replica"] for r in proof["replicas"] if r["passed"]} == {"engine-0", "engine-1"}

        # A gateway follows once it has itself proven the version.
        await until("the other gateway has proven it too", lambda: _holds(b, version.name), 60)
        await operator.promote(version.name)
        flipped = await until("the other gateway follows", lambda: _means(b, version.name), 30)
        print(f"the other gateway followed after {flipped:.2f} s")
        assert flipped < FLIP_S
        assert await _speaks(b, version.name)

        said = (await chat(a, "Who are you?", user="u")).json()
        vote = {"response_id": said["id"], "value": True, "end_user": "u"}
        assert (await b.post("/v1/feedback", json=vote)).status_code == 201
        rows = (await a.get("/v1/feedback")).json()["data"]
        assert said["id"] in {row["response_id"] for row in rows}

        kill_listener(ports[0])
        answers = [await chat(http, f"Question {n}?") for n in range(8) for http in (a, b)]
        assert [answer.status_code for answer in answers] == [200] * 16, [x.text for x in answers if x.is_error]
        await until("the dead replica is noticed", lambda: _is(a, "engine-0", "down"), 60)

        async with vllm(base, folder / "again", port=ports[0]):
            await until("it serves again", lambda: _is(a, "engine-0", "ready"), 120)
            assert version.name in (await replica(a, "engine-0"))["resident"], "proven again before it was ready"
            await other.rollback("base")
            assert await until("the first gateway follows", lambda: _means(a, "base"), 30) < FLIP_S
            assert await _speaks(a, "base")


async def _means(http: httpx.AsyncClient, version: str) -> bool:
    """What `policy` is here, told without asking an engine, which may be busy."""
    return bool((await http.get("/v1/models/policy")).raise_for_status().json()["version"] == version)


async def _speaks(http: httpx.AsyncClient, version: str) -> bool:
    return (await chat(http, "Hello?")).headers.get("x-model-version") == version


async def _holds(http: httpx.AsyncClient, version: str) -> bool:
    return all([version in (await replica(http, name))["resident"] for name in ("engine-0", "engine-1")])


async def _is(http: httpx.AsyncClient, name: str, state: str) -> bool:
    return bool((await replica(http, name))["state"] == state)

"""The server for tests: the real app on a real database, with the fake engine."""

import asyncio
import contextlib
import hashlib
import inspect
import json
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from plaudit_server.app import create_app
from plaudit_server.engine.fake import FakeEngine
from plaudit_server.services import Services
from plaudit_server.settings import Settings
from plaudit_server.tracing import Tracing
from tests.support.databases import current

HELLO = [{"role": "user", "content": "Say hello to the reviewer."}]
GATE = {"passed": True, "checks": []}


@dataclass
class Harness:
    """A running app and clients for it, one for each role."""

    app: FastAPI
    settings: Settings
    engine: FakeEngine
    admin: httpx.AsyncClient
    anonymous: httpx.AsyncClient
    clients: dict[str, httpx.AsyncClient] = field(default_factory=dict)
    workers: int = 0

    @property
    def services(self) -> Services:
        services: Services = self.app.state.services
        return services

    async def client(self, *roles: str) -> httpx.AsyncClient:
        """A client with a new key of these roles."""
        made = await self.admin.post("/v1/keys", json={"name": "-".join(roles), "roles": list(roles)})
        assert made.status_code == 201, made.text
        client = make_client(self.app, made.json()["secret"])
        self.clients[made.json()["id"]] = client
        return client

    async def chat(self, text: str = "Say hello.", **fields: Any) -> dict[str, Any]:
        """One answered chat."""
        body = {"messages": [{"role": "user", "content": text}]} | fields
        answer = await self.admin.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def vote(self, response_id: str, value: Any = True, **fields: Any) -> httpx.Response:
        """One vote."""
        return await self.admin.post("/v1/feedback", json={"response_id": response_id, "value": value} | fields)

    async def rated(self, count: int, *, user: str = "rater") -> list[str]:
        """Chats that may be learnt from, each with a vote by a user of its own."""
        ids = []
        for number in range(count):
            name = f"{user}-{number}"
            answer = await self.chat(f"Question {number} of {user}?", train=True, user=name)
            assert (await self.vote(answer["id"], number % 2 == 0, end_user=name)).is_success
            ids.append(answer["id"])
        return ids

    async def leased_run(self, *, records: int = 4) -> tuple[dict[str, Any], dict[str, Any]]:
        """A leased batch of fresh records and the run begun on it."""
        self.workers += 1  # a worker that asks again is given the batch that it holds
        worker = f"worker-{self.workers}"
        await self.rated(records, user=worker)
        lease = {"worker": worker, "min_records": records, "max_records": records}
        batch = (await self.admin.post("/v1/batches:lease", json=lease)).json()
        assert batch["state"] == "leased", batch
        run = await self.admin.post("/v1/training/runs", json={"batch_id": batch["id"], "worker": worker})
        assert run.status_code == 201, run.text
        return batch, run.json()

    async def register(self, **changes: Any) -> dict[str, Any]:
        """Train nothing, but publish and register a version as the trainer would."""
        batch, run = await self.leased_run()
        body = version_body(self.settings, run, batch) | changes
        made = await self.admin.post("/v1/versions", json=body)
        assert made.status_code == 201, made.text
        found: dict[str, Any] = made.json()
        return found

    async def version(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = (await self.admin.get(f"/v1/versions/{name}")).json()
        return found

    async def publish(self) -> str:
        """A version, registered and proven."""
        name: str = (await self.register())["name"]
        await self.until(lambda: self.state_is(name, "ready"))
        return name

    async def state_is(self, name: str, *states: str) -> bool:
        return (await self.version(name))["state"] in states

    async def until(self, condition: Callable[[], Any], seconds: float = 8) -> None:
        """Wait for something that the background does."""
        await until(condition, seconds)


def version_body(settings: Settings, run: dict[str, Any], batch: dict[str, Any]) -> dict[str, Any]:
    """A published folder (its manifest only: the fake engine asks for no more) and the request that registers it."""
    folder = settings.versions_folder / run["version"]
    folder.mkdir(parents=True, exist_ok=True)
    manifest = json.dumps({"version": run["version"]}).encode()
    (folder / "manifest.json").write_bytes(manifest)
    return {
        "name": run["version"],
        "run_id": run["id"],
        "batch_ids": [batch["id"]],
        "parent": run["parent"],
        "location": str(folder),
        "manifest_sha256": hashlib.sha256(manifest).hexdigest(),
        "outcome": "candidate",
        "gate": GATE,
    }


def make_client(app: FastAPI, secret: str | None) -> httpx.AsyncClient:
    """A client that speaks ASGI. What the app raises reaches the test instead of becoming a 500 unseen."""
    headers = {"Authorization": f"Bearer {secret}"} if secret else {}
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app, raise_app_exceptions=True), base_url="http://plaudit", headers=headers
    )


@contextlib.asynccontextmanager
async def serving(
    folder: Path, engine: FakeEngine | None = None, tracing: Tracing | None = None, **settings: Any
) -> AsyncIterator[Harness]:
    """The app with its lifespan, its engine ready."""
    given = {"data": folder / "data", "engine": "fake", "consent_default": "granted"} | settings
    if current.kind != "sqlite":
        given.setdefault("database_url", await current.ready(folder))
    chosen = Settings(**given)
    fake = engine or FakeEngine()
    app = create_app(chosen, fake, tracing=tracing)
    async with app.router.lifespan_context(app):
        await asyncio.sleep(0)
        secret = (chosen.data / "admin.key").read_text(encoding="ascii").strip()
        harness = Harness(app, chosen, fake, make_client(app, secret), make_client(app, None))
        if fake.start_s == 0:
            await until(fake.is_ready)
        try:
            yield harness
        finally:
            for client in (harness.admin, harness.anonymous, *harness.clients.values()):
                await client.aclose()


async def until(condition: Callable[[], Any], seconds: float = 8) -> None:
    """Wait until `condition`, plain or awaitable, holds."""
    async with asyncio.timeout(seconds):
        # What is awaited belongs to the server and has no event.
        while not (await held if inspect.isawaitable(held := condition()) else held):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def listening(app: FastAPI, **options: Any) -> AsyncIterator[str]:
    """The app (its lifespan open already) on a real socket; gives its address. `options` are uvicorn's."""
    given = {"log_config": None, "access_log": False, "timeout_graceful_shutdown": 2} | options
    with socket.create_server(("127.0.0.1", 0)) as bound:
        config = uvicorn.Config(app, lifespan="off", **given)
        server = uvicorn.Server(config)
        server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign]  # the tests' signals stay theirs
        task = asyncio.create_task(server.serve(sockets=[bound]))
        try:
            yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        finally:
            server.should_exit = True
            await task


async def ask_and_leave(app: FastAPI, path: str, body: Any, headers: dict[str, str], *, after: int) -> list[bytes]:
    """POST over bare ASGI and go away after so many pieces of the body (0: before the answer begins)."""
    raw = json.dumps(body).encode()
    leave = asyncio.Event()
    pieces: list[bytes] = []
    requests = iter([{"type": "http.request", "body": raw, "more_body": False}])

    async def receive() -> dict[str, Any]:
        for message in requests:
            if not after:
                asyncio.get_running_loop().call_later(0.05, leave.set)
            return message
        await leave.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body" and message.get("body"):
            pieces.append(message["body"])
            if len(pieces) >= after:
                leave.set()

    given = {"content-type": "application/json"} | headers
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.lower().encode(), value.encode()) for name, value in given.items()],
        "client": ("127.0.0.1", 1),
        "server": ("plaudit", 80),
    }
    await app(scope, receive, send)
    return pieces

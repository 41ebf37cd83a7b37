"""Servers under test: gateways as processes, vLLM on a port, versions made beforehand and published over the API."""

import asyncio
import contextlib
import hashlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from plaudit_server.engine.process import EngineChild, Launch, launch_vllm
from plaudit_server.engine.replica import ReplicaClient
from plaudit_server.settings import Settings
from tests.support.stack import Stack, free_port

PROBE_PROMPTS, PROBE_TOKENS = 24, 48
"""About what the trainer's probes hold: at least 1,024 tokens."""


WITHOUT_LIMITS = {
    f"PLAUDIT_{name}": "0"
    for name in (
        "CHATS_PER_MINUTE_KEY",
        "CHATS_PER_MINUTE_USER",
        "FEEDBACK_PER_MINUTE_KEY",
        "FEEDBACK_PER_MINUTE_USER",
        "MAX_PENDING_CHATS_KEY",
    )
}
"""The limits of one key and one user, which the load of a benchmark, all of it by one key, would run into."""


@contextlib.contextmanager
def gateway(data: Path, model: Path, environment: Mapping[str, str] | None = None) -> Iterator[Stack]:
    """`plaudit_server serve` on a data folder of its own, ready."""
    stack = Stack(data, model=model, environment={**WITHOUT_LIMITS, **(environment or {})})
    data.mkdir(parents=True, exist_ok=True)
    stack.start("server")
    try:
        stack.wait_ready(600)
        yield stack
    finally:
        stack.stop()


@contextlib.contextmanager
def whole_service(data: Path, model: Path, environment: Mapping[str, str] | None = None) -> Iterator[Stack]:
    """`plaudit_server up`: engine, server and trainer, each in a session of its own as in a run of `make run`.

    The stack that is given only knows the address and the key; it started none of the processes.
    """
    stack = Stack(data, model=model, environment={**WITHOUT_LIMITS, **(environment or {})})
    data.mkdir(parents=True, exist_ok=True)
    with (data / "up.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "plaudit_server", "up"],
            env=stack.environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        while not stack.is_up():
            if process.poll() is not None:
                raise SystemExit(f"`up` ended: {(data / 'up.log').read_text(errors='replace')[-1000:]}")
            time.sleep(0.5)
        yield stack
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


@contextlib.asynccontextmanager
async def vllm(
    base: Path,
    folder: Path,
    environment: Mapping[str, str] | None = None,
    *,
    port: int | None = None,
    step_tokens: int | None = None,
) -> AsyncIterator[str]:
    """vLLM as Plaudit starts it, but on a port of this machine (a free one unless given); gives its address.

    Args:
        base: the model's folder.
        folder: for its log.
        environment: variables beside those that Plaudit sets.
        port: where it listens.
        step_tokens: another limit of a step than Plaudit's, in tokens.
    """
    port = port or free_port()

    def launch(settings: Settings, base: Path, private: Path) -> Launch:
        made = launch_vllm(settings, base, private)
        command = list(made.command)
        at = command.index("--uds")
        command[at : at + 2] = ["--host", "127.0.0.1", "--port", str(port)]
        return replace(made, command=command, environment={**made.environment, **(environment or {})})

    url = f"http://127.0.0.1:{port}"
    more = "" if step_tokens is None else f"--max-num-batched-tokens {step_tokens}"
    settings = Settings(data=folder, engine_kv_cache_gib=1, engine_args=more)
    child = await EngineChild.start(settings, base, launch)
    try:
        async with ReplicaClient(url=url) as client:
            while not await client.healthy():
                if not child.running:
                    raise SystemExit(f"vLLM ended: {child.last_words()}")
                await asyncio.sleep(0.5)
        yield url
    finally:
        await child.stop()


# ---- versions


@dataclass(frozen=True, slots=True)
class Made:
    """A version's folder that waits to be registered."""

    name: str
    parent: str
    location: str
    manifest_sha256: str


def make_versions(
    folder: Path, model: Path, count: int, sequences: Sequence[Any] | None, *, chain: bool = True
) -> list[Made]:
    """Versions v1 … vN, each one Adam step from the one before (or from base).

    Args:
        folder: the gateway's `versions`.
        model: the base model.
        count: how many.
        sequences: of the probes; None makes manifests only, which is all that the fake engine looks at.
        chain: whether each is the child of the one before.
    """
    if sequences is None:
        return [_empty(folder, number, chain) for number in range(1, count + 1)]
    from tests.support.engine_adapters import Published, Reference, publish

    reference, made = Reference(model), []
    before: Published | None = None
    for number in range(1, count + 1):
        parent = before if chain else None
        start = 4 * number % (len(sequences) - 4)
        adapter = reference.step(
            parent.adapter if parent else None, sequences[start : start + 4], seed=number, size=3e-4
        )
        before = publish(folder, reference, name=f"v{number}", parent=parent, adapter=adapter, sequences=sequences)
        ref = before.ref
        made.append(Made(ref.name, ref.parent, ref.location, ref.manifest_sha256))
        print(f"\rmade v{number} of {count}", end="", flush=True)
    print()
    return made


def _empty(folder: Path, number: int, chain: bool) -> Made:
    name, parent = f"v{number}", f"v{number - 1}" if chain and number > 1 else "base"
    place = folder / name
    place.mkdir(parents=True)
    manifest = json.dumps({"version": name}).encode()
    (place / "manifest.json").write_bytes(manifest)
    return Made(name, parent, str(place), hashlib.sha256(manifest).hexdigest())


class Operator:
    """An operator and trainer in one, over the API."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http
        self._publications = 0

    async def draw(self, prompts: Sequence[str], tokens: int) -> list[Any]:
        """Answers of the base model, as probe sequences."""
        from plaudit.wire.training import TokenSequence

        body = {
            "version": "base",
            "prompts": [{"messages": [{"role": "user", "content": text}]} for text in prompts],
            "sampling": {"max_tokens": tokens, "seed": 1},
        }
        drawn = (await self._post("/v1/training/generate", body))["answers"]
        return [TokenSequence(prompt_ids=a["prompt_ids"], response_ids=a["response_ids"]) for a in drawn]

    async def reserve(self, version: Made) -> dict[str, Any]:
        """What a trainer does before it learns: a rated answer, a lease, a run; the request that registers."""
        self._publications += 1
        worker = f"benchmark-{self._publications}"
        question = {"messages": [{"role": "user", "content": worker}], "max_tokens": 4, "train": True, "user": worker}
        answer = await self._post("/v1/chat/completions", question)
        await self._post("/v1/feedback", {"response_id": answer["id"], "value": True, "end_user": worker})
        batch = await self._post("/v1/batches:lease", {"worker": worker, "min_records": 1, "max_records": 1})
        run = await self._post("/v1/training/runs", {"batch_id": batch["id"], "worker": worker})
        if (run["version"], run["parent"]) != (version.name, version.parent):
            raise SystemExit(f"the run is {run['version']} of {run['parent']}, not {version.name} of {version.parent}")
        return {
            "name": version.name,
            "run_id": run["id"],
            "batch_ids": [batch["id"]],
            "parent": version.parent,
            "location": version.location,
            "manifest_sha256": version.manifest_sha256,
            "outcome": "candidate",
            "gate": {"passed": True, "checks": []},
        }

    async def reserve_whole(self, version: Made) -> dict[str, Any]:
        """The request that registers a whole model: its run learns from no feedback."""
        self._publications += 1
        given = {"worker": f"benchmark-{self._publications}", "parent": version.parent}
        run = await self._post("/v1/training/runs", given)
        if run["version"] != version.name:
            raise SystemExit(f"the run is {run['version']}, not {version.name}")
        return {
            "name": version.name,
            "kind": "full",
            "run_id": run["id"],
            "batch_ids": [run["batch_id"]],
            "parent": version.parent,
            "location": version.location,
            "manifest_sha256": version.manifest_sha256,
            "outcome": "candidate",
            "gate": {"passed": True, "checks": []},
        }

    async def drawn_by_two(self, ids: Sequence[str]) -> list[str]:
        """Those of these answers whose rows say that another model took over while they were being drawn."""
        found = []
        for response_id in ids:
            answer = await self.http.get(f"/v1/chat/completions/{response_id}")
            if answer.is_success and answer.json()["sampling"].get("also_by"):
                found.append(response_id)
        return found

    async def register(self, request: dict[str, Any]) -> None:
        """Publish."""
        await self._post("/v1/versions", request)

    async def until_ready(self, name: str, *, poll_s: float = 0.05, within_s: float = 600) -> dict[str, Any]:
        """Wait for the proof."""
        deadline = time.monotonic() + within_s
        while (version := (await self._get(f"/v1/versions/{name}")))["state"] == "loading":
            if time.monotonic() > deadline:
                raise SystemExit(f"{name} is still loading after {within_s:g} s")
            await asyncio.sleep(poll_s)
        if version["state"] != "ready":
            raise SystemExit(f"{name} is {version['state']}: {version['reason']}")
        return version

    async def stable(self) -> str:
        """Who serves."""
        rows = (await self._get("/v1/aliases"))["data"]
        return next((row["version"] for row in rows if row["name"] == "stable"), "base")

    async def until_stable(self, name: str, *, poll_s: float = 0.05, within_s: float = 600) -> None:
        """Wait until it serves."""
        deadline = time.monotonic() + within_s
        while await self.stable() != name:
            if time.monotonic() > deadline:
                raise SystemExit(f"{name} does not serve after {within_s:g} s")
            await asyncio.sleep(poll_s)

    async def promote(self, name: str) -> None:
        """Make it stable."""
        await self._post(f"/v1/versions/{name}/promote", {"reason": "benchmark"})

    async def rollback(self, to: str = "previous") -> None:
        """Move stable back."""
        await self._post("/v1/rollback", {"to": to, "reason": "benchmark"})

    async def score(self, version: str, sequences: Sequence[dict[str, Any]]) -> list[list[float]]:
        """Log-probabilities under a version, which may have to be loaded again first."""
        deadline = time.monotonic() + 300
        while True:
            answer = await self.http.post("/v1/training/score", json={"version": version, "sequences": sequences})
            if answer.status_code != 503 or time.monotonic() > deadline:
                answer.raise_for_status()
                found: list[list[float]] = answer.json()["logprobs"]
                return found
            await asyncio.sleep(0.5)

    async def _post(self, path: str, body: Any) -> Any:
        answer = await self.http.post(path, json=body)
        if not answer.is_success:
            raise SystemExit(f"POST {path}: {answer.status_code} {answer.text[:300]}")
        return answer.json()

    async def _get(self, path: str) -> Any:
        answer = await self.http.get(path)
        answer.raise_for_status()
        return answer.json()

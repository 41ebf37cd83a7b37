"""Half an hour at saturation, with everything that can go wrong going wrong: is anything lost, does anything leak?

    python -m benchmarks.soak [--minutes 30] [--clients 8] [--seed N]

On real vLLM: streaming clients ask without pause and rate most answers, an operator promotes, rolls back, begins and
ends rollouts at random, questions name versions that have to be loaded first, and every so often the gateway or the
engine is killed with SIGKILL. In the end, all must hold:

- every vote that was acknowledged is in the store, with its value;
- the engine holds the adapters that the gateway believes in, by name and in its workers, and nothing else;
- at rest the gateway has as many open files as it had before the load, but for a few connections of its pools;
- within the longest life of each process, memory in the last third of it is where it was in the middle one. Of a life
  of less than five minutes that cannot be told, and is null; so nothing is killed in the last third of a run of
  eighteen minutes or more.

Chats may fail while something is dead; a 500 never may.
"""

import argparse
import asyncio
import contextlib
import math
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.load import ask, chat_body, open_client, questions
from benchmarks.report import machine, write_result
from benchmarks.services import PROBE_TOKENS, Operator, gateway, make_versions
from plaudit_server.engine.bundled import ensure_model
from plaudit_server.engine.replica import ReplicaClient
from plaudit_server.engine.swap import held_numbers
from plaudit_server.settings import Settings
from tests.support.stack import Stack

VERSIONS = 5
PROBE_PROMPTS = 8
VICTIMS = ("engine", "server")
SPARE_FILES = 24
"""Connections that pools may keep open."""
GROWTH = 0.10
"""Of a process's memory, between the middle and the last third of its longest life; allocators are no precise gauge."""
LOOK_S = 5.0
TELLING_LIFE = 60
"""Looks at a process, five minutes of them: before that it still warms up."""
CALM_FROM_MINUTES = 18
READY_S = 240.0
ENDED_S = 60.0
"""An answer of a few tokens takes seconds, even from a replica that is starting; what takes longer hangs."""


@dataclass(slots=True)
class Sample:
    """Of the processes at one moment: resident memory in MiB, open files of the gateway."""

    at: float
    server_mib: float
    engine_mib: float
    files: int


@dataclass(slots=True)
class Kept:
    """What happened."""

    votes: dict[str, float] = field(default_factory=dict)
    statuses: Counter[str] = field(default_factory=Counter)
    deeds: Counter[str] = field(default_factory=Counter)
    lives: list[list[Sample]] = field(default_factory=lambda: [[]])
    errors_500: list[str] = field(default_factory=list)

    def note(self, what: str, status: int, text: str) -> None:
        """A reply; 0 for none."""
        self.statuses[f"{what} {status or 'unreachable'}"] += 1
        if status == httpx.codes.INTERNAL_SERVER_ERROR:
            self.errors_500.append(f"{what}: {text[:200]}")


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=24, help="of an answer at most")
    parser.add_argument("--kill-every", type=float, default=100, help="seconds between two kills, on average")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--model", type=Path)
    parser.add_argument("--no-write", action="store_true", help="leave benchmarks/results/soak.json alone")
    return parser.parse_args(given)


class Soak:
    """One run on one gateway."""

    def __init__(self, stack: Stack, *, clients: int, tokens: int, kill_every: float, seed: int) -> None:
        self.stack, self.clients, self.tokens, self.kill_every = stack, clients, tokens, kill_every
        self.calm_from = math.inf
        self.dice = random.Random(seed)
        self.kept, self.over, self.names = Kept(), asyncio.Event(), list[str]()
        self.idle_files = 0
        self.doing: dict[str, str] = {}

    async def run(self, model: Path, minutes: float) -> dict[str, Any]:
        """Everything, and what came of it."""
        async with open_client(self.stack.url, self.stack.key()) as http:
            await self._publish(http, model)
            await asyncio.sleep(3)
            self.idle_files = self._server().num_fds()
            loops = {f"client {number}": self._client(http, number) for number in range(self.clients)}
            loops |= {"operator": self._every(2, lambda: self._deed(http)), "gauge": self._every(LOOK_S, self._look)}
            loops |= {"killer": self._killer()}
            if minutes >= CALM_FROM_MINUTES:
                self.calm_from = time.monotonic() + 60 * minutes * 2 / 3
            tasks = [asyncio.create_task(loop, name=name) for name, loop in loops.items()]
            await self._watch(tasks, 60 * minutes)
            hung = await self._end(tasks)
            return await self._reckon(http) | {"hung": hung}

    async def _end(self, tasks: Sequence["asyncio.Task[None]"]) -> list[str]:
        """Let every loop end its turn; the names of those that do not."""
        self.over.set()
        done, pending = await asyncio.wait(tasks, timeout=READY_S + ENDED_S)
        for task in done:
            task.result()
        for task in pending:
            task.cancel()
        return sorted(f"{task.get_name()}: {self.doing.get(task.get_name(), '?')}" for task in pending)

    async def _watch(self, tasks: Sequence["asyncio.Task[None]"], seconds: float) -> None:
        """Wait, telling how it stands; what ends a loop early ends the run."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            done, _ = await asyncio.wait(tasks, timeout=min(30, left), return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
            print(f"{left / 60:5.1f} min left; {len(self.kept.votes)} votes; {dict(self.kept.deeds)}", flush=True)

    async def _publish(self, http: httpx.AsyncClient, model: Path) -> None:
        operator = Operator(http)
        sequences = await operator.draw(questions()[:PROBE_PROMPTS], PROBE_TOKENS)
        made = await asyncio.to_thread(
            make_versions, self.stack.data / "versions", model, VERSIONS, sequences, chain=False
        )
        for version in made:
            await operator.register(await operator.reserve(version))
            await operator.until_ready(version.name)
        self.names = [version.name for version in made]

    # Loops, each until it is over

    async def _client(self, http: httpx.AsyncClient, number: int) -> None:
        """Ask, rate, ask again; a tenth of the questions name a version."""
        turn = 0
        while not self.over.is_set():
            turn += 1
            user = f"user-{number}-{turn % 5}"
            named = f"policy@{self.dice.choice(self.names)}" if self.dice.random() < 0.1 else "policy"
            body = chat_body(self.dice.randrange(10**6), tokens=self.tokens, model=named, user=user)
            self.doing[f"client {number}"] = f"chat with {named} since {time.monotonic():.0f}"
            answer = await ask(http, body, client=number)
            self.doing[f"client {number}"] = "vote"
            self.kept.note("chat", answer.status, answer.error or "")
            if answer.failed:
                await asyncio.sleep(0.3)
            elif answer.response_id and self.dice.random() < 0.8:
                await self._vote(http, answer.response_id, user)

    async def _vote(self, http: httpx.AsyncClient, response_id: str, user: str) -> None:
        value = self.dice.random() < 0.5
        body = {"response_id": response_id, "value": value, "end_user": user}
        if await self._told(http, "vote", "/v1/feedback", body) in (httpx.codes.OK, httpx.codes.CREATED):
            self.kept.votes[response_id] = 1.0 if value else -1.0

    async def _told(self, http: httpx.AsyncClient, what: str, path: str, body: dict[str, Any]) -> int:
        try:
            reply = await http.post(path, json=body)
        except httpx.HTTPError:
            self.kept.note(what, 0, "")
            return 0
        self.kept.note(what, reply.status_code, reply.text)
        return reply.status_code

    async def _every(self, seconds: float, deed: Callable[[], Awaitable[None]]) -> None:
        while not self.over.is_set():
            await deed()
            await asyncio.sleep(seconds)

    async def _deed(self, http: httpx.AsyncClient) -> None:
        """What an operator may do at any moment; much of it is refused, since a rollout is or is not under way."""
        candidate = self.dice.choice(self.names)
        steps = [{"weight": 0.2, "min_seconds": 5}, {"weight": 0.6, "min_seconds": 5}]
        deed, path, body = self.dice.choice(
            [
                ("promote", f"/v1/versions/{candidate}/promote", {"reason": "soak"}),
                ("rollback", "/v1/rollback", {"to": "previous", "reason": "soak"}),
                ("rollout", "/v1/rollouts", {"candidate": candidate, "steps": steps, "min_raters": 5}),
                ("end", f"/v1/rollouts/current/{self.dice.choice(['abort', 'promote'])}", {"reason": "soak"}),
            ]
        )
        if deed == "end":
            path = path.replace("current", await self._running(http))
        self.doing["operator"] = path
        status = await self._told(http, deed, path, body)
        self.kept.deeds[deed] += status in (httpx.codes.OK, httpx.codes.CREATED)

    async def _running(self, http: httpx.AsyncClient) -> str:
        with contextlib.suppress(httpx.HTTPError, KeyError, IndexError, ValueError):
            rows = (await http.get("/v1/rollouts", params={"limit": 1})).json()["data"]
            return str(rows[0]["id"])
        return "none"

    async def _killer(self) -> None:
        while not self.over.is_set():
            pause = self.dice.uniform(0.5, 1.5) * self.kill_every
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self.over.wait()
                    return
            if time.monotonic() > self.calm_from:
                continue
            victim = self.dice.choice(VICTIMS)
            print(f"kill -9 {victim}", flush=True)
            self.kept.deeds[f"killed {victim}"] += 1
            await asyncio.to_thread(self._kill, victim)
            await asyncio.to_thread(self.stack.wait_ready, READY_S)
            self.kept.lives.append([])

    def _kill(self, victim: str) -> None:
        engine = self.stack.engine_processes()
        self.stack.kill(victim)
        if victim == "server":
            psutil.wait_procs(engine, timeout=30)
            self.stack.start("server")

    async def _look(self) -> None:
        with contextlib.suppress(psutil.Error, KeyError):
            server = self._server()
            engine = sum(p.memory_info().rss for p in self.stack.engine_processes())
            sample = Sample(time.monotonic(), server.memory_info().rss / 2**20, engine / 2**20, server.num_fds())
            self.kept.lives[-1].append(sample)

    def _server(self) -> psutil.Process:
        return psutil.Process(self.stack.processes["server"].pid)

    # The reckoning

    async def _reckon(self, http: httpx.AsyncClient) -> dict[str, Any]:
        await asyncio.to_thread(self.stack.wait_ready, READY_S)
        await asyncio.sleep(15)  # connections of the pools expire, retired versions go
        stored = await self._stored(http)
        lost = [answer for answer, value in self.kept.votes.items() if stored.get(answer) != value]
        leaked = await self._leaked(http)
        longest = max(self.kept.lives, key=len)
        return {
            "acknowledged": len(self.kept.votes),
            "lost": len(lost),
            "leaked": leaked,
            "files": {"before": self.idle_files, "after": self._server().num_fds()},
            "growth": {name: growth([getattr(s, f"{name}_mib") for s in longest]) for name in ("server", "engine")},
            "longest_life_s": round(longest[-1].at - longest[0].at) if longest else 0,
            "errors_500": self.kept.errors_500[:5],
            "deeds": dict(self.kept.deeds),
            "statuses": dict(sorted(self.kept.statuses.items())),
        }

    async def _stored(self, http: httpx.AsyncClient) -> dict[str, float]:
        found: dict[str, float] = {}
        after: dict[str, str] = {}
        while True:
            page = (await http.get("/v1/feedback", params={"limit": 100, **after})).raise_for_status().json()
            found |= {row["response_id"]: row["value"] for row in page["data"]}
            if not page["has_more"]:
                return found
            after = {"after": page["next"]}

    async def _leaked(self, http: httpx.AsyncClient) -> list[str]:
        """What the engine holds and the gateway does not list as resident."""
        (replica,) = (await http.get("/v1/replicas")).raise_for_status().json()["data"]
        async with ReplicaClient(socket=self._socket()) as client:
            names = await client.models() - {"base"}
            numbers = set[int]().union(*await held_numbers(client))
        believed = set(replica["resident"]) - {"base"}
        leaked = sorted(name for name in names if name.split("-")[0] not in believed)
        return leaked + [f"{len(numbers)} in the workers, {len(names)} by name"] * (len(numbers) != len(names))

    def _socket(self) -> Path:
        for process in self.stack.engine_processes():
            command = process.cmdline()
            if "--uds" in command:
                return Path(command[command.index("--uds") + 1])
        raise SystemExit("the engine's socket was not found")


def growth(values: Sequence[float]) -> float | None:
    """Relative growth of the median from the middle third to the last; None of a life too short to tell a leak by."""
    third = len(values) // 3
    if len(values) < TELLING_LIFE:
        return None
    middle, last = statistics.median(values[third : 2 * third]), statistics.median(values[2 * third :])
    return round(last / middle - 1, 4)


def failures(found: dict[str, Any]) -> list[str]:
    """What did not hold, in words."""
    files = found["files"]
    grown = {name: grew for name, grew in found["growth"].items() if grew is not None}
    checks = [
        (found["acknowledged"] == 0, "no vote was acknowledged"),
        (found["lost"] > 0, f"{found['lost']} of {found['acknowledged']} acknowledged votes are lost"),
        (bool(found["hung"]), f"requests that never ended: {found['hung']}"),
        (bool(found["leaked"]), f"the engine holds what nobody uses: {found['leaked']}"),
        (files["after"] > files["before"] + SPARE_FILES, f"open files grew from {files['before']} to {files['after']}"),
        (bool(found["errors_500"]), f"500: {found['errors_500']}"),
        *((grew > GROWTH, f"memory of the {name} grew by {grew:.0%}") for name, grew in grown.items()),
    ]
    return [words for failed, words in checks if failed]


def soak(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run it; the figures."""
    model = args.model or ensure_model(Settings())
    environment = {"PLAUDIT_ENGINE_KV_CACHE_GIB": "1"}
    with gateway(folder, model, environment) as stack:
        run = Soak(stack, clients=args.clients, tokens=args.tokens, kill_every=args.kill_every, seed=args.seed)
        found = asyncio.run(run.run(model, args.minutes))
    return found | {"settings": {"minutes": args.minutes, "clients": args.clients, "seed": args.seed}}


def main(given: Sequence[str] | None = None) -> int:
    """Run, print, write; 1 where something did not hold."""
    args = arguments(given)
    print(f"soak: {args.minutes:g} minutes, seed {args.seed}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        found = soak(args, Path(scratch))
    for name, value in found.items():
        print(f"{name:<16}{value}")
    print(machine())
    wrong = failures(found)
    print("\n".join(wrong) or "nothing lost, nothing leaked")
    if not args.no_write:
        print(f"written: {write_result('soak', found)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

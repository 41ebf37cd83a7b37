"""Who is in the fleet, and which of them is asked. Replicas come, drain and go while requests are answered.

Kept simple on purpose: smarter routing (by prefix trees, by queue length inside vLLM) and placement over machines are
other engines' work, such as vllm-router's or Ray Serve's, behind the same `Engine` interface.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from plaudit.wire.ops import ReplicaHealth
from plaudit_server.engine.base import Member
from plaudit_server.engine.choice import choose
from plaudit_server.engine.keeper import ChildKeeper, OnReplica, RemoteKeeper
from plaudit_server.engine.process import Launcher
from plaudit_server.engine.replica import ReplicaClient
from plaudit_server.engine.swap import Replica
from plaudit_server.errors import EngineUnavailable
from plaudit_server.settings import Settings

Connect = Callable[[str], ReplicaClient]
"""A client of the server at a URL."""

_IDLE_POLL_S = 0.1


@dataclass(slots=True)
class _Place:
    """A replica, who keeps it, and the task that does."""

    replica: Replica
    keeper: ChildKeeper | RemoteKeeper
    task: "asyncio.Task[None] | None" = None
    leaving: "asyncio.Task[None] | None" = None


class Fleet:
    """The replicas.

    Args:
        settings: `engine_urls` are there from the start; without any, one child of ours is.
        base: the base model's folder, for a child.
        on_up: brings a replica that has come up to where it may serve.
        on_look: checks a replica that serves.
        launcher: what to start as a child.
        connect: how a URL is reached.
    """

    def __init__(
        self,
        settings: Settings,
        base: Path,
        *,
        on_up: OnReplica,
        on_look: OnReplica,
        launcher: Launcher,
        connect: Connect,
    ) -> None:
        self._on_up, self._on_look, self._connect = on_up, on_look, connect
        self._started = False
        self._gone: set[asyncio.Task[None]] = set()
        self._places = [
            self._remote(Member(f"engine-{number}", url)) for number, url in enumerate(settings.engine_urls)
        ]
        if not self._places:
            child = Replica("engine-0")
            self._places.append(_Place(child, ChildKeeper(child, settings, base, on_up, on_look, launcher)))

    @property
    def replicas(self) -> list[Replica]:
        """All that belong to the fleet, ready or not."""
        return [place.replica for place in self._places]

    @property
    def keepers(self) -> list[ChildKeeper | RemoteKeeper]:
        """Those who keep them, in the same order."""
        return [place.keeper for place in self._places]

    def start(self) -> None:
        """Begin to bring every replica up."""
        self._started = True
        for place in self._places:
            self._keep(place)

    async def close(self) -> None:
        """Let go of all of them; children end."""
        self._started = False
        tasks = [task for place in self._places for task in (place.leaving, place.task) if task] + list(self._gone)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def health(self, note: str | None) -> list[ReplicaHealth]:
        """One entry a replica; `note` is what is said of a ready one."""
        now = time.monotonic()
        return [
            ReplicaHealth(
                replica=r.name,
                state=r.state,
                detail=r.detail or (note if r.state == "ready" else None),
                resident=r.versions(),
                restarts=r.restarts,
                draining=r.draining,
                in_flight=r.load,
                breaker=r.breaker.state(now),
            )
            for r in self.replicas
        ]

    # ---- membership

    def follow(self, members: Sequence[Member]) -> None:
        """Bring the replicas that others run in line with this list; see `Engine.follow`."""
        listed = {member.url: member for member in members}
        for place in [p for p in self._places if p.replica.url is not None and p.replica.url not in listed]:
            self._remove(place)
        by_url = {place.replica.url: place for place in self._places}
        for member in members:
            if member.url in by_url:
                self._change(by_url[member.url], member)
            else:
                self._add(member)

    def _change(self, place: _Place, member: Member) -> None:
        place.replica.name = member.name
        if member.draining and not place.replica.draining:
            self._drain(place)
        elif place.replica.draining and not member.draining:
            self._undrain(place)

    def _remote(self, member: Member) -> _Place:
        replica = Replica(member.name, member.url, draining=member.draining)
        return _Place(replica, RemoteKeeper(replica, member.url, self._on_up, self._on_look, self._connect))

    def _add(self, member: Member) -> None:
        place = self._remote(member)
        self._places.append(place)
        if self._started:
            self._keep(place)

    def _keep(self, place: _Place) -> None:
        if place.replica.draining:
            place.replica.state, place.replica.detail = "down", "drained"
        elif place.task is None or place.task.done():
            place.replica.state = "starting"
            place.task = asyncio.create_task(place.keeper.run(), name=f"keeper of {place.replica.name}")

    def _drain(self, place: _Place) -> None:
        place.replica.draining = True
        if self._started:
            place.leaving = asyncio.create_task(_let_go(place), name=f"draining {place.replica.name}")

    def _undrain(self, place: _Place) -> None:
        place.replica.draining, place.replica.detail = False, None
        if place.leaving is not None:
            place.leaving.cancel()
        if self._started:
            self._keep(place)

    def _remove(self, place: _Place) -> None:
        self._places.remove(place)
        place.replica.draining = True
        if self._started:
            # Held until it has ended: the loop keeps only weak references to tasks.
            task = asyncio.create_task(_let_go(place), name=f"removing {place.replica.name}")
            self._gone.add(task)
            task.add_done_callback(self._gone.discard)

    # ---- choosing

    def serving(self, version: str) -> list[Replica]:
        """Replicas that are ready and have the version proven."""
        return [replica for replica in self.replicas if replica.serves(version)]

    @property
    def up(self) -> list[Replica]:
        """Replicas that are ready, whatever they hold."""
        return [replica for replica in self.replicas if replica.ready]

    def pick(self, version: str, key: str | None = None, *, but: Replica | None = None) -> Replica:
        """The replica to ask next. Where every breaker is open, they are passed over: a guess is no outage.

        Args:
            version: what it must have.
            key: the conversation, if it is one.
            but: not this one.

        Raises:
            EngineUnavailable: none has it.
        """
        serving = {replica.name: replica for replica in self.serving(version) if replica is not but}
        if not serving:
            raise self._nobody(version)
        now = time.monotonic()
        willing = {name: replica.load for name, replica in serving.items() if replica.breaker.allows(now)}
        chosen = serving[choose(willing or {name: replica.load for name, replica in serving.items()}, key)]
        chosen.breaker.began(now)
        return chosen

    def _nobody(self, version: str) -> EngineUnavailable:
        if self.up:
            return EngineUnavailable(f"{version} is not live on any engine replica yet; try again shortly.")
        details = "; ".join(r.detail for r in self.replicas if r.detail)
        return EngineUnavailable(f"The engine is not ready{f': {details}' if details else ', it is starting'}.")


async def _let_go(place: _Place) -> None:
    """Wait until its last request has ended, then stop keeping it. What it holds is left to whoever runs it."""
    while place.replica.load:  # noqa: ASYNC110  # requests end elsewhere, and a drain is rare
        await asyncio.sleep(_IDLE_POLL_S)
    if place.task is not None:
        place.task.cancel()
        await asyncio.gather(place.task, return_exceptions=True)
    place.replica.state, place.replica.detail = "down", "drained"


@contextlib.contextmanager
def counted(replica: Replica, version: str) -> Iterator[None]:
    """A request in flight."""
    replica.in_flight[version] += 1
    try:
        yield
    finally:
        replica.in_flight[version] -= 1


@contextlib.contextmanager
def unchanged(replica: Replica) -> Iterator[None]:
    """What the trainer asks for is one version's, or is not given.

    Raises:
        EngineUnavailable: another whole model was put in place meanwhile.
    """
    before = len(replica.held_since)
    yield
    if len(replica.held_since) != before:
        raise EngineUnavailable(f"{replica.held_since[-1]} was swapped in while this was computed; ask again.")

"""How soon a replica that no longer answers is restarted, and how seldom its workers are disturbed until then."""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from plaudit_server.engine import keeper
from plaudit_server.engine.keeper import PING_EVERY_S, WATCH_S, WEDGED_AFTER_S, ChildKeeper
from plaudit_server.engine.process import EngineChild
from plaudit_server.engine.replica import ReplicaClient
from plaudit_server.engine.swap import Replica
from plaudit_server.errors import EngineError
from plaudit_server.settings import Settings

A_WHILE_S = 600.0


@dataclass
class Clock:
    """The seconds of a watched life: they pass where the keeper, or who asks the workers, would wait."""

    now: float = 0.0

    def monotonic(self) -> float:
        return self.now

    async def wait(self, _: object, timeout: float) -> None:  # noqa: ASYNC109 - as asyncio.wait has it
        self.now += timeout
        await asyncio.sleep(0)


@dataclass
class Vllm:
    """A stub of child and client: since when its workers and its API hang, and which moment is a long step."""

    clock: Clock
    workers_hang: float = float("inf")
    api_hangs: float = float("inf")
    long_step: tuple[float, float] = (0.0, 0.0)
    ends: float = float("inf")
    asked: list[float] = field(default_factory=list)

    async def wait(self) -> int:
        while self.clock.now < self.ends:  # noqa: ASYNC110 - time passes by others' waiting
            await asyncio.sleep(0)
        return -9

    def last_words(self) -> str:
        return "Killed"

    async def healthy(self) -> bool:
        return self.clock.now < self.api_hangs

    async def call_workers(self, _: str, *, timeout_s: float) -> list[bool]:
        self.asked.append(self.clock.now)
        busy, free = self.long_step
        if self.clock.now >= self.workers_hang or busy <= self.clock.now < free:
            self.clock.now += timeout_s
            raise EngineError("no answer")
        return [True]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(keeper, "time", clock)
    monkeypatch.setattr(keeper.asyncio, "wait", clock.wait)
    return clock


async def watch(vllm: Vllm) -> str:
    """Why the watching ended."""
    replica = Replica(name="one")
    replica.state = "ready"

    async def look(_: Replica) -> None:
        if vllm.clock.now > A_WHILE_S:
            replica.condemned = "a while is over"

    one = ChildKeeper(replica, Settings(data=Path("data")), Path("/m"), look, look)
    return await one._watch(cast(EngineChild, vllm), cast(ReplicaClient, cast(Any, vllm)))


async def test_while_all_is_well_the_workers_are_asked_twice_a_minute(clock: Clock) -> None:
    vllm = Vllm(clock)
    assert await watch(vllm) == "a while is over; it is restarted"
    assert A_WHILE_S / PING_EVERY_S * 0.9 < len(vllm.asked) <= A_WHILE_S / PING_EVERY_S


@pytest.mark.parametrize("since", [1.0, PING_EVERY_S - 1, PING_EVERY_S + 1])
async def test_workers_that_hang_behind_an_api_that_answers_are_noticed(clock: Clock, since: float) -> None:
    vllm = Vllm(clock, workers_hang=since)
    assert "has not answered for 90 s" in await watch(vllm)
    assert clock.now - since <= PING_EVERY_S + WEDGED_AFTER_S + keeper._PING_TIMEOUT_S


async def test_an_api_that_hangs_is_noticed(clock: Clock) -> None:
    vllm = Vllm(clock, api_hangs=100)
    assert "has not answered for 90 s" in await watch(vllm)
    assert clock.now - 100 <= WEDGED_AFTER_S + 2 * WATCH_S


async def test_a_long_step_is_no_reason_to_restart(clock: Clock) -> None:
    vllm = Vllm(clock, long_step=(20, 20 + WEDGED_AFTER_S - PING_EVERY_S))
    assert await watch(vllm) == "a while is over; it is restarted"


async def test_a_process_that_ends_is_noticed_at_once(clock: Clock) -> None:
    assert await watch(Vllm(clock, ends=50)) == "the engine ended with status -9: Killed"
    assert clock.now <= 50 + WATCH_S

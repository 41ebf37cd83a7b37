"""What the trainer draws and what is scored beside the users' answers."""

import asyncio
from contextlib import AsyncExitStack, ExitStack

from plaudit_server.engine import beside
from plaudit_server.engine.beside import QUIET_S, ROLLOUTS_ALONE, ROLLOUTS_LEAST, SCORES_ALONE, Beside


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_few_while_users_speak_and_a_while_after() -> None:
    clock = Clock()
    them = Beside(clock)

    def limits() -> tuple[int, int]:
        return them.rollouts._limit(), them.scores._limit()

    assert limits() == (ROLLOUTS_ALONE, SCORES_ALONE)
    with ExitStack() as users:
        users.enter_context(them.speaking())
        assert limits() == (ROLLOUTS_LEAST, 1)
        for _ in range(39):
            users.enter_context(them.speaking())
        assert limits() == (20, 1)
        clock.now += 60
        assert limits() == (20, 1)
    clock.now += QUIET_S
    assert limits() == (ROLLOUTS_LEAST, 1)
    clock.now += 0.1
    assert limits() == (ROLLOUTS_ALONE, SCORES_ALONE)


async def test_who_waits_for_room_gets_it_in_turn() -> None:
    them, drawn = Beside(), list[int]()
    most = 0

    async def draw(number: int) -> None:
        nonlocal most
        async with them.rollouts.enter():
            drawn.append(number)
            most = max(most, them.rollouts.inside)
            await asyncio.sleep(beside._POLL_S)

    with them.speaking():
        await asyncio.gather(*(draw(number) for number in range(7)))
    assert (drawn, most, them.rollouts.inside) == (list(range(7)), ROLLOUTS_LEAST, 0)


async def test_who_gives_up_waiting_leaves_no_trace() -> None:
    them = Beside()
    with them.speaking():
        async with them.rollouts.enter(), them.rollouts.enter():
            waiting = asyncio.create_task(AsyncExitStack().enter_async_context(them.rollouts.enter()))
            await asyncio.sleep(2 * beside._POLL_S)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        assert them.rollouts.inside == 0
        async with asyncio.timeout(5), them.rollouts.enter():
            assert them.rollouts.inside == 1

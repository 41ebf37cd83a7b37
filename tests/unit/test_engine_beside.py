"""The trainer's answers beside the users'."""

import asyncio
from contextlib import AsyncExitStack, ExitStack

from plaudit_server.engine import beside
from plaudit_server.engine.beside import ALONE, LEAST, QUIET_S, Beside


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_few_while_users_speak_and_a_while_after() -> None:
    clock = Clock()
    them = Beside(clock)
    assert them.limit() == ALONE
    with ExitStack() as users:
        users.enter_context(them.speaking())
        assert them.limit() == LEAST
        for _ in range(39):
            users.enter_context(them.speaking())
        assert them.limit() == 20
        clock.now += 60
        assert them.limit() == 20
    assert them.limit() == LEAST
    clock.now += QUIET_S
    assert them.limit() == LEAST
    clock.now += 0.1
    assert them.limit() == ALONE


async def test_who_waits_for_room_gets_it_in_turn() -> None:
    them, drawn = Beside(), list[int]()
    most = 0

    async def draw(number: int) -> None:
        nonlocal most
        async with them.drawing(1):
            drawn.append(number)
            most = max(most, them._drawn)
            await asyncio.sleep(beside._POLL_S)

    with them.speaking():
        await asyncio.gather(*(draw(number) for number in range(7)))
    assert (drawn, most, them._drawn) == (list(range(7)), LEAST, 0)


async def test_more_answers_to_one_prompt_than_there_is_room_for_are_drawn_alone() -> None:
    them = Beside()
    with them.speaking():
        async with them.drawing(4 * LEAST):
            later = asyncio.create_task(AsyncExitStack().enter_async_context(them.drawing(1)))
            await asyncio.sleep(3 * beside._POLL_S)
            assert not later.done()
        await asyncio.wait_for(later, 5)


async def test_who_gives_up_waiting_leaves_no_trace() -> None:
    them = Beside()
    with them.speaking():
        async with them.drawing(LEAST):
            waiting = asyncio.create_task(AsyncExitStack().enter_async_context(them.drawing(1)))
            await asyncio.sleep(2 * beside._POLL_S)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        assert them._drawn == 0
        async with asyncio.timeout(5), them.drawing(1):
            assert them._drawn == 1

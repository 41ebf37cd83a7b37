"""The loops that follow what serves."""

import asyncio

import pytest

from plaudit_server.serving import forever, whole


async def test_a_reading_that_has_begun_is_read_to_its_end() -> None:
    begun, ended = asyncio.Event(), []

    async def read() -> None:
        begun.set()
        await asyncio.sleep(0.05)
        ended.append(True)

    loop = asyncio.create_task(forever("test", whole(read), lambda: asyncio.sleep(60)))
    await begun.wait()
    loop.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loop
    assert ended == [True]


async def test_what_a_reading_raises_is_told_and_the_loop_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    ticks, thrice = [], asyncio.Event()

    async def read() -> None:
        ticks.append(True)
        if len(ticks) == 3:
            thrice.set()
        raise RuntimeError("odd")

    loop = asyncio.create_task(forever("test", whole(read), lambda: asyncio.sleep(0)))
    await asyncio.wait_for(thrice.wait(), 5)
    loop.cancel()
    await asyncio.gather(loop, return_exceptions=True)
    assert "tick.crashed" in caplog.text

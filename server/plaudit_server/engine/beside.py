"""How many answers for the trainer a server may draw at once: few while users speak, many when nobody does.

vLLM's priorities decide who waits for a place in the batch, not how large the batch is. Every answer in it makes each
step longer, and on a CPU by much: with 64 beside theirs, users waited four times as long.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator

ALONE = 64
"""While nobody speaks. Whoever comes then waits for at most one answer's length in a full batch."""

LEAST = 2
QUIET_S = 10.0
"""Nobody speaks once nobody has for so long."""

_POLL_S = 0.02


class Beside:
    """Counts users' answers of one server, and lets the trainer's in beside them: half as many, `LEAST` at least."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._spoken = 0
        self._spoken_at = float("-inf")
        self._drawn = 0
        self._door = asyncio.Lock()

    @contextlib.contextmanager
    def speaking(self) -> Iterator[None]:
        """A user's answer, from the request to its end."""
        self._spoken += 1
        try:
            yield
        finally:
            self._spoken -= 1
            self._spoken_at = self._clock()

    @contextlib.asynccontextmanager
    async def drawing(self, answers: int) -> AsyncIterator[None]:
        """So many answers for the trainer, to one prompt. Waits for room; nobody overtakes."""
        async with self._door:
            while self._drawn and self._drawn + answers > self.limit():  # noqa: ASYNC110  # time alone moves the limit
                await asyncio.sleep(_POLL_S)
            self._drawn += answers
        try:
            yield
        finally:
            self._drawn -= answers

    def limit(self) -> int:
        """Answers for the trainer that may be drawn at once, now."""
        if not self._spoken and self._clock() - self._spoken_at > QUIET_S:
            return ALONE
        return max(LEAST, self._spoken // 2)

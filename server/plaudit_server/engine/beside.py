"""How much a server does at once that no user asked for: little while users speak, much when nobody does.

vLLM's priorities decide who waits for a place in a step, not how long the step is. What is drawn for the trainer makes
each step of the users' answers longer, and a scored sequence is read whole within one, during which nobody gets a
token. On a CPU that is felt: beside 64 answers for the trainer users waited four times as long, and a proof that was
scored in one piece stopped every answer for three seconds.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator

ROLLOUTS_ALONE = 64
"""Answers for the trainer while nobody speaks. Whoever comes then waits for one answer's length in a full batch."""

ROLLOUTS_LEAST = 2
USERS_A_ROLLOUT = 2
"""Beside users one answer for the trainer to so many of theirs, `ROLLOUTS_LEAST` at least. An answer costs more than
its share of a step: its prompt is read in one step, in which all wait."""

SCORES_ALONE = 32
"""Sequences scored at once while nobody speaks; beside users it is one."""

QUIET_S = 10.0
"""Nobody speaks once nobody has for so long."""

_POLL_S = 0.02


class Door:
    """Lets so many in as its limit says at the moment; who waits is let in in turn."""

    def __init__(self, limit: Callable[[], int]) -> None:
        self._limit = limit
        self._turn = asyncio.Lock()
        self.inside = 0

    @contextlib.asynccontextmanager
    async def enter(self) -> AsyncIterator[None]:
        """Wait for a place, and hold it."""
        async with self._turn:
            while self.inside >= self._limit():  # noqa: ASYNC110  # time alone moves the limit
                await asyncio.sleep(_POLL_S)
            self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1


class Beside:
    """Counts users' answers of one server, and lets other work in beside them.

    Attributes:
        rollouts: the door for answers to the trainer: half as many as the users', `ROLLOUTS_LEAST` at least.
        scores: the door for sequences to be scored for the trainer; one at a time beside users.
        proofs: the same for a proof, which a rollback may be waiting for.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._speaking = 0
        self._spoken_at = float("-inf")
        self.rollouts = Door(self._rollouts)
        self.scores, self.proofs = (Door(lambda: SCORES_ALONE if self.is_quiet else 1) for _ in range(2))

    def _rollouts(self) -> int:
        return ROLLOUTS_ALONE if self.is_quiet else max(ROLLOUTS_LEAST, self._speaking // USERS_A_ROLLOUT)

    @property
    def is_quiet(self) -> bool:
        """Whether nobody speaks, nor has lately."""
        return not self._speaking and self._clock() - self._spoken_at > QUIET_S

    @contextlib.contextmanager
    def speaking(self) -> Iterator[None]:
        """A user's answer, from the request to its end."""
        self._speaking += 1
        try:
            yield
        finally:
            self._speaking -= 1
            self._spoken_at = self._clock()

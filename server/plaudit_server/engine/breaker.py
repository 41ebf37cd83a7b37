"""A circuit breaker: whether a replica that keeps failing is worth asking. Pure; time is given.

Closed, it lets everything pass. So many failures in a row open it, and nothing passes for a while; then it is half
open: one request goes first, and its end closes the breaker or opens it for twice as long. Beside the keeper's health
checks, which take seconds to notice and cannot see a server that is healthy and fails every request.
"""

from dataclasses import dataclass
from typing import Literal

State = Literal["closed", "open", "half_open"]


@dataclass(slots=True)
class Breaker:
    """Counts what came of requests to one replica. Times are seconds of a monotonic clock.

    Args:
        opens_after: failures in a row that open it.
        rest_s: how long it stays open the first time.
        longest_rest_s: the bound of doubling.
    """

    opens_after: int = 5
    rest_s: float = 2.0
    longest_rest_s: float = 60.0
    failures: int = 0
    _open_until: float | None = None
    _rest: float = 0.0
    _trying_until: float = 0.0

    def state(self, now: float) -> State:
        """Where it is."""
        if self._open_until is None:
            return "closed"
        return "open" if now < self._open_until else "half_open"

    def allows(self, now: float) -> bool:
        """Whether a request may pass. Half open, one may, until it has ended or a rest has gone by."""
        state = self.state(now)
        return state == "closed" or (state == "half_open" and now >= self._trying_until)

    def began(self, now: float) -> None:
        """A request was sent: half open, it is the one that tries."""
        if self.state(now) == "half_open":
            self._trying_until = now + self._rest

    def succeeded(self) -> None:
        """A request was answered, be it with a refusal: the replica works."""
        self.failures, self._open_until, self._rest, self._trying_until = 0, None, 0.0, 0.0

    def failed(self, now: float) -> None:
        """A request failed, or was not answered in time."""
        self.failures += 1
        was = self.state(now)
        if was == "half_open" or (was == "closed" and self.failures >= self.opens_after):
            self._rest = min(self.longest_rest_s, 2 * self._rest or self.rest_s)
            self._open_until, self._trying_until = now + self._rest, 0.0

"""When to try again, and after how long. Pure functions; the drivers do the waiting.

Back-off with full jitter: before retry k wait a uniform draw from [0, min(cap, base · 2^k)]
(https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/). Where the server says `Retry-After`, wait
that long and then some, so that clients turned away together do not come back together.
"""

import asyncio
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from plaudit.errors import APIConnectionError, APIStatusError

IN_PROGRESS = "idempotency_in_progress"
_WORTH_ANOTHER_TRY = frozenset({408, 429, 500, 502, 503, 504})
_NOT_ACTED_UPON = frozenset({429, 503})


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How persistent to be.

    Args:
        max_retries: tries after the first one.
        total_s: no retry begins later than this after the first try began, in seconds.
        base_s: upper end of the first wait, in seconds; doubles with each retry.
        cap_s: longest wait that back-off alone may ask for, in seconds.
    """

    max_retries: int = 4
    total_s: float = 120.0
    base_s: float = 0.5
    cap_s: float = 8.0


class Clock:
    """Time and chance, in one place so that tests need neither."""

    def now(self) -> float:
        """Seconds on a clock that only goes forward."""
        return time.monotonic()

    def draw(self) -> float:
        """A uniform number in [0, 1)."""
        return random.random()  # noqa: S311  # spreads load; guards nothing

    def sleep(self, seconds: float) -> None:
        """Wait, blocking the thread."""
        time.sleep(seconds)

    async def asleep(self, seconds: float) -> None:
        """Wait, letting other tasks run."""
        await asyncio.sleep(seconds)


@dataclass(frozen=True, slots=True)
class Failure:
    """One failed try.

    Args:
        error: what would be raised.
        may_have_acted: whether the server may have done what was asked.
    """

    error: APIConnectionError | APIStatusError
    may_have_acted: bool

    @classmethod
    def of_status(cls, error: APIStatusError) -> "Failure":
        """A refusal. 429 and 503 are given before anything is done; other 5xx may come after."""
        return cls(error, may_have_acted=error.status not in _NOT_ACTED_UPON)


def is_in_progress(failure: Failure) -> bool:
    """Whether the server is still busy with an earlier try of the same request."""
    error = failure.error
    return isinstance(error, APIStatusError) and error.status == 409 and error.code == IN_PROGRESS


def is_worth_retrying(failure: Failure, *, replayable: bool) -> bool:
    """Whether the same request may succeed later and may be sent again without doing anything twice.

    Args:
        replayable: whether sending it twice does the same as sending it once.
    """
    if failure.may_have_acted and not replayable:
        return False
    if isinstance(failure.error, APIConnectionError):
        return True
    return failure.error.status in _WORTH_ANOTHER_TRY or is_in_progress(failure)


def backoff_s(policy: RetryPolicy, retry: int, draw: float) -> float:
    """The wait before retry number `retry` (0 for the first), for a uniform draw in [0, 1)."""
    return draw * min(policy.cap_s, policy.base_s * 2.0 ** min(retry, 30))


def pause_before_retry(
    policy: RetryPolicy, failure: Failure, *, retry: int, elapsed_s: float, draw: float, replayable: bool
) -> float | None:
    """How long to wait before trying again, in seconds; None to give up and raise.

    Waiting for an earlier try of the same request to finish is bounded by `total_s` alone: it will end, and its answer
    is the one wanted.
    """
    if not is_worth_retrying(failure, replayable=replayable):
        return None
    if retry >= policy.max_retries and not is_in_progress(failure):
        return None
    pause = backoff_s(policy, retry, draw)
    asked = failure.error.retry_after_s if isinstance(failure.error, APIStatusError) else None
    if asked is not None:
        pause = asked + min(pause, asked)
    return pause if elapsed_s + pause <= policy.total_s else None


def parse_retry_after(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """`Retry-After` in seconds (RFC 9110: a number of seconds or a date); None where absent or unreadable."""
    text = headers.get("retry-after", "").strip()
    if text.isdecimal() and text.isascii():
        return float(text[:9])
    try:
        moment = parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - (now or datetime.now(UTC))).total_seconds())

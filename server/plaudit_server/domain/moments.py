"""Times are kept as whole milliseconds since 1970 in UTC, and shown as `datetime`."""

import time
from datetime import UTC, datetime, timedelta

DAY_MS = 86_400_000

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


def now_ms() -> int:
    """The present, in milliseconds since 1970 UTC."""
    return time.time_ns() // 1_000_000


def to_ms(moment: datetime) -> int:
    """Milliseconds since 1970 UTC; exact, finer parts are cut off. `moment` must carry a zone."""
    return (moment - _EPOCH) // _MILLISECOND


def to_moment(ms: int) -> datetime:
    """The `datetime` (UTC) of milliseconds since 1970."""
    return _EPOCH + ms * _MILLISECOND

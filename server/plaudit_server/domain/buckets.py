"""Token buckets: so many a minute, of which all may come at once.

The state of a bucket is one number, the moment at which it will be full again (the generic cell rate algorithm of
ATM networks), so that taking is a lookup, a comparison and a store, whatever the rate.
"""

from collections import OrderedDict
from dataclasses import dataclass

MINUTE_S = 60.0

MAX_NAMES = 65_536
"""Buckets kept, about 10 MB at most. The one used longest ago is forgotten first; it is most likely full again."""

_ROUNDING_S = 1e-6


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of asking. `reset_s`: until the bucket is full; `retry_after_s`: until the same would pass; seconds."""

    allowed: bool
    limit: int
    remaining: int
    reset_s: float
    retry_after_s: float


class Buckets:
    """One bucket a name, each of `per_minute` tokens that come back evenly within a minute.

    Args:
        per_minute: how many tokens a bucket holds, and how many a minute come back.
        max_names: how many buckets are kept.
    """

    def __init__(self, per_minute: int, *, max_names: int = MAX_NAMES) -> None:
        self.per_minute = per_minute
        self._interval_s = MINUTE_S / per_minute
        self._max_names = max_names
        self._full_at: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._full_at)

    def take(self, name: str, now_s: float, *, cost: int = 1) -> Verdict:
        """Take `cost` tokens, all or none. What costs more than a bucket holds takes a full one."""
        full_at = max(self._full_at.get(name, 0.0), now_s)
        after = full_at + min(cost, self.per_minute) * self._interval_s
        missing_s = after - now_s - MINUTE_S
        if missing_s > _ROUNDING_S:
            if name in self._full_at:
                self._full_at.move_to_end(name)  # whoever is refused must not be forgotten for it
            return self._verdict(full_at - now_s, missing_s)
        self._full_at[name] = after
        self._full_at.move_to_end(name)
        if len(self._full_at) > self._max_names:
            self._full_at.popitem(last=False)
        return self._verdict(after - now_s, 0.0)

    def give_back(self, name: str, *, cost: int = 1) -> None:
        """Undo a `take` that turned out not to count."""
        if name in self._full_at:
            self._full_at[name] -= cost * self._interval_s

    def _verdict(self, debt_s: float, retry_after_s: float) -> Verdict:
        remaining = int((MINUTE_S - debt_s) / self._interval_s + _ROUNDING_S)
        return Verdict(retry_after_s == 0, self.per_minute, max(0, remaining), debt_s, retry_after_s)

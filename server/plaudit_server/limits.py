"""Who asks too often is told so before anything is done for them.

All of it is memory of this process: no request waits for a database to be counted, and with N gateway processes the
limits are N times as wide. A limit of 0 is off.
"""

import ipaddress
import math
import time
from collections.abc import Callable
from typing import Literal, NoReturn

from plaudit_server.domain.buckets import Buckets, Verdict
from plaudit_server.errors import RateLimited
from plaudit_server.settings import Settings
from plaudit_server.telemetry import Telemetry

Kind = Literal["chat", "feedback"]
Per = Literal["key", "user"]

_SETTINGS: dict[tuple[Kind, Per], str] = {
    ("chat", "key"): "chats_per_minute_key",
    ("chat", "user"): "chats_per_minute_user",
    ("feedback", "key"): "feedback_per_minute_key",
    ("feedback", "user"): "feedback_per_minute_user",
}


class Limits:
    """The token buckets of one gateway process.

    Args:
        settings: `*_per_minute*`.
        telemetry: counts what was refused.
        clock: seconds that never go back.
    """

    def __init__(self, settings: Settings, telemetry: Telemetry, clock: Callable[[], float] = time.monotonic) -> None:
        self._telemetry = telemetry
        self._clock = clock
        self._buckets = {which: _buckets(getattr(settings, name)) for which, name in _SETTINGS.items()}
        self._wrong_keys = _buckets(settings.wrong_keys_per_minute)

    def spend(self, kind: Kind, per: Per, name: str, shown: dict[str, str], *, cost: int = 1) -> None:
        """Count one chat or `cost` pieces of feedback.

        Args:
            kind: what is asked for.
            per: whose limit.
            name: whose bucket.
            shown: the answer's headers; those of the limit that is nearest are put there.
            cost: how much it counts.

        Raises:
            RateLimited: it is too much; nothing was counted.
        """
        buckets = self._buckets[kind, per]
        if buckets is None:
            return
        verdict = buckets.take(name, self._clock(), cost=cost)
        _show(verdict, shown)
        if not verdict.allowed:
            setting = f"PLAUDIT_{_SETTINGS[kind, per].upper()}"
            self._refuse(f"{kind}_{per}", verdict, f"{verdict.limit} a minute for one {per} ({setting})")

    def guess(self, address: str | None) -> None:
        """Count an attempt with a key or token that may be wrong, before the store is asked.

        Raises:
            RateLimited: too many wrong ones came from there.
        """
        if self._wrong_keys is None:
            return
        verdict = self._wrong_keys.take(network_of(address), self._clock())
        if not verdict.allowed:
            why = f"over {verdict.limit} wrong keys a minute from this address (PLAUDIT_WRONG_KEYS_PER_MINUTE)"
            self._refuse("wrong_keys", verdict, why)

    def guessed_right(self, address: str | None) -> None:
        """The key of the last `guess` was a good one after all: it does not count."""
        if self._wrong_keys is not None:
            self._wrong_keys.give_back(network_of(address))

    def _refuse(self, what: str, verdict: Verdict, why: str) -> NoReturn:
        self._telemetry.limited.labels(what).inc()
        raise RateLimited(f"Too many requests: {why}.", retry_after_s=verdict.retry_after_s)


def _buckets(per_minute: int) -> Buckets | None:
    return Buckets(per_minute) if per_minute else None


def _show(verdict: Verdict, shown: dict[str, str]) -> None:
    """OpenAI's headers. Of a key's and a user's limit, the one with less left is the one to know."""
    if int(shown.get("x-ratelimit-remaining-requests", verdict.remaining)) >= verdict.remaining:
        shown["x-ratelimit-limit-requests"] = str(verdict.limit)
        shown["x-ratelimit-remaining-requests"] = str(verdict.remaining)
        shown["x-ratelimit-reset-requests"] = _duration(verdict.reset_s)


def _duration(seconds: float) -> str:
    # As OpenAI writes them: 86ms, 7.66s.
    return f"{math.ceil(seconds * 1000)}ms" if seconds < 1 else f"{seconds:.2f}s"


def network_of(address: str | None) -> str:
    """Whom an address counts as: itself, or its /64 for IPv6, of which one customer has all addresses."""
    if address is None or ":" not in address:
        return address or "unknown"
    try:
        return str(ipaddress.ip_network((address.partition("%")[0], 64), strict=False))
    except ValueError:
        return address

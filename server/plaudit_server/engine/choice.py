"""Which of several replicas answers a conversation. Pure.

A conversation prefers one replica, always the same, because that one has its beginning in its prefix cache. The choice
is by rendezvous hashing (highest hash of conversation and replica wins): when replicas come and go, only their own
conversations move. A replica that has more than its share of the load is passed over for the next in the
conversation's order (consistent hashing with bounded loads, arXiv 1608.01350).
"""

import hashlib
import math
from collections.abc import Mapping, Sequence

SLACK = 1.25
"""A replica may have this many times its even share of the requests in flight before its conversations go elsewhere."""

_KEY_CHARACTERS = 4096


def conversation_key(messages: object) -> str | None:
    """What all turns of a conversation have in common: its messages up to the first of the user; None where none is.

    A system prompt alone would send all users of an application to one replica.
    """
    if not isinstance(messages, list):
        return None
    said = []
    for message in messages:
        if not isinstance(message, dict):
            return None
        said.append(str(message.get("content"))[:_KEY_CHARACTERS])
        if message.get("role") == "user":
            return "\x00".join(said)
    return None


def choose(loads: Mapping[str, int], key: str | None) -> str:
    """The replica to ask.

    Args:
        loads: requests in flight by replica; at least one.
        key: of the conversation; None: the least loaded replica is asked.
    """
    if key is None or len(loads) == 1:
        return min(loads, key=lambda name: loads[name])
    bound = math.ceil(SLACK * (sum(loads.values()) + 1) / len(loads))
    # One is always below the bound: were none, the sum of loads would exceed itself.
    return next(name for name in preference(sorted(loads), key) if loads[name] < bound)


def preference(names: Sequence[str], key: str) -> list[str]:
    """Replicas in a conversation's order, the preferred one first."""
    salt = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return sorted(names, key=lambda name: hashlib.blake2b(name.encode(), key=salt, digest_size=8).digest())

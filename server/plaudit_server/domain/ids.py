"""Identifiers: a prefix that tells the kind, and a UUIDv7, so that ids of one kind sort by their time of making."""

from typing import Literal
from uuid import UUID

from uuid_utils import uuid7

Prefix = Literal["chatcmpl-", "req_", "fb_", "cmp_", "evt_", "batch_", "run_", "key_", "rollout_", "gw_"]

_UUID7_RANDOM_BITS = 80


def new_id(prefix: Prefix) -> str:
    """A new id, such as `fb_0199…`."""
    return f"{prefix}{uuid7()}"


def new_completion_id() -> str:
    """A new `chatcmpl-<uuid7>`: the id of a completion and of its first choice."""
    return new_id("chatcmpl-")


def choice_id(completion_id: str, index: int) -> str:
    """The response id of choice `index`: the completion's own for 0, else with `.index` behind it."""
    return completion_id if index == 0 else f"{completion_id}.{index}"


def completion_of(response_id: str) -> str:
    """The completion that a response id belongs to."""
    return response_id.partition(".")[0]


def minted_at_ms(response_id: str) -> int | None:
    """When a completion id was made (ms since 1970), read from its UUIDv7; None where it is not one."""
    try:
        uuid = UUID(completion_of(response_id).removeprefix("chatcmpl-"))
    except ValueError:
        return None
    return uuid.int >> _UUID7_RANDOM_BITS if uuid.version == 7 else None

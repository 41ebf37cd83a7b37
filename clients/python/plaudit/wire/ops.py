"""Keys, health and what the server says of itself."""

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from plaudit.wire.base import Label, Moment, RequestModel, ResponseModel, VersionName

Role = Literal["chat", "feedback", "viewer", "operator", "trainer", "admin"]


class KeyCreate(RequestModel):
    """Ask for a new key."""

    name: Label
    roles: list[Role] = Field(min_length=1)


class Key(ResponseModel):
    """A key as it is kept: the secret itself is not."""

    object: Literal["key"] = "key"
    id: str
    name: str
    roles: list[Role]
    hint: str = Field(description="the first characters of the secret, to recognise it by")
    created_at: Moment
    revoked_at: Moment | None = None


class OwnKey(ResponseModel):
    """The key that a request came with."""

    object: Literal["key.own"] = "key.own"
    id: str
    name: str
    roles: list[Role]


class NewKey(Key):
    """A key just made: the only time that its secret is shown."""

    secret: str


class ReplicaHealth(ResponseModel):
    """One engine replica."""

    replica: str
    state: Literal["starting", "ready", "down"]
    detail: str | None = None
    resident: list[VersionName] = Field(default_factory=list)
    restarts: int = 0
    draining: bool = False
    in_flight: int = Field(default=0, description="requests of the process that answers")
    breaker: Literal["closed", "open", "half_open"] = Field(
        default="closed", description="open: it kept failing and is not asked for a while"
    )


def _plain_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("an http:// or https:// address is wanted")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("no user, password, query or fragment may be in it: addresses are shown and logged")
    return url.rstrip("/")


class ReplicaAdd(RequestModel):
    """Put an engine replica on the fleet's list."""

    url: Annotated[str, Field(max_length=512), AfterValidator(_plain_url)] = Field(
        description="of a vLLM server that only Plaudit can reach"
    )


class Replica(ResponseModel):
    """An engine replica: its place on the fleet's list, and its health as the answering process sees it."""

    object: Literal["replica"] = "replica"
    name: str
    url: str | None = Field(default=None, description="none for a child of the server")
    source: Literal["settings", "operator", "child"] = "child"
    state: Literal["starting", "ready", "down"] = "starting"
    draining: bool = False
    removed: bool = False
    detail: str | None = None
    resident: list[VersionName] = Field(default_factory=list)
    restarts: int = 0
    in_flight: int = 0
    breaker: Literal["closed", "open", "half_open"] = "closed"
    added_at: Moment | None = None


class Health(ResponseModel):
    """`/healthz` (the process answers) and `/readyz` (chat would be answered)."""

    status: Literal["ok", "starting", "degraded"]
    release: str
    engine: Literal["starting", "ready", "down"]
    fake_engine: bool = False
    replicas: list[ReplicaHealth] = Field(default_factory=list)
    stable: VersionName | None = None
    uptime_s: float = 0
    now: Moment | None = Field(default=None, description="the server's clock when it answered")
    trainer_seen_at: Moment | None = Field(default=None, description="when a trainer last called")

"""Keys, health and what the server says of itself."""

from typing import Literal

from pydantic import Field

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


class Health(ResponseModel):
    """`/healthz` (the process answers) and `/readyz` (chat would be answered)."""

    status: Literal["ok", "starting", "degraded"]
    release: str
    engine: Literal["starting", "ready", "down"]
    fake_engine: bool = False
    replicas: list[ReplicaHealth] = Field(default_factory=list)
    stable: VersionName | None = None
    uptime_s: float = 0
    trainer_seen_at: Moment | None = Field(default=None, description="when a trainer last called")

"""Keys, and who did what."""

from collections.abc import Sequence
from dataclasses import replace

from plaudit._binding import D_co, Resource, endpoint, pages
from plaudit._core import Call, ask, delete, get, post, segment
from plaudit.wire.base import Page
from plaudit.wire.ops import Key, KeyCreate, NewKey, OwnKey, Role
from plaudit.wire.versions import AuditEntry


class Keys(Resource[D_co]):
    """`client.keys`."""

    @endpoint
    def create(self, name: str, roles: Sequence[Role]) -> Call[NewKey]:
        """Make a key. Its `secret` is shown this once.

        For that reason the server does not keep the answer to repeat it, and a lost one is not asked for again.
        """
        return replace(post("/v1/keys", NewKey, ask(KeyCreate, name=name, roles=roles)), replayable=False)

    @endpoint
    def list(self, *, limit: int | None = None, after: str | None = None) -> Call[Page[Key]]:
        """Keys, without their secrets."""
        return get("/v1/keys", Page[Key], limit=limit, after=after)

    iterate = pages(list)

    @endpoint
    def own(self) -> Call[OwnKey]:
        """The key that this client shows, and its roles."""
        return get("/v1/keys/self", OwnKey)

    @endpoint
    def revoke(self, key_id: str) -> Call[Key]:
        """End a key's power, at once."""
        return delete(f"/v1/keys/{segment(key_id)}", Key)


class Audit(Resource[D_co]):
    """`client.audit`."""

    @endpoint
    def list(self, *, limit: int | None = None, after: str | None = None) -> Call[Page[AuditEntry]]:
        """What people and programs with power did, newest first."""
        return get("/v1/audit", Page[AuditEntry], limit=limit, after=after)

    iterate = pages(list)

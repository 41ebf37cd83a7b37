"""Who asks, and what they may.

A key is `plk_` and 256 random bits; only its SHA-256 is stored (a slow hash would protect a guessable secret, which
this is not). Lookup is by that hash, here and in the store, so no comparison depends on how much of a guess was
right.
"""

import asyncio
import hashlib
import math
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer, SecurityScopes

from plaudit.wire.ops import Role
from plaudit_server.domain.records import KeyRow
from plaudit_server.errors import Forbidden, SettingError, Unauthenticated
from plaudit_server.limits import Limits

CACHE_SECONDS = 0.75
"""How long a found key is believed without asking again: a revoked one stops working within a second."""

_MAX_CACHED = 4096
_MAX_SECRET = 200


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks: a key."""

    key_id: str
    name: str
    roles: frozenset[Role]

    def may(self, roles: set[str]) -> bool:
        """Whether one of `roles` is held; an admin may all."""
        return "admin" in self.roles or not self.roles.isdisjoint(roles)


class Denials(Protocol):
    """Where refusals are noted."""

    async def note(self, principal: Principal, method: str, route: str, needs: str) -> None:
        """A key's roles did not allow `method` on `route`, which needs the roles `needs`."""
        ...


class KeyRing:
    """Finds the principal of a secret, asking the store at most once in `CACHE_SECONDS`.

    A key that was good a while ago is asked for even where its address sent too many wrong ones, so that whoever
    guesses cannot shut out those who share an address with them.

    Args:
        find: the live key with a secret, or None.
        limits: counts wrong keys by address.
    """

    def __init__(self, find: Callable[[str], Awaitable[KeyRow | None]], limits: Limits) -> None:
        self._find = find
        self._limits = limits
        self._known: dict[bytes, tuple[float, Principal]] = {}
        self._asking: dict[bytes, asyncio.Future[Principal | None]] = {}

    async def principal(self, secret: str, address: str | None = None) -> Principal:
        """Who holds `secret`.

        Raises:
            Unauthenticated: nobody does.
            RateLimited: too many wrong ones came from `address`; the store was not asked.
        """
        if not secret.startswith("plk_") or len(secret) > _MAX_SECRET:
            self._limits.guess(address)
            raise Unauthenticated("The API key is malformed: it begins with plk_.", code="invalid_api_key")
        hashed = hashlib.sha256(secret.encode("utf-8", "replace")).digest()
        known = self._known.get(hashed)
        if known and time.monotonic() - known[0] < CACHE_SECONDS:
            return known[1]
        mine = hashed not in self._asking
        if mine:
            if known is None:
                self._limits.guess(address)
            # Shared, so that the first hundred requests of one good key are one question and one guess.
            self._asking[hashed] = asyncio.ensure_future(self._ask(hashed, secret))
        principal = await asyncio.shield(self._asking[hashed])
        if principal is None:
            if not mine:
                self._limits.guess(address)
            raise Unauthenticated("There is no such API key, or it was revoked.", code="invalid_api_key")
        if mine and known is None:
            self._limits.guessed_right(address)
        return principal

    async def _ask(self, hashed: bytes, secret: str) -> Principal | None:
        asked_at = time.monotonic()
        try:
            key = await self._find(secret)
        finally:
            del self._asking[hashed]
        if key is None:
            self._known.pop(hashed, None)
            return None
        return self._remember(hashed, asked_at, Principal(key.id, key.name, frozenset(key.roles)))

    def _remember(self, hashed: bytes, asked_at: float, principal: Principal) -> Principal:
        if hashed not in self._known and len(self._known) >= _MAX_CACHED:
            del self._known[next(iter(self._known))]
        self._known[hashed] = (asked_at, principal)
        return principal

    def forget(self) -> None:
        """Ask the store for every key again: a key was made or revoked here."""
        self._known = {hashed: (-math.inf, principal) for hashed, (_, principal) in self._known.items()}


async def authenticate(request: Request) -> Principal:
    """Who asks, by `Authorization: Bearer`.

    Raises:
        Unauthenticated: no key, or a wrong one.
        RateLimited: too many wrong ones from this address.
    """
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not secret.strip():
        raise Unauthenticated(code="missing_api_key")
    ring: KeyRing = request.app.state.services.keys
    return await ring.principal(secret.strip(), client_address(request))


def client_address(request: Request) -> str | None:
    """Where the request came from: the connection's other end, or what a trusted proxy says of it."""
    return request.client.host if request.client else None


_BEARER = HTTPBearer(
    auto_error=False, scheme_name="key", description="`Authorization: Bearer plk_…`", bearerFormat="plk"
)


async def authorized(
    scopes: SecurityScopes,
    request: Request,
    _credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)],
) -> Principal:
    """Let the request's principal pass where it has one of the roles. Raises Forbidden."""
    principal: Principal = request.state.principal
    if not principal.may(set(scopes.scopes)):
        wanted = " or ".join(scopes.scopes)
        denials: Denials = request.app.state.services.denials
        await denials.note(principal, request.method, request.scope["route"].path, wanted)
        raise Forbidden(f"This key's roles do not allow that: it needs {wanted}.", code="missing_role")
    return principal


def allow(*roles: Role) -> Any:
    """The one way to guard an endpoint: `principal: Annotated[Principal, allow("chat")]`.

    Shows in the OpenAPI document as the operation's security requirement, where a contract test looks for it.
    """
    return Security(authorized, scopes=list(roles))


def read_secret(path: Path) -> str | None:
    """The secret that an earlier start left in `path`."""
    try:
        secret = path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"{path} cannot be read ({error}). Mend its permissions or delete it.") from error
    return secret if secret.startswith("plk_") else None


def write_secret(path: Path, secret: str) -> None:
    """Leave a secret in `path`, readable by its owner only from the first byte on."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(secret + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)

"""Signed feedback tokens: leave to rate one answer under a few keys, for a while, as the user who asked for it.

`ft1_` and base64url of: what is granted, packed, and the first 128 bits of its HMAC-SHA-256. Whoever holds the token
can read what it says (ids and a keyed hash, no words) and can change none of it.
"""

import binascii
import hashlib
import hmac
import secrets
import struct
from base64 import b64decode, urlsafe_b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from plaudit_server.errors import Unauthenticated

MAX_KEYS = 8

_PREFIX = "ft1_"
_LAYOUT = struct.Struct(">16sH16s12sI?")  # completion, choice, end user, token id, expiry in s, named
_MAC_BYTES = 16
_MAX_LENGTH = 4096


@dataclass(frozen=True, slots=True)
class Grant:
    """What one token allows.

    Attributes:
        id: the token's own; under it each key may be used once.
        end_user: keyed hash of whose word it will be.
        named: whether the chat said who asked; else `end_user` stands for the API key.
    """

    id: str
    response_id: str
    end_user: str
    named: bool
    keys: tuple[str, ...]
    expires_at_ms: int


class GrantSigner:
    """Makes and reads tokens with a key of its own, derived from the server's secret."""

    def __init__(self, secret: bytes) -> None:
        self._key = hmac.new(secret, b"feedback token, version 1", hashlib.sha256).digest()

    def sign(self, response_id: str, end_user: str, *, named: bool, keys: Sequence[str], expires_at_ms: int) -> str:
        """A new token.

        Args:
            response_id: `chatcmpl-<uuid>`, with `.k` behind it for choice k.
            end_user: `eu_<32 hex>`.
            named: see `Grant`.
            keys: what may be rated.
            expires_at_ms: since 1970; rounded up to a second.
        """
        completion, _, choice = response_id.removeprefix("chatcmpl-").partition(".")
        user = bytes.fromhex(end_user.removeprefix("eu_"))
        expiry_s = -(-expires_at_ms // 1000)
        packed = _LAYOUT.pack(UUID(completion).bytes, int(choice or 0), user, secrets.token_bytes(12), expiry_s, named)
        said = packed + "\0".join(keys).encode()
        return _PREFIX + urlsafe_b64encode(said + self._mac(said)).rstrip(b"=").decode()

    def renew(self, grant: Grant) -> str:
        """Another token for the same, which expires with it."""
        return self.sign(
            grant.response_id, grant.end_user, named=grant.named, keys=grant.keys, expires_at_ms=grant.expires_at_ms
        )

    def read(self, token: str, *, now_ms: int) -> Grant:
        """What a token allows.

        Raises:
            Unauthenticated: it is none of ours, was changed, or has expired.
        """
        said = self._verified(token)
        completion, choice, user, token_id, expiry_s, named = _LAYOUT.unpack_from(said)
        if expiry_s * 1000 <= now_ms:
            raise Unauthenticated("This feedback token has expired.", code="token_expired")
        return Grant(
            id=token_id.hex(),
            response_id=f"chatcmpl-{UUID(bytes=completion)}" + (f".{choice}" if choice else ""),
            end_user=f"eu_{user.hex()}",
            named=named,
            keys=tuple(said[_LAYOUT.size :].decode().split("\0")),
            expires_at_ms=expiry_s * 1000,
        )

    def _verified(self, token: str) -> bytes:
        encoded = token.removeprefix(_PREFIX)
        if encoded != token and len(token) <= _MAX_LENGTH and "=" not in encoded:
            try:
                signed = b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
            except (binascii.Error, ValueError):
                signed = b""
            said, mac = signed[:-_MAC_BYTES], signed[-_MAC_BYTES:]
            if len(said) > _LAYOUT.size and hmac.compare_digest(mac, self._mac(said)):
                return said
        raise Unauthenticated("This feedback token is not valid.", code="invalid_token")

    def _mac(self, said: bytes) -> bytes:
        return hmac.new(self._key, said, hashlib.sha256).digest()[:_MAC_BYTES]

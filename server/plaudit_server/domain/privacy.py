"""The one seam between what was received and what is written.

Every text that may be a person's passes through `seal` or `seal_text` before any of it reaches the store: first the
redactor, then the cipher. Token ids are text too (anybody with the tokenizer reads them), so they go the same way, and
where redaction changed anything they are dropped together with the log-probabilities: such a record can feed the
reward model, never a PPO ratio.
"""

import hashlib
import hmac
import json
import sys
import unicodedata
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NewType, Protocol

from plaudit.wire.base import JsonObject

SealedContent = NewType("SealedContent", bytes)
"""Messages, answer and tool calls as JSON, redacted and then encrypted."""

SealedText = NewType("SealedText", bytes)
"""One text, redacted and then encrypted."""

SealedTokens = NewType("SealedTokens", bytes)
"""Token ids (little-endian int32) or log-probabilities (little-endian float32), encrypted."""

_STRUCTURAL = frozenset({"role", "type"})
"""Fields of a message whose values belong to the protocol and are nobody's words."""


class Redactor(Protocol):
    """Takes out what must not be kept."""

    def redact(self, text: str) -> str:
        """The text without it; the same text where there was nothing."""
        ...


class Cipher(Protocol):
    """Encrypts at rest."""

    def encrypt(self, clear: bytes) -> bytes:
        """What is written."""
        ...

    def decrypt(self, sealed: bytes) -> bytes:
        """What `encrypt` was given."""
        ...


class NoRedaction:
    """Keeps every text as it is."""

    def redact(self, text: str) -> str:
        """The text itself."""
        return text


class PlainCipher:
    """Writes in the clear: the disk's own encryption is the protection."""

    def encrypt(self, clear: bytes) -> bytes:
        """The bytes themselves."""
        return clear

    def decrypt(self, sealed: bytes) -> bytes:
        """The bytes themselves."""
        return sealed


@dataclass(frozen=True, slots=True)
class Exchange:
    """One prompt and one answer to it, in the clear.

    `prompt_ids`, `response_ids` and `logprobs` (nats, one for each response id) are what the engine used and drew.
    """

    messages: list[JsonObject]
    content: str
    tool_calls: list[Any] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)
    prompt_ids: Sequence[int] | None = None
    response_ids: Sequence[int] | None = None
    logprobs: Sequence[float] | None = None


@dataclass(frozen=True, slots=True)
class SealedExchange:
    """What may be written of an exchange. `metadata` is redacted but not encrypted: it is there to be filtered by."""

    content: SealedContent
    metadata: dict[str, str]
    prompt_ids: SealedTokens | None
    response_ids: SealedTokens | None
    logprobs: SealedTokens | None
    redacted: bool


def seal(exchange: Exchange, redactor: Redactor, cipher: Cipher) -> SealedExchange:
    """Bring an exchange to the form that may be written.

    Ids and log-probabilities survive all together or not at all: where redaction changed the conversation, or where
    the engine did not give every one of them, none is kept.
    """
    said = {"messages": exchange.messages, "content": exchange.content, "tool_calls": exchange.tool_calls}
    kept = _redacted(said, redactor)
    redacted = kept != said
    tokens = None if redacted else _tokens(exchange)
    return SealedExchange(
        content=SealedContent(cipher.encrypt(_dump(kept))),
        metadata={name: redactor.redact(value) for name, value in exchange.metadata.items()},
        prompt_ids=SealedTokens(cipher.encrypt(_pack("i", tokens[0]))) if tokens else None,
        response_ids=SealedTokens(cipher.encrypt(_pack("i", tokens[1]))) if tokens else None,
        logprobs=SealedTokens(cipher.encrypt(_pack("f", tokens[2]))) if tokens else None,
        redacted=redacted,
    )


def unseal(sealed: SealedExchange, cipher: Cipher) -> Exchange:
    """What `seal` kept, in the clear. Log-probabilities come back as float32 has them."""
    said = json.loads(cipher.decrypt(sealed.content))
    return Exchange(
        messages=said["messages"],
        content=said["content"],
        tool_calls=said["tool_calls"],
        metadata=dict(sealed.metadata),
        prompt_ids=unseal_ids(sealed.prompt_ids, cipher),
        response_ids=unseal_ids(sealed.response_ids, cipher),
        logprobs=None if sealed.logprobs is None else _unpack("f", cipher.decrypt(sealed.logprobs)),
    )


def seal_text(text: str, redactor: Redactor, cipher: Cipher) -> tuple[SealedText, bool]:
    """A comment, correction or written answer as it may be written, and whether redaction changed it."""
    kept = redactor.redact(text)
    return SealedText(cipher.encrypt(kept.encode())), kept != text


def unseal_text(sealed: SealedText | None, cipher: Cipher) -> str | None:
    """What `seal_text` kept."""
    return None if sealed is None else cipher.decrypt(sealed).decode()


def unseal_ids(sealed: SealedTokens | None, cipher: Cipher) -> list[int] | None:
    """Token ids as they were before sealing."""
    return None if sealed is None else _unpack("i", cipher.decrypt(sealed))


def hash_end_user(secret: bytes, value: str) -> str:
    """`eu_<32 hex>`: HMAC-SHA-256 of an end user's identifier, cut to 128 bits. The clear value is never stored."""
    return "eu_" + _keyed_hash(secret, "end_user", value)


def prompt_key(secret: bytes, messages: Sequence[JsonObject]) -> str:
    """`pk_<32 hex>`: equal for prompts that are equal up to case, white space and Unicode form.

    Keyed, because an unkeyed hash of a short prompt can be guessed.
    """
    return "pk_" + _keyed_hash(secret, "prompt", _dump(_normalised(list(messages))).decode())


def _keyed_hash(secret: bytes, purpose: str, value: str) -> str:
    # The purpose is hashed along so that a prompt that consists of a user's name does not reveal that user's hash.
    return hmac.new(secret, f"{purpose}:{value}".encode(), hashlib.sha256).hexdigest()[:32]


def _normalised(value: Any) -> Any:
    if isinstance(value, str):
        return " ".join(unicodedata.normalize("NFKC", value).casefold().split())
    if isinstance(value, list):
        return [_normalised(item) for item in value]
    if isinstance(value, dict):
        return {name: _normalised(item) for name, item in value.items()}
    return value


def _redacted(value: Any, redactor: Redactor) -> Any:
    if isinstance(value, str):
        return redactor.redact(value)
    if isinstance(value, list):
        return [_redacted(item, redactor) for item in value]
    if isinstance(value, dict):
        return {k: v if k in _STRUCTURAL and isinstance(v, str) else _redacted(v, redactor) for k, v in value.items()}
    return value


def _tokens(exchange: Exchange) -> tuple[Sequence[int], Sequence[int], Sequence[float]] | None:
    prompt_ids, response_ids, logprobs = exchange.prompt_ids, exchange.response_ids, exchange.logprobs
    if prompt_ids is None or response_ids is None or logprobs is None or len(response_ids) != len(logprobs):
        return None
    return prompt_ids, response_ids, logprobs


def _dump(value: Any) -> bytes:
    # `surrogatepass` keeps an engine's odd output storable; `sort_keys` makes equal prompts equal bytes.
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return text.encode("utf-8", "surrogatepass")


def _pack(code: str, numbers: Sequence[float]) -> bytes:
    packed = array(code, numbers)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def _unpack(code: str, data: bytes) -> list[Any]:
    packed = array(code)
    packed.frombytes(data)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tolist()

import math
import re
import struct
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plaudit_server.domain.privacy import (
    Exchange,
    NoRedaction,
    PlainCipher,
    hash_end_user,
    prompt_key,
    seal,
    seal_text,
    unseal,
    unseal_text,
)

SECRET = b"0" * 32


class DigitRedactor:
    """Takes out runs of four or more digits."""

    def redact(self, text: str) -> str:
        return re.sub(r"\d{4,}", "[number]", text)


class XorCipher:
    """Not a cipher: it only shows what passed through it."""

    def encrypt(self, clear: bytes) -> bytes:
        return bytes(byte ^ 0x5A for byte in clear)

    def decrypt(self, sealed: bytes) -> bytes:
        return bytes(byte ^ 0x5A for byte in sealed)


def _exchange(**changes: Any) -> Exchange:
    values: dict[str, Any] = {
        "messages": [{"role": "user", "content": "Call me on 5550123"}],
        "content": "I will.",
        "prompt_ids": [1, 2],
        "response_ids": [3, 4, 5],
        "logprobs": [-1.0, -0.5, -2.0],
    }
    return Exchange(**{**values, **changes})


def test_without_redaction_everything_comes_back() -> None:
    exchange = _exchange(tool_calls=[{"id": "call_1"}], metadata={"app": "web"})
    sealed = seal(exchange, NoRedaction(), PlainCipher())
    assert not sealed.redacted
    assert unseal(sealed, PlainCipher()) == exchange


@pytest.mark.parametrize(
    "where",
    [
        {"messages": [{"role": "user", "content": "Call me on 5550123"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "5550123"}]}]},
        {"messages": [{"role": "user", "content": "x"}], "content": "Calling 5550123."},
        {"messages": [{"role": "user", "content": "x"}], "tool_calls": [{"function": {"arguments": '"5550123"'}}]},
    ],
)
def test_where_redaction_changed_anything_only_redacted_text_is_kept(where: dict[str, Any]) -> None:
    sealed = seal(_exchange(**where), DigitRedactor(), PlainCipher())
    assert sealed.redacted
    assert b"5550123" not in sealed.content
    assert b"[number]" in sealed.content
    assert (sealed.prompt_ids, sealed.response_ids, sealed.logprobs) == (None, None, None)


def test_what_redaction_leaves_alone_keeps_its_tokens() -> None:
    sealed = seal(_exchange(messages=[{"role": "user", "content": "hello"}]), DigitRedactor(), PlainCipher())
    assert not sealed.redacted
    assert unseal(sealed, PlainCipher()).response_ids == [3, 4, 5]


def test_redaction_does_not_touch_roles_and_types() -> None:
    class Shouting:
        def redact(self, text: str) -> str:
            return text.upper()

    sealed = seal(_exchange(messages=[{"role": "user", "content": "a", "type": "text"}]), Shouting(), PlainCipher())
    assert unseal(sealed, PlainCipher()).messages == [{"role": "user", "content": "A", "type": "text"}]


def test_redacted_metadata_alone_does_not_cost_the_tokens() -> None:
    exchange = _exchange(messages=[{"role": "user", "content": "x"}], metadata={"phone": "5550123"})
    sealed = seal(exchange, DigitRedactor(), PlainCipher())
    assert sealed.metadata == {"phone": "[number]"}
    assert sealed.response_ids is not None


def test_every_part_goes_through_the_cipher() -> None:
    exchange = _exchange()
    sealed, clear = seal(exchange, NoRedaction(), XorCipher()), seal(exchange, NoRedaction(), PlainCipher())
    for name in ("content", "prompt_ids", "response_ids", "logprobs"):
        assert getattr(sealed, name) == XorCipher().encrypt(getattr(clear, name))
    assert unseal(sealed, XorCipher()) == exchange


@pytest.mark.parametrize(
    "missing", [{"logprobs": None}, {"prompt_ids": None}, {"response_ids": None}, {"logprobs": [-1.0]}]
)
def test_token_data_that_is_not_whole_is_not_kept_at_all(missing: dict[str, Any]) -> None:
    sealed = seal(_exchange(**missing), NoRedaction(), PlainCipher())
    assert (sealed.prompt_ids, sealed.response_ids, sealed.logprobs) == (None, None, None)
    assert not sealed.redacted


def test_tokens_are_little_endian_int32_and_float32() -> None:
    sealed = seal(_exchange(), NoRedaction(), PlainCipher())
    assert sealed.response_ids == struct.pack("<3i", 3, 4, 5)
    assert sealed.logprobs == struct.pack("<3f", -1.0, -0.5, -2.0)


def test_an_empty_answer_keeps_its_empty_tokens() -> None:
    sealed = seal(_exchange(response_ids=[], logprobs=[]), NoRedaction(), PlainCipher())
    assert unseal(sealed, PlainCipher()).response_ids == []


@given(
    ids=st.lists(st.integers(0, 2**31 - 1), max_size=50),
    text=st.text(st.characters(exclude_categories=["Cs"])),
)
def test_sealing_keeps_any_text_and_ids(ids: list[int], text: str) -> None:
    logprobs = [-float(i) / 7 for i in range(len(ids))]
    exchange = _exchange(
        content=text, messages=[{"role": "user", "content": text}], response_ids=ids, logprobs=logprobs
    )
    opened = unseal(seal(exchange, NoRedaction(), XorCipher()), XorCipher())
    assert (opened.content, opened.messages, opened.response_ids) == (text, exchange.messages, ids)
    assert _close(opened.logprobs, logprobs)


def _close(a: Sequence[float] | None, b: Sequence[float]) -> bool:
    return a is not None and all(math.isclose(x, y, rel_tol=1e-6) for x, y in zip(a, b, strict=True))


def test_a_lone_surrogate_of_the_engine_is_storable() -> None:
    sealed = seal(_exchange(content="half \ud83d"), NoRedaction(), PlainCipher())
    assert unseal(sealed, PlainCipher()).content == "half \ud83d"


def test_texts_go_the_same_way() -> None:
    sealed, changed = seal_text("my number is 5550123", DigitRedactor(), XorCipher())
    assert changed
    assert unseal_text(sealed, XorCipher()) == "my number is [number]"
    assert seal_text("fine", DigitRedactor(), PlainCipher()) == (b"fine", False)
    assert unseal_text(None, PlainCipher()) is None


def test_end_users_are_hashed_with_the_secret() -> None:
    hashed = hash_end_user(SECRET, "ada@example.org")
    assert re.fullmatch(r"eu_[0-9a-f]{32}", hashed)
    assert hashed == hash_end_user(SECRET, "ada@example.org")
    assert hashed != hash_end_user(b"1" * 32, "ada@example.org")
    assert hashed != hash_end_user(SECRET, "bob@example.org")


def test_prompt_keys_are_equal_for_equal_prompts_only() -> None:
    def key(text: str, role: str = "user") -> str:
        return prompt_key(SECRET, [{"role": role, "content": text}])

    assert re.fullmatch(r"pk_[0-9a-f]{32}", key("x"))
    assert key("What  is\nthis? ") == key("what is this?")
    assert key("café") == key("cafe\u0301")
    assert key("What is this?") != key("What is that?")
    assert key("x") != key("x", role="system")
    assert key("x") != prompt_key(b"1" * 32, [{"role": "user", "content": "x"}])

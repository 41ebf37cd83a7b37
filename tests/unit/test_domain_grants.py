"""Feedback tokens: what was signed comes back; nothing else does."""

import pytest

from plaudit_server.domain.grants import GrantSigner
from plaudit_server.errors import Unauthenticated

SIGNER = GrantSigner(b"s" * 32)
ANSWER = "chatcmpl-0199aaaa-bbbb-7ccc-8ddd-eeeeeeeeeeee"
USER = "eu_" + "0f" * 16
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def sign(response_id: str = ANSWER, *keys: str, expires_at_ms: int = 5_000) -> str:
    return SIGNER.sign(response_id, USER, named=True, keys=keys or ("thumb",), expires_at_ms=expires_at_ms)


@pytest.mark.parametrize("response_id", [ANSWER, f"{ANSWER}.1", f"{ANSWER}.999"])
@pytest.mark.parametrize("keys", [("thumb",), ("thumb", "größe", "x" * 128)])
def test_what_was_signed_comes_back(response_id: str, keys: tuple[str, ...]) -> None:
    grant = SIGNER.read(sign(response_id, *keys), now_ms=4_999)
    assert (grant.response_id, grant.end_user, grant.keys, grant.named) == (response_id, USER, keys, True)
    assert grant.expires_at_ms == 5_000


def test_it_fits_a_header_and_an_address() -> None:
    token = sign()
    assert len(token) < 120
    assert set(token) <= set(ALPHABET)
    assert token.startswith("ft1_")


def test_two_tokens_differ_and_a_renewed_one_grants_the_same() -> None:
    first = SIGNER.read(sign(), now_ms=0)
    second = SIGNER.read(SIGNER.renew(first), now_ms=0)
    assert first.id != second.id
    assert (first.response_id, first.keys, first.expires_at_ms) == (
        second.response_id,
        second.keys,
        second.expires_at_ms,
    )


def test_it_expires() -> None:
    with pytest.raises(Unauthenticated) as caught:
        SIGNER.read(sign(), now_ms=5_000)
    assert caught.value.code == "token_expired"


def test_every_changed_character_is_noticed() -> None:
    token = sign()
    for place in range(4, len(token) - 1):  # the last one holds padding bits that mean nothing
        other = next(letter for letter in ALPHABET if letter != token[place])
        with pytest.raises(Unauthenticated):
            SIGNER.read(token[:place] + other + token[place + 1 :], now_ms=0)


# Named: a signed token is another one each time, and xdist's workers must collect the same tests.
@pytest.mark.parametrize(
    "token",
    [
        pytest.param("", id="empty"),
        pytest.param("ft1_", id="prefix alone"),
        pytest.param("ft1_AAAA", id="too short"),
        pytest.param("ft1_" + "A" * 5000, id="too long"),
        pytest.param("ft2_" + sign()[4:], id="another prefix"),
        pytest.param(sign()[4:], id="no prefix"),
        pytest.param(sign() + "=", id="padded"),
        pytest.param("ft1_ä/+", id="another alphabet"),
    ],
)
def test_nonsense(token: str) -> None:
    with pytest.raises(Unauthenticated) as caught:
        SIGNER.read(token, now_ms=0)
    assert caught.value.code == "invalid_token"


def test_another_servers_token_is_none_of_ours() -> None:
    foreign = GrantSigner(b"t" * 32).sign(ANSWER, USER, named=True, keys=["thumb"], expires_at_ms=5_000)
    with pytest.raises(Unauthenticated):
        SIGNER.read(foreign, now_ms=0)

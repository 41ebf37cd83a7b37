"""What a request's JSON may be."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plaudit_server.errors import BadRequest
from plaudit_server.strictjson import MAX_DEPTH, parse


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "invalid_json"),
        (b"", "invalid_json"),
        (b"NaN", "invalid_json"),
        (b'{"a": Infinity}', "invalid_json"),
        (b'{"a": -Infinity}', "invalid_json"),
        (b'{"a": 1e400}', "invalid_json"),
        (b'"\\ud800"', "invalid_json"),
        (b'"\xff"', "invalid_json"),
        (b"[1,]", "invalid_json"),
        (b'{"a": 1, "a": 1}', "duplicate_key"),
        (b'{"b": {"a": 1, "a": 2}}', "duplicate_key"),
        (b"9223372036854775808", "number_out_of_range"),
        (b"[" + b"9" * 5000 + b"]", "invalid_json"),
        (b"[" + b"9" * 300 + b"]", "number_out_of_range"),
        (b'{"a": ["\\u0000"]}', "nul_character"),
        (b'{"\\u0000": 1}', "nul_character"),
        (b"[" * 5000 + b"]" * 5000, "invalid_json"),
        (b"[" * 1000 + b"]" * 1000, "too_deep"),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "too_deep"),
        (b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1), "too_deep"),
    ],
    ids=lambda value: repr(value[:20]) if isinstance(value, bytes) else value,
)
def test_refused(body: bytes, code: str) -> None:
    with pytest.raises(BadRequest) as refused:
        parse(body)
    assert refused.value.code == code
    assert refused.value.status == 400


def test_the_text_is_never_repeated() -> None:
    with pytest.raises(BadRequest) as refused:
        parse(b'{"secret": "4111 1111 1111 1111", }')
    assert "4111" not in refused.value.message


@pytest.mark.parametrize(
    "body",
    [
        b"[" * MAX_DEPTH + b"]" * MAX_DEPTH,
        b"[[],[],[],[]]" * 1,
        b"[" + b"[]," * 500 + b"[]]",
        b'"a literal backslash: \\\\u0000"',
        b'"\\ud83d\\ude00"',
        b"-9223372036854775808",
        b"-1e-999",
    ],
)
def test_accepted(body: bytes) -> None:
    assert parse(body) == json.loads(body)


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    # No surrogates and no NUL: those are refused on purpose.
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00")),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00")), inner)
    ),
    max_leaves=20,
)


@given(_JSON)
def test_whatever_is_storable_survives(value: Any) -> None:
    assert parse(json.dumps(value).encode()) == value

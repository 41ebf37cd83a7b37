"""JSON as requests must have it: nothing that another parser would read differently, nothing that could not be stored.

Two passes. orjson is strict and fast: it refuses NaN, Infinity, numbers beyond a double, lone surrogates and bad
UTF-8. What it lets through, duplicate keys and integers beyond 64 bits, the standard library's parser is asked
about.
"""

import json
from collections.abc import Iterable
from typing import Any

import orjson

from plaudit_server.errors import BadRequest

MAX_DEPTH = 64
"""Deepest nesting of arrays and objects. A tool's schema rarely passes 20."""

_INT64 = range(-(2**63), 2**63)


def parse(body: bytes) -> Any:
    """Parse a request's body.

    Raises:
        BadRequest: with the reason and, where there is one, the position; the text itself is never repeated.
    """
    try:
        orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"The body is not valid JSON: {error}.", code="invalid_json") from None
    try:
        value = json.loads(body, object_pairs_hook=_no_duplicates, parse_int=_int64)
    except RecursionError:
        raise _too_deep() from None
    # Counting brackets is a cheap upper bound, so that almost no request pays for the walk.
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH:
        _check_depth(value)
    if b"\\u0000" in body:
        _check_no_nul(value)
    return value


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise BadRequest("An object in the body has the same key twice.", code="duplicate_key")
    return members


def _int64(digits: str) -> int:
    # int() refuses more than 4,300 digits with a ValueError of its own.
    if len(digits) > 20 or (number := int(digits)) not in _INT64:
        raise BadRequest("A whole number in the body does not fit 64 bits.", code="number_out_of_range")
    return number


def _too_deep() -> BadRequest:
    return BadRequest(f"The body is nested more than {MAX_DEPTH} levels deep.", code="too_deep")


def _children(items: Iterable[Any]) -> list[Any]:
    found: list[Any] = []
    for item in items:
        if isinstance(item, dict):
            found.extend(item.values())
        elif isinstance(item, list):
            found.extend(item)
    return found


def _check_depth(value: Any) -> None:
    # Level by level instead of recursively: the depth is what is in doubt.
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [child for child in _children(level) if isinstance(child, dict | list)]
        if not level:
            return
    raise _too_deep()


def _check_no_nul(value: Any) -> None:
    level = [value]
    while level:
        for item in level:
            texts = item.keys() if isinstance(item, dict) else (item,)
            if any(isinstance(text, str) and "\x00" in text for text in texts):
                # PostgreSQL cannot store it, and no model needs it.
                raise BadRequest("The body contains a NUL character (\\u0000).", code="nul_character")
        level = _children(level)

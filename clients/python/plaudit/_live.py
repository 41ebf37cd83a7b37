"""The overview as it changes: bytes of `GET /v1/live` to overviews. No I/O."""

import json
from collections.abc import Mapping
from typing import Any, get_args

from plaudit._core import error_from
from plaudit._sse import SSEDecoder
from plaudit.errors import APIResponseError
from plaudit.wire.overview import Overview, Topic

_TOPICS = frozenset(get_args(Topic))


class LiveReader:
    """Puts the parts together. Gives nothing until every part was told once."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._headers = headers
        self._events = SSEDecoder()
        self._parts: dict[str, Any] = {}

    def feed(self, raw: bytes) -> Overview | None:
        """The overview after these bytes; None where they changed nothing.

        Raises:
            APIStatusError: the server ended it, such as for a key that was revoked.
            APIResponseError: this is no stream of overviews.
        """
        try:
            changed = [json.loads(data) for data in self._events.feed(raw)]
            for part in changed:
                self._take(part)
            if not changed or not set(self._parts) >= _TOPICS:
                return None
            return Overview.model_validate(self._parts)
        except (ValueError, TypeError) as error:
            raise APIResponseError(f"The stream cannot be read: {error}") from error

    def _take(self, part: dict[str, Any]) -> None:
        if isinstance(part.get("error"), dict):
            raise error_from(part["error"], request_id=self._headers.get("x-request-id"))
        self._parts |= part

"""HTTP from the socket, with bounds that uvicorn has not: on the size of headers, and on how long a request may take.

The app cannot keep these: it is asked only once the headers are complete, and for a slow caller that is never.
"""

import asyncio
from dataclasses import dataclass
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from plaudit_server.errors import BodyTooLate, PlauditError
from plaudit_server.middleware import headers_too_large
from plaudit_server.settings import Settings

_GRACE_S = 5
"""The app itself refuses a late body; a caller whose refusal was given and who still sends is cut off after this."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bytes of request line and headers; seconds until headers, and until the body, must have arrived."""

    header_bytes: int
    header_s: float
    body_s: float


def bounded_protocol(settings: Settings) -> type[asyncio.Protocol]:
    """uvicorn's HTTP protocol within the settings' bounds."""
    bounds = Bounds(settings.max_header_bytes, settings.header_timeout_s, settings.body_timeout_s + _GRACE_S)
    return type("BoundedProtocol", (_BoundedProtocol,), {"bounds": bounds})


class _BoundedProtocol(HttpToolsProtocol):
    """uvicorn's, less patient.

    A timer runs only while a request is incomplete after what was received, so that a request that arrives in one
    piece, as almost all do, costs none.
    """

    bounds: ClassVar[Bounds]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._awaits_head = True
        self._complete = True
        self._head_bytes = 0
        self._late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """A caller who connects should say something soon."""
        super().connection_made(transport)
        self._arm(self.bounds.header_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is awaited any more."""
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse; then see whether the request is too large, and whether more of it must come."""
        self._head_bytes += len(data)
        super().data_received(data)
        if self._awaits_head and self._head_bytes > self.bounds.header_bytes:
            self._refuse(headers_too_large(self.bounds.header_bytes))
        elif self._complete:
            self._disarm()
        elif self._late is None:
            self._arm(self.bounds.header_s if self._awaits_head else self.bounds.body_s)

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        self._complete = False
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The body, if there is one, has a time of its own."""
        self._awaits_head = False
        self._disarm()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The last byte of a request."""
        self._complete = self._awaits_head = True
        self._head_bytes = 0
        super().on_message_complete()

    def _arm(self, seconds: float) -> None:
        self._late = self.loop.call_later(seconds, self._time_is_up)

    def _disarm(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _time_is_up(self) -> None:
        self._late = None
        if self._awaits_head and not self._complete:
            self._refuse(BodyTooLate("The request's headers did not arrive in time.", code="header_timeout"))
        else:
            self.transport.close()

    def _refuse(self, error: PlauditError) -> None:
        """Answer and close, unless an earlier request's answer is still being written on this connection."""
        if self.cycle is None or self.cycle.response_complete:
            body = error.body().model_dump_json().encode()
            head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
            self.transport.write(STATUS_LINE[error.status] + head + body)
        self.transport.close()

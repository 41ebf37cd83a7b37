"""Server-sent events, decoded from bytes as they come (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

import codecs

MAX_EVENT_CHARS = 16 * 1024 * 1024


class SSEDecoder:
    """Feed it bytes, cut anywhere; it gives the `data` of each complete event.

    Comments and the fields `event`, `id` and `retry` are passed over: chat completions do not use them. What is left
    unfinished at the end of the stream is dropped, as the standard asks.

    Raises:
        ValueError: a single event grew beyond 16 Mi characters: this is not an event stream.
    """

    def __init__(self) -> None:
        self._text = codecs.getincrementaldecoder("utf-8-sig")(errors="replace")
        self._line = ""
        self._after_cr = False
        self._data: list[str] = []
        self._held = 0

    def feed(self, chunk: bytes) -> list[str]:
        """The events completed by these bytes."""
        events = []
        for line in self._lines(self._text.decode(chunk)):
            if line == "":
                if self._data:
                    events.append("\n".join(self._data))
                self._data, self._held = [], 0
            else:
                self._field(line)
        return events

    def _field(self, line: str) -> None:
        name, _, value = line.partition(":")
        if name != "data":
            return
        value = value.removeprefix(" ")
        self._data.append(value)
        self._held += len(value)
        self._check_size(self._held)

    def _lines(self, text: str) -> list[str]:
        # A "\r" ends a line at once, so that nothing waits for the next byte; a "\n" right behind it, perhaps in the
        # next chunk, belongs to it. str.splitlines would also cut at U+2028 and others, which JSON may contain.
        if self._after_cr and text:
            text = text.removeprefix("\n")
            self._after_cr = False
        if text.endswith("\r"):
            self._after_cr = True
        *whole, rest = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        if whole:
            whole[0] = self._line + whole[0]
            self._line = rest
        else:
            self._line += rest
            self._check_size(len(self._line))
        return whole

    @staticmethod
    def _check_size(chars: int) -> None:
        if chars > MAX_EVENT_CHARS:
            raise ValueError(f"one event is longer than {MAX_EVENT_CHARS} characters: this is not an event stream")

"""vLLM's stream of chunks as the caller's: the bytes pass through, our name over them, what only we asked for cut out.

A chunk whose bytes have exactly the layout that vLLM writes is cut by position and forwarded; it is parsed for the log
when the caller has it. Any other chunk (tool calls, reasoning, log-probabilities that the caller wants, another
server's way to write JSON) is parsed, changed and written again, which is slower and gives the same. Both ways meet in
`Tracer`, in the order in which the chunks came. No input or output here.
"""

import re
import time
from collections.abc import Callable

import orjson

from plaudit.wire.base import JsonObject
from plaudit_server.engine.base import Brand
from plaudit_server.engine.trace import SseParser, Tracer, read_json
from plaudit_server.errors import EngineError

MOST_KEPT = 65_536
"""Bytes of forwarded chunks that wait to be parsed. A longer answer is parsed on its way, a part at a time."""

# Runs of characters are possessive: a chunk that does not fit is given up in one pass. Groups are not: where one fails
# half-way, Python 3.11.2 (Debian 12) goes on behind what it had read, and `-1.` passes for a number. What fits is JSON
# that can be parsed later.
# Strings with \u escapes do not fit, because they can name half of a character; vLLM writes none for text.
_STRING = rb'"[^"\\\x00-\x1f]*+(?:\\["\\/bfnrt][^"\\\x00-\x1f]*+)*"'
_INT = rb"(?:0|[1-9]\d{0,11}+)"
_IDS = rb"(?:null|\[(?:" + _INT + rb"(?:," + _INT + rb")*)?\])"
_NUMBER = rb"-?" + _INT + rb"(?:\.\d{1,30}+)?(?:[eE][-+]?\d{1,2}+)?"
_TOKEN = rb'\{"token":' + _STRING + rb',"logprob":' + _NUMBER + rb',"bytes":' + _IDS + rb',"top_logprobs":\[\]\}'
_CHUNK = re.compile(
    rb'\{"id":' + _STRING + rb',"object":"chat\.completion\.chunk","created":' + _INT + rb',"model":' + _STRING
    + rb',"choices":\[(\{"index":' + _INT + rb',"delta":\{(?:"role":"assistant",)?"content":' + _STRING
    + rb'\},"logprobs":)'
    + rb'(?:null|\{"content":\[' + _TOKEN + rb"(?:," + _TOKEN + rb")*\]\})"
    + rb'(,"finish_reason":(?:null|"[a-z_]++")(?:,"stop_reason":(?:null|-?' + _INT + rb"|" + _STRING + rb"))?)"
    + rb'(?:,"token_ids":(' + _IDS + rb"))?\}\]"
    + rb'(?:,"prompt_token_ids":' + _IDS + rb')?(?:,"prompt_text":null)?\}'
)  # fmt: skip
_NO_IDS = (None, b"null", b"[]")


class EventRewriter:
    """One stream.

    Args:
        tracer: of the request; knows what the caller asked for.
        brand: what every chunk is to say of its making.
        clock: seconds, monotonic.

    Attributes:
        done: the engine has said that the answer is complete.
        failure: what the engine said went wrong, once it has.
        cut: chunks forwarded unparsed; `parsed`: the others.
    """

    def __init__(self, tracer: Tracer, brand: Brand, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.done = False
        self.failure: EngineError | None = None
        self.cut = 0
        self.parsed = 0
        self._tracer = tracer
        self._brand = brand
        self._clock = clock
        self._lines = SseParser()
        self._may_cut = not tracer.wants_everything
        self._kept: list[bytes] = []
        self._kept_bytes = 0
        marked = orjson.dumps(brand.on({"object": "chat.completion.chunk", "choices": []}))
        # Cut where the choices go, so that both ways write the same bytes.
        head, self._tail = marked.split(b"[]", 1)
        self._head = b"data: " + head + b"["
        self._tail = b"}]" + self._tail + b"\n\n"

    def feed(self, data: bytes) -> bytes:
        """The caller's events for these bytes; several at once where they came together, none where none is complete.

        Nothing follows a failure.
        """
        out: list[bytes] = []
        for payload in self._lines.feed(data):
            if self.failure is None:
                self._one(payload, out)
        return b"".join(out)

    def settle(self) -> None:
        """Parse what was forwarded unparsed."""
        if self._kept:
            chunks = orjson.loads(b"[" + b",".join(self._kept) + b"]")
            self._kept, self._kept_bytes = [], 0
            for chunk in chunks:
                self._tracer.note(chunk)

    def _one(self, payload: bytes, out: list[bytes]) -> None:
        found = _CHUNK.fullmatch(payload) if self._may_cut else None
        if found is not None and (payload.isascii() or _is_utf8(payload)):
            delta, finish, ids = found.groups()
            out += (self._head, delta, b"null", finish, self._tail)
            self._keep(payload, speaks=ids not in _NO_IDS)
        elif payload == b"[DONE]":
            self.done = True
        elif (chunk := self._read(payload)) is not None:
            out += (b"data: ", orjson.dumps(self._brand.on(chunk)), b"\n\n")

    def _keep(self, payload: bytes, *, speaks: bool) -> None:
        self.cut += 1
        if speaks and self._tracer.trace.first_token_at is None:
            self._tracer.trace.first_token_at = self._clock()
        self._kept.append(payload)
        self._kept_bytes += len(payload)
        if self._kept_bytes > MOST_KEPT:
            self.settle()

    def _read(self, payload: bytes) -> JsonObject | None:
        """The slow way: a chunk as the caller wants it, or None where it has nothing for them."""
        self.settle()
        self.parsed += 1
        try:
            chunk = read_json(payload)
        except orjson.JSONDecodeError:
            self.failure = EngineError("The engine sent something that is not JSON.")
            return None
        if "error" in chunk:
            reason = (chunk["error"] or {}).get("message")
            self.failure = EngineError(str(reason or "the engine failed in mid-stream"))
            return None
        return self._tracer.chunk(chunk)


def _is_utf8(payload: bytes) -> bool:
    try:
        payload.decode()
    except UnicodeDecodeError:
        return False
    return True

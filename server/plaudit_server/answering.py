"""One chat, from the engine to the caller and into the log.

The id, the version and the clock are ours; the words are the engine's. Whatever happens to an answer whose id the
caller has seen, a row says so: `complete`, `aborted` (the caller went away) or `failed` (the engine did).
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import orjson

from plaudit.wire.base import JsonObject
from plaudit_server.answer_log import AnswerLog
from plaudit_server.chat import Chat
from plaudit_server.domain.records import AnswerStatus
from plaudit_server.engine.base import ChatStream, ChatTrace, Engine
from plaudit_server.errors import AnswerTooLong, EngineError, Overloaded, RateLimited
from plaudit_server.serving import Serving
from plaudit_server.telemetry import Telemetry, log_event

logger = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"


class Answering:
    """Lets chats in, at most so many at a time, and sees each to its end."""

    def __init__(
        self,
        *,
        engine: Engine,
        serving: Serving,
        log: AnswerLog,
        telemetry: Telemetry,
        max_pending: int,
        max_pending_key: int,
    ) -> None:
        self._engine = engine
        self._serving = serving
        self._log = log
        self._telemetry = telemetry
        self._max_pending = max_pending
        self._max_pending_key = max_pending_key
        self._pending = 0
        self._pending_of: Counter[str] = Counter()
        self._speaking: set[str] = set()

    async def close(self) -> None:
        """Wait until every answer that was given is written down."""
        await self._log.flush()

    @property
    def unwritten(self) -> int:
        """Chats whose rows are not durable yet."""
        return self._log.waiting

    def is_speaking(self, response_id: str) -> bool:
        """Whether that answer is being given, or its row not written yet."""
        return response_id in self._speaking

    def admit(self, chat: Chat) -> None:
        """Let a chat in. It must then be given to `whole` or `stream`, which see it out again.

        Raises:
            Overloaded: too many are being answered.
            RateLimited: too many of them are this key's, which leaves the rest to others.
        """
        if self._max_pending_key and self._pending_of[chat.key_id] >= self._max_pending_key:
            self._telemetry.limited.labels("chat_in_flight").inc()
            raise RateLimited(
                f"{self._max_pending_key} chats of this key are in flight (PLAUDIT_MAX_PENDING_CHATS_KEY).",
                code="too_many_in_flight",
            )
        if self._pending >= self._max_pending:
            raise Overloaded(f"{self._pending} chats are in flight (PLAUDIT_MAX_PENDING_CHATS).", code="overloaded")
        self._pending += 1
        self._pending_of[chat.key_id] += 1
        self._telemetry.in_flight.inc()
        self._serving.hold(chat.route.version)
        if chat.stored:
            self._speaking.update(chat.response_ids)

    def _leave(self, chat: Chat, *, recorded: bool) -> None:
        self._pending -= 1
        self._pending_of[chat.key_id] -= 1
        if not self._pending_of[chat.key_id]:
            del self._pending_of[chat.key_id]
        self._telemetry.in_flight.dec()
        self._serving.release(chat.route.version)
        if not recorded:
            self._speaking.difference_update(chat.response_ids)

    async def whole(self, chat: Chat, gone: Callable[[], Awaitable[None]]) -> JsonObject | None:
        """Answer in one piece.

        Args:
            chat: an admitted chat.
            gone: returns when the caller has gone away.

        Returns:
            OpenAI's completion, or None where the caller went away.
        """
        recorded: asyncio.Task[None] | None = None
        try:
            body = self._ask(chat)
            asking = asyncio.ensure_future(
                self._engine.chat(body, version=chat.route.version, request_id=chat.request_id)
            )
            if not await _finishes_before(asking, gone):
                recorded = self._record(chat, ChatTrace(), "aborted")
                return None
            answer, trace = asking.result()
            recorded = self._record(chat, trace, "complete")
            # The row is there before the caller has the id, so that a vote finds it.
            await recorded
            return chat.branded(answer)
        except EngineError as error:
            recorded = recorded or self._record_unbegun(chat, error)
            raise
        finally:
            self._leave(chat, recorded=recorded is not None)

    async def stream(self, chat: Chat) -> AsyncGenerator[bytes]:
        """Begin to answer an admitted chat in pieces; what is raised here has a status of its own.

        Returns:
            Server-sent events. Closing the generator aborts the answer.
        """
        try:
            body = self._ask(chat)
            stream = await self._engine.chat_stream(body, version=chat.route.version, request_id=chat.request_id)
        except BaseException as error:
            self._leave(chat, recorded=self._record_unbegun(chat, error) is not None)
            raise
        events = self._events(chat, stream)
        # A generator that was never begun runs no `finally` when it is closed.
        await anext(events)
        return events

    async def _events(self, chat: Chat, stream: ChatStream) -> AsyncGenerator[bytes]:
        status: AnswerStatus = "aborted"
        try:
            yield b""
            async for chunk in stream:
                yield b"data: " + orjson.dumps(chat.branded(chunk)) + b"\n\n"
            status = "complete"
        except EngineError as error:
            status = "failed"
            # Not its message: the engine's own words can quote the prompt.
            failure = type(error).__name__
            log_event(logger, logging.WARNING, "chat.failed", request_id=chat.request_id, error=failure)
            yield b"data: " + error.body().model_dump_json().encode() + b"\n\n"
        finally:
            # Reached also by `aclose` of this generator: the caller went away between two chunks.
            await stream.aclose()
            recorded = self._record(chat, stream.trace, "failed" if chat.cut_off else status)
            self._leave(chat, recorded=True)
        # The row is there before the caller knows that the answer is over, so that a vote finds it.
        await recorded
        yield DONE

    def cut_off(self, chat: Chat) -> bytes:
        """Time is up for a streamed answer: it will be recorded as failed. Returns the last words of its stream."""
        chat.cut_off = True
        log_event(logger, logging.WARNING, "chat.cut_off", request_id=chat.request_id)
        return b"data: " + AnswerTooLong(code="time_limit").body().model_dump_json().encode() + b"\n\n" + DONE

    def _ask(self, chat: Chat) -> JsonObject:
        body = chat.ask()
        self._telemetry.overhead_seconds.observe(chat.overhead_s)
        return body

    def _record_unbegun(self, chat: Chat, error: BaseException) -> "asyncio.Task[None] | None":
        """Have a row of an answer that failed before its first word, where a rollout must count it against its arm."""
        if chat.route.segment is None or not isinstance(error, EngineError) or error.status < 500:
            return None
        return self._record(chat, ChatTrace(), "failed")

    def _record(self, chat: Chat, trace: ChatTrace, status: AnswerStatus) -> "asyncio.Task[None]":
        self._count(chat, trace, status)
        written = self._log.write(chat, trace, status)
        written.add_done_callback(lambda _: self._speaking.difference_update(chat.response_ids))
        return written

    def _count(self, chat: Chat, trace: ChatTrace, status: AnswerStatus) -> None:
        version = chat.route.version
        self._telemetry.chats.labels(version, status).inc()
        self._telemetry.tokens.labels(version, "prompt").inc(len(trace.prompt_ids or []))
        drawn = sum(len(choice.response_ids) for choice in trace.choices.values())
        self._telemetry.tokens.labels(version, "completion").inc(drawn)
        if trace.first_token_at is not None:
            self._telemetry.ttft_seconds.labels(version).observe(trace.first_token_at - chat.started)
            self._telemetry.spoke(version, drawn, time.monotonic() - trace.first_token_at)


async def _finishes_before(
    asking: "asyncio.Future[tuple[JsonObject, ChatTrace]]", gone: Callable[[], Awaitable[None]]
) -> bool:
    """Whether the engine answered before the caller went away; else its work is stopped."""
    leaving = asyncio.ensure_future(gone())
    either: list[asyncio.Future[Any]] = [asking, leaving]
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        return asking.done()
    finally:
        leaving.cancel()
        if not asking.done():
            asking.cancel()
        await asyncio.gather(asking, leaving, return_exceptions=True)

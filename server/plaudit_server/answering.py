"""One chat, from the engine to the caller and into the log.

The id, the version and the clock are ours; the words are the engine's. Whatever happens to an answer whose id the
caller has seen, a row says so: `complete`, `aborted` (the caller went away) or `failed` (the engine did).
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any

from plaudit.wire.base import JsonObject
from plaudit_server.answer_log import MOST_WAITING, AnswerLog
from plaudit_server.chat import Chat
from plaudit_server.demand import Demand
from plaudit_server.domain.records import AnswerStatus
from plaudit_server.engine.base import ChatStream, ChatTrace, Engine
from plaudit_server.errors import AnswerTooLong, EngineError, Overloaded, RateLimited
from plaudit_server.telemetry import Telemetry, log_event

logger = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"


class Answering:
    """Lets chats in, at most so many at a time, and sees each to its end."""

    def __init__(
        self,
        *,
        engine: Engine,
        demand: Demand,
        log: AnswerLog,
        telemetry: Telemetry,
        max_pending: int,
        max_pending_key: int,
    ) -> None:
        self._engine = engine
        self._demand = demand
        self._log = log
        self._telemetry = telemetry
        self._max_pending = max_pending
        self._max_pending_key = max_pending_key
        self._pending = 0
        self._pending_of: Counter[str] = Counter()
        self._speaking: set[str] = set()
        self._unwritten: set[str] = set()

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

    async def written(self, *response_ids: str) -> None:
        """Wait until the rows of these answers are durable, as far as they are over and given by this process."""
        if not self._unwritten.isdisjoint(response_ids):
            await self._log.flush()

    async def all_written(self) -> None:
        """Wait until the rows of all answers that are over are durable."""
        await self._log.flush()

    def admit(self, chat: Chat) -> None:
        """Let a chat in. It must then be given to `whole` or `stream`, which see it out again.

        Raises:
            Overloaded: too many are being answered, or too many wait to be written down.
            RateLimited: too many of them are this key's, which leaves the rest to others.
        """
        if self._max_pending_key and self._pending_of[chat.key_id] >= self._max_pending_key:
            self._telemetry.limited.labels("chat_in_flight").inc()
            raise RateLimited(
                f"{self._max_pending_key} chats of this key are in flight (PLAUDIT_MAX_PENDING_CHATS_KEY).",
                code="too_many_in_flight",
            )
        if self._log.waiting >= MOST_WAITING:
            raise Overloaded(f"{self._log.waiting} answers wait for the database.", code="overloaded")
        if self._pending >= self._max_pending:
            raise Overloaded(f"{self._pending} chats are in flight (PLAUDIT_MAX_PENDING_CHATS).", code="overloaded")
        self._pending += 1
        self._pending_of[chat.key_id] += 1
        self._telemetry.in_flight.inc()
        self._demand.hold(chat.route.version)
        if chat.stored:
            self._speaking.update(chat.response_ids)

    def _leave(self, chat: Chat, *, recorded: bool) -> None:
        self._pending -= 1
        self._pending_of[chat.key_id] -= 1
        if not self._pending_of[chat.key_id]:
            del self._pending_of[chat.key_id]
        self._telemetry.in_flight.dec()
        self._demand.release(chat.route.version)
        if not recorded:
            self._speaking.difference_update(chat.response_ids)

    async def whole(self, chat: Chat, gone: Callable[[], Coroutine[Any, Any, None]]) -> JsonObject | None:
        """Answer in one piece.

        Args:
            chat: an admitted chat.
            gone: returns when the caller has gone away.

        Returns:
            OpenAI's completion, or None where the caller went away.
        """
        recorded = False
        try:
            body = self._ask(chat)
            asking = self._engine.chat(body, version=chat.route.version, request_id=chat.request_id)
            found = await _unless_gone(asking, gone)
            answer, trace = found or ({}, ChatTrace())
            self._record(chat, trace, "complete" if found else "aborted")
            recorded = True
            return chat.brand.on(answer) if found else None
        except EngineError as error:
            recorded = self._record_unbegun(chat, error)
            raise
        finally:
            self._leave(chat, recorded=recorded)

    async def stream(self, chat: Chat) -> AsyncGenerator[bytes]:
        """Begin to answer an admitted chat in pieces; what is raised here has a status of its own.

        Returns:
            Server-sent events. Closing the generator aborts the answer.
        """
        try:
            body = self._ask(chat)
            stream = await self._engine.chat_stream(body, version=chat.route.version, request_id=chat.request_id)
        except BaseException as error:
            self._leave(chat, recorded=self._record_unbegun(chat, error))
            raise
        events = self._events(chat, stream)
        # A generator that was never begun runs no `finally` when it is closed.
        await anext(events)
        return events

    async def _events(self, chat: Chat, stream: ChatStream) -> AsyncGenerator[bytes]:
        status: AnswerStatus = "aborted"
        try:
            yield b""
            async with aclosing(stream.events(chat.brand)) as pieces:
                async for events in pieces:
                    yield events
            status = "complete"
            yield DONE
        except EngineError as error:
            status = "failed"
            # Not its message: the engine's own words can quote the prompt.
            failure = type(error).__name__
            log_event(logger, logging.WARNING, "chat.failed", request_id=chat.request_id, error=failure)
            yield b"data: " + error.body().model_dump_json().encode() + b"\n\n" + DONE
        finally:
            # Reached also by `aclose` of this generator: the caller went away between two chunks.
            await stream.aclose()
            self._record(chat, stream.trace, "failed" if chat.cut_off else status)
            self._leave(chat, recorded=True)

    def cut_off(self, chat: Chat) -> bytes:
        """Time is up for a streamed answer: it will be recorded as failed. Returns the last words of its stream."""
        chat.cut_off = True
        log_event(logger, logging.WARNING, "chat.cut_off", request_id=chat.request_id)
        return b"data: " + AnswerTooLong(code="time_limit").body().model_dump_json().encode() + b"\n\n" + DONE

    def _ask(self, chat: Chat) -> JsonObject:
        body = chat.ask()
        self._telemetry.overhead_seconds.observe(chat.overhead_s)
        return body

    def _record_unbegun(self, chat: Chat, error: BaseException) -> bool:
        """Have a row of an answer that failed before its first word, where a rollout must count it against its arm."""
        if chat.route.segment is None or not isinstance(error, EngineError) or error.status < 500:
            return False
        self._record(chat, ChatTrace(), "failed")
        return True

    def _record(self, chat: Chat, trace: ChatTrace, status: AnswerStatus) -> None:
        self._count(chat, trace, status)
        if trace.also_by:
            log_event(logger, logging.WARNING, "chat.mixed", request_id=chat.request_id, also_by=trace.also_by)
        ids = chat.response_ids
        self._unwritten.update(ids)

        def settled() -> None:
            self._speaking.difference_update(ids)
            self._unwritten.difference_update(ids)

        self._log.write(chat, trace, status, settled)

    def _count(self, chat: Chat, trace: ChatTrace, status: AnswerStatus) -> None:
        version = chat.route.version
        self._telemetry.chats.labels(version, status).inc()
        self._telemetry.tokens.labels(version, "prompt").inc(len(trace.prompt_ids or []))
        drawn = sum(len(choice.response_ids) for choice in trace.choices.values())
        self._telemetry.tokens.labels(version, "completion").inc(drawn)
        if trace.first_token_at is not None:
            self._telemetry.ttft_seconds.labels(version).observe(trace.first_token_at - chat.started)
            self._telemetry.spoke(version, drawn, time.monotonic() - trace.first_token_at)


async def _unless_gone(
    asking: Coroutine[Any, Any, tuple[JsonObject, ChatTrace]], gone: Callable[[], Coroutine[Any, Any, None]]
) -> tuple[JsonObject, ChatTrace] | None:
    """What the engine answers, or None where the caller went away first; then its work is stopped."""
    answer = asyncio.ensure_future(asking)
    leaving = asyncio.ensure_future(gone())
    leaving.add_done_callback(lambda _: answer.cancel())
    try:
        await asyncio.wait((answer,))
        return None if answer.cancelled() else answer.result()
    finally:
        answer.cancel()
        leaving.cancel()

"""Writes down what was answered: one row a choice, through the privacy seam, in the background of the answer."""

import asyncio
import logging
import time
from collections.abc import Sequence

from plaudit.wire.refusals import refuses
from plaudit_server.chat import Chat
from plaudit_server.domain.ids import choice_id
from plaudit_server.domain.moments import now_ms
from plaudit_server.domain.privacy import Cipher, Exchange, Redactor, prompt_key, seal
from plaudit_server.domain.records import AnswerStatus, Interaction
from plaudit_server.engine.base import ChatTrace, ChoiceTrace
from plaudit_server.errors import PlauditError
from plaudit_server.store import Connection, interactions
from plaudit_server.store.database import Database
from plaudit_server.telemetry import Telemetry, log_event

logger = logging.getLogger(__name__)


class AnswerLog:
    """Turns finished chats into rows. An answer that cannot be written is counted and logged; the chat goes on."""

    def __init__(
        self, database: Database, telemetry: Telemetry, *, secret: bytes, redactor: Redactor, cipher: Cipher
    ) -> None:
        self._database = database
        self._telemetry = telemetry
        self._secret = secret
        self._redactor = redactor
        self._cipher = cipher
        self._writing: set[asyncio.Task[None]] = set()

    def write(self, chat: Chat, trace: ChatTrace, status: AnswerStatus) -> "asyncio.Task[None]":
        """Begin to write; the task ends when the rows are durable, and never raises.

        A task of its own, so that the row is written although the request that caused it may be cancelled.
        """
        task = asyncio.create_task(self._write(chat, trace, status))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)
        return task

    @property
    def waiting(self) -> int:
        """Chats whose rows are not durable yet."""
        return len(self._writing)

    async def flush(self) -> None:
        """Wait until everything that was begun is durable."""
        while self._writing:
            await asyncio.gather(*self._writing)

    async def _write(self, chat: Chat, trace: ChatTrace, status: AnswerStatus) -> None:
        rows = self._rows(chat, trace, status) if chat.stored else []
        tombstones = [] if chat.stored else chat.response_ids

        async def write(conn: Connection) -> None:
            for row in rows:
                await interactions.add(conn, row)
            for response_id in tombstones:
                await interactions.add_tombstone(conn, response_id, "store: false", now_ms=now_ms())

        try:
            with self._telemetry.span("answers.write", **{"plaudit.version": chat.route.version}):
                await self._database.write(write, touching=chat.response_ids)
        except PlauditError as error:
            self._telemetry.unrecorded.inc(len(chat.response_ids))
            log_event(logger, logging.ERROR, "answer.unrecorded", request_id=chat.request_id, reason=error.message)

    def _rows(self, chat: Chat, trace: ChatTrace, status: AnswerStatus) -> list[Interaction]:
        # A choice that never got a token has a row too: its id was promised.
        drawn = [trace.choices.get(index, ChoiceTrace(index)) for index in range(chat.request.n or 1)]
        return [self._row(chat, trace, choice, status) for choice in drawn]

    def _row(self, chat: Chat, trace: ChatTrace, choice: ChoiceTrace, status: AnswerStatus) -> Interaction:
        sealed = seal(_exchange(chat, trace, choice), self._redactor, self._cipher)
        first = trace.first_token_at
        return Interaction(
            id=choice_id(chat.id, choice.index),
            request_id=chat.request_id,
            created_at_ms=chat.created_at_ms,
            version=chat.route.version,
            arm=chat.route.arm,
            model_requested=chat.request.model,
            end_user=chat.end_user,
            key_id=chat.key_id,
            prompt_key=prompt_key(self._secret, chat.request.messages),
            content=sealed.content,
            prompt_ids=sealed.prompt_ids,
            response_ids=sealed.response_ids,
            logprobs=sealed.logprobs,
            prompt_tokens=len(trace.prompt_ids or ()),
            completion_tokens=len(choice.response_ids),
            sampling=chat.sampling(),
            finish_reason=choice.finish_reason or ("time_limit" if chat.cut_off else None),
            status=status,
            train_consent=chat.consent,
            redacted=sealed.redacted,
            metadata=sealed.metadata,
            ttft_ms=None if first is None else (first - chat.started) * 1000,
            duration_ms=(time.monotonic() - chat.started) * 1000,
            segment=chat.route.segment,
            refused=refuses(choice.text),
        )


def _exchange(chat: Chat, trace: ChatTrace, choice: ChoiceTrace) -> Exchange:
    # An answer without tokens has nothing that a ratio could be made of.
    ids: Sequence[int] | None = choice.response_ids or None
    return Exchange(
        messages=chat.request.messages,
        content=choice.text,
        tool_calls=choice.tool_calls,
        metadata=chat.request.metadata or {},
        prompt_ids=trace.prompt_ids,
        response_ids=ids,
        logprobs=choice.logprobs if ids else None,
    )

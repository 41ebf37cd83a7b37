"""Writes down what was answered: one row a choice, through the privacy seam, many answers in one transaction.

An answer waits for no disk. Once its last byte was handed on it gathers with others for `WINDOW_S` and goes into the
database with them. A crash loses at most the answers of the window and of the commit under way, and never a vote: who
votes on an answer whose row still waits has it written first (docs/adr/0013-answers-are-logged-in-groups.md).
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextvars import Context
from dataclasses import dataclass

from plaudit.wire.base import JsonObject
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


WINDOW_S = 0.05
"""How long rows gather. With the commit behind it, what a crash loses is younger than 0.1 s where the disk keeps up."""

MOST_WAITING = 4096
"""Chats that may wait for the disk. Beyond it new ones are turned away, before memory grows."""

_MOST_IN_GROUP = 256
"""Chats in one transaction, since votes wait for it."""

_ROWS_A_TURN = 8
"""Rows made before tokens of other chats get their turn."""


@dataclass(frozen=True, slots=True)
class _Said:
    """A chat that is over."""

    chat: Chat
    trace: ChatTrace
    status: AnswerStatus
    on_settled: Callable[[], None]
    duration_ms: float


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
        self._gathered: list[_Said] = []
        self._waiting = 0
        self._timer: asyncio.TimerHandle | None = None
        self._writing: set[asyncio.Task[None]] = set()

    @property
    def waiting(self) -> int:
        """Chats whose rows are not durable yet."""
        return self._waiting

    def write(self, chat: Chat, trace: ChatTrace, status: AnswerStatus, on_settled: Callable[[], None]) -> None:
        """Have a chat written within the window. `on_settled` is called once its rows are durable, or were given up."""
        took_ms = (time.monotonic() - chat.started) * 1000
        self._gathered.append(_Said(chat, trace, status, on_settled, took_ms))
        self._waiting += 1
        if len(self._gathered) >= _MOST_IN_GROUP:
            self._begin()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(WINDOW_S, self._begin)

    async def flush(self) -> None:
        """Write what has gathered now, and wait until everything is durable."""
        while self._gathered or self._writing:
            self._begin()
            await asyncio.gather(*self._writing)

    def _begin(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        group, self._gathered = self._gathered, []
        if group:
            # A task of its own, so that rows are written although a request that wants them may be cancelled; and with
            # a context of its own, since they belong to the traces of many.
            task = asyncio.create_task(self._write(group), context=Context())
            self._writing.add(task)
            task.add_done_callback(self._writing.discard)

    async def _write(self, group: list[_Said]) -> None:
        try:
            await self._put(group)
        except Exception as error:  # noqa: BLE001  # an answer that cannot be written must not take others along
            if len(group) > 1 and not isinstance(error, PlauditError):
                for said in group:
                    await self._write([said])
                return
            for said in group:
                self._give_up(said.chat, error)
        self._waiting -= len(group)
        for said in group:
            said.on_settled()

    async def _put(self, group: list[_Said]) -> None:
        rows: list[Interaction] = []
        tombstones: list[str] = []
        for number, said in enumerate(group):
            if not said.chat.stored:
                tombstones += said.chat.response_ids
                continue
            rows += self._rows(said)
            if number % _ROWS_A_TURN == _ROWS_A_TURN - 1:
                await asyncio.sleep(0)

        async def write(conn: Connection) -> None:
            await interactions.add_many(conn, rows)
            for response_id in tombstones:
                await interactions.add_tombstone(conn, response_id, "store: false", now_ms=now_ms())

        ids = [row.id for row in rows] + tombstones
        with self._telemetry.span("answers.write", **{"plaudit.answers": len(ids)}):
            await self._database.write(write, touching=ids)

    def _give_up(self, chat: Chat, error: Exception) -> None:
        self._telemetry.unrecorded.inc(len(chat.response_ids))
        reason = error.message if isinstance(error, PlauditError) else type(error).__name__
        log_event(logger, logging.ERROR, "answer.unrecorded", request_id=chat.request_id, reason=reason)

    def _rows(self, said: _Said) -> list[Interaction]:
        # A choice that never got a token has a row too: its id was promised.
        count = said.chat.request.n or 1
        return [self._row(said, said.trace.choices.get(index, ChoiceTrace(index))) for index in range(count)]

    def _row(self, said: _Said, choice: ChoiceTrace) -> Interaction:
        chat, trace = said.chat, said.trace
        sealed = seal(_exchange(chat, trace, choice), self._redactor, self._cipher)
        mixed: JsonObject = {"also_by": list(trace.also_by)} if trace.also_by else {}
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
            sampling=chat.sampling() | mixed,
            finish_reason=choice.finish_reason or ("time_limit" if chat.cut_off else None),
            status=said.status,
            train_consent=chat.consent,
            redacted=sealed.redacted,
            metadata=sealed.metadata,
            ttft_ms=None if first is None else (first - chat.started) * 1000,
            duration_ms=said.duration_ms,
            segment=None if trace.also_by else chat.route.segment,
            refused=refuses(choice.text),
        )


def _exchange(chat: Chat, trace: ChatTrace, choice: ChoiceTrace) -> Exchange:
    # An answer without tokens has nothing that a ratio could be made of, nor has one that two models have drawn.
    ids: Sequence[int] | None = choice.response_ids or None
    return Exchange(
        messages=chat.request.messages,
        content=choice.text,
        tool_calls=choice.tool_calls,
        metadata=chat.request.metadata or {},
        prompt_ids=trace.prompt_ids,
        response_ids=ids,
        logprobs=choice.logprobs if ids and not trace.also_by else None,
    )

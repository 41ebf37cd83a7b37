"""Who is answered when: one thread owns the model and takes turns between batches, scores and swaps.

Requests that wait for the same adapter at the same priority become one batch, which is drawn in step and shrinks as
its answers end. A request that comes later does not join it: it makes a batch of its own, and the batches take turns,
token by token. A turn goes to the lowest `priority − seconds waited`: chats go before rollouts, and nothing starves.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch

from plaudit_server.engine.hf.lora import AdapterRefused
from plaudit_server.engine.hf.model import Reading, ServedModel
from plaudit_server.engine.hf.sampling import Sampling, draw
from plaudit_server.engine.hf.text import GrowingText

MAX_BATCHES = 4
"""Batches of one priority (or a more urgent one) in progress at once: each holds its own keys and values."""

MAX_WAITING = 512
"""Requests that may wait; the server's own bounds (chats, rollouts in flight) lie below it."""

_FAILURES = (RuntimeError, ValueError, IndexError, TypeError, AdapterRefused)

_log = logging.getLogger(__name__)


class QueueFull(Exception):
    """Too many requests wait."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """One token of one choice. `text`: what it settled of the answer. `top`: the likeliest (token, log-probability)."""

    index: int
    token: int
    logprob: float
    text: str
    finish_reason: str | None
    top: tuple[tuple[int, float], ...] = ()


Emitted = Drawn | Exception | None
"""A token; what went wrong (then nothing more comes); None: all choices have ended."""


@dataclass(slots=True, eq=False)
class Asked:
    """One request. `emit` is called by the model's thread."""

    prompt_ids: list[int]
    n: int
    sampling: Sampling
    adapter: int | None
    priority: int
    emit: Callable[[Emitted], None]
    since: float = field(default_factory=time.monotonic)
    cancelled: bool = False


@dataclass(slots=True)
class _Row:
    """One answer in progress."""

    asked: Asked
    index: int
    generator: torch.Generator
    text: GrowingText
    ids: list[int] = field(default_factory=list)
    ended: bool = False


@dataclass(slots=True, eq=False)
class _Batch:
    """Answers drawn in step."""

    rows: list[_Row]
    adapter: int | None
    priority: int
    reading: Reading
    since: float


@dataclass(slots=True, eq=False)
class _Call:
    """Something to do on the model between two steps."""

    work: Callable[[], Any]
    priority: int
    future: "Future[Any]"
    since: float = field(default_factory=time.monotonic)


class Scheduler:
    """Runs the model's thread.

    Args:
        model: used by that thread alone from now on.
        max_rows: answers drawn together.
        on_death: called when the thread ends otherwise than by `close`.
    """

    def __init__(self, model: ServedModel, *, max_rows: int = 16, on_death: Callable[[], None] = lambda: None) -> None:
        self._model = model
        self._max_rows = max_rows
        self._on_death = on_death
        self._changed = threading.Condition()
        self._waiting: list[Asked] = []
        self._calls: list[_Call] = []
        self._batches: list[_Batch] = []
        self._closing = False
        self.is_alive = True
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    # From other threads

    def submit(self, asked: Asked) -> None:
        """Let a request wait for its turn.

        Raises:
            QueueFull: try again later.
        """
        with self._changed:
            if len(self._waiting) >= MAX_WAITING:
                raise QueueFull
            self._waiting.append(asked)
            self._changed.notify()

    def cancel(self, asked: Asked) -> None:
        """Nobody waits for it any more: it is dropped before the next step."""
        with self._changed:
            asked.cancelled = True
            self._waiting = [each for each in self._waiting if each is not asked]
            self._changed.notify()

    def call(self, work: Callable[[], Any], *, priority: int = 0) -> "Future[Any]":
        """Have the model's thread do something between two steps."""
        made = _Call(work, priority, Future())
        with self._changed:
            self._calls.append(made)
            self._changed.notify()
        return made.future

    def close(self) -> None:
        """End the thread; what was not finished stays so."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    @property
    def batches(self) -> int:
        """Batches in progress."""
        return len(self._batches)

    # The model's thread

    def _run(self) -> None:
        try:
            while (turn := self._next()) is not None:
                turn()
        finally:
            self.is_alive = False
            if not self._closing:
                self._on_death()

    def _next(self) -> Callable[[], None] | None:
        """The next turn; waits for one. None at the end."""
        with self._changed:
            while not self._closing:
                self._batches = [batch for batch in self._batches if self._is_wanted(batch)]
                if found := self._most_urgent():
                    return found
                self._changed.wait()
        return None

    def _is_wanted(self, batch: _Batch) -> bool:
        return any(not row.ended and not row.asked.cancelled for row in batch.rows)

    def _most_urgent(self) -> Callable[[], None] | None:
        now = time.monotonic()
        turns: list[tuple[float, Callable[[], None]]] = []
        for call in self._calls:
            turns.append((call.priority - (now - call.since), lambda call=call: self._do(call)))  # type: ignore[misc]
        for batch in self._batches:
            turns.append((batch.priority - (now - batch.since), lambda batch=batch: self._step(batch)))  # type: ignore[misc]
        for asked in self._waiting:
            if sum(batch.priority <= asked.priority for batch in self._batches) < MAX_BATCHES:
                turns.append((asked.priority - (now - asked.since), lambda asked=asked: self._begin(asked)))  # type: ignore[misc]
        return min(turns, key=lambda turn: turn[0])[1] if turns else None

    def _do(self, call: _Call) -> None:
        with self._changed:
            self._calls.remove(call)
        if not call.future.set_running_or_notify_cancel():
            return
        try:
            call.future.set_result(call.work())
        except _FAILURES as error:
            call.future.set_exception(error)

    def _begin(self, first: Asked) -> None:
        """Make a batch of this request and others that go with it, and draw its first tokens."""
        with self._changed:
            chosen = self._mates(first)
            self._waiting = [each for each in self._waiting if each not in chosen]
        if not chosen:
            return
        rows = [self._row(asked, index) for asked in chosen for index in range(asked.n)]
        try:
            reading, logits_BV = self._model.read([row.asked.prompt_ids for row in rows], first.adapter)
        except _FAILURES as error:
            self._fail(rows, error)
            return
        batch = _Batch(rows, first.adapter, first.priority, reading, time.monotonic())
        self._batches.append(batch)
        self._take(batch, logits_BV)

    def _mates(self, first: Asked) -> list[Asked]:
        """Waiting requests that fit into one batch with the first, oldest first."""
        chosen, rows = ([first], first.n) if first in self._waiting else ([], 0)
        for asked in self._waiting if chosen else []:
            fits = (asked.adapter, asked.priority) == (first.adapter, first.priority)
            if fits and asked is not first and rows + asked.n <= self._max_rows:
                chosen.append(asked)
                rows += asked.n
        return chosen

    def _row(self, asked: Asked, index: int) -> _Row:
        generator = torch.Generator()
        if asked.sampling.seed is None:
            generator.seed()
        else:
            generator.manual_seed((asked.sampling.seed + index) % (1 << 63))
        return _Row(asked, index, generator, GrowingText(self._model.decode, asked.sampling.stop))

    def _step(self, batch: _Batch) -> None:
        """One token for each answer of a batch that still goes on."""
        kept = [place for place, row in enumerate(batch.rows) if not row.ended and not row.asked.cancelled]
        try:
            if len(kept) < len(batch.rows):
                batch.reading = self._model.keep(batch.reading, kept)
                batch.rows = [batch.rows[place] for place in kept]
            tokens = [row.ids[-1] for row in batch.rows]
            batch.reading, logits_BV = self._model.step(batch.reading, tokens, batch.adapter)
        except _FAILURES as error:
            self._batches.remove(batch)
            self._fail(batch.rows, error)
            return
        batch.since = time.monotonic()
        self._take(batch, logits_BV)

    def _take(self, batch: _Batch, logits_BV: torch.Tensor) -> None:
        """Draw from the logits and tell; the batch goes when its last answer has ended."""
        for row, logits_V in zip(batch.rows, logits_BV, strict=True):
            if not row.asked.cancelled:
                row.asked.emit(self._draw(row, logits_V))
        for asked in {id(row.asked): row.asked for row in batch.rows if row.ended}.values():
            if all(row.ended for row in batch.rows if row.asked is asked):
                asked.emit(None)
        if all(row.ended for row in batch.rows):
            self._batches.remove(batch)

    def _draw(self, row: _Row, logits_V: torch.Tensor) -> Drawn:
        sampling = row.asked.sampling
        ends = sampling.stop_token_ids if sampling.ignore_eos else self._model.ends | sampling.stop_token_ids
        banned = ends if len(row.ids) < sampling.min_tokens else frozenset[int]()
        token, logprobs_V = draw(logits_V, sampling, row.generator, banned)
        row.ids.append(token)
        text = row.text.push(token)
        stopped = token in ends or row.text.stopped
        row.ended = stopped or len(row.ids) >= sampling.max_tokens
        if row.ended:
            text += row.text.end()
        reason = ("stop" if stopped else "length") if row.ended else None
        return Drawn(row.index, token, logprobs_V[token].item(), text, reason, _likeliest(logprobs_V, sampling))

    def _fail(self, rows: Sequence[_Row], error: Exception) -> None:
        _log.error("a batch of %d answers failed: %s", len(rows), error)
        for asked in {id(row.asked): row.asked for row in rows if not row.ended}.values():
            asked.emit(error)


def _likeliest(logprobs_V: torch.Tensor, sampling: Sampling) -> tuple[tuple[int, float], ...]:
    if not sampling.top_logprobs:
        return ()
    best = logprobs_V.topk(min(sampling.top_logprobs, len(logprobs_V)))
    return tuple((i, v) for i, v in zip(best.indices.tolist(), best.values.tolist(), strict=True) if v > -float("inf"))

"""Holding a batch while it is worked on: the heartbeat, and long calls that end when the batch is no longer ours."""

import contextlib
import queue
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TypeVar

from plaudit.errors import APIStatusError, PlauditError
from plaudit.wire.chat import SamplingParams
from plaudit.wire.training import GeneratedAnswer, GeneratePrompt
from plaudit_trainer.client import TrainerClient, is_lost

Result = TypeVar("Result")

_LOOK_S = 0.2


class LeaseLost(Exception):
    """The batch is no longer ours: its lease expired, or the server gave it to somebody else."""


class Stopped(Exception):
    """Somebody asked the trainer to stop."""


class _Over(Exception):
    """The lease was closed: its own threads have nothing left to wait for."""


class Lease:
    """A context manager that keeps a batch's lease alive from a thread of its own.

    Where the server cannot be reached the work goes on: only the server can say that the lease was lost, and it says
    so when it is back.

    Args:
        client: its check must raise Stopped when the trainer is to stop.
        batch_id: the batch.
        lease_s: how long the server waits for the next heartbeat; one is sent every third of it.
        check_stop: raises Stopped.
    """

    def __init__(self, client: TrainerClient, batch_id: str, lease_s: float, check_stop: Callable[[], None]) -> None:
        self.batch_id = batch_id
        self._client = client.checked_by(self._check_over)
        self._lease_s = lease_s
        self._check_stop = check_stop
        self._lost: str | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"heartbeat {batch_id}", daemon=True)

    def __enter__(self) -> "Lease":
        """Start the heartbeat."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the heartbeat. A request under way is not waited for beyond a second: it can only prolong a lease."""
        self._over.set()
        self._thread.join(timeout=1)

    def check(self) -> None:
        """Raise LeaseLost or Stopped where there is no point in going on."""
        if self._lost is not None:
            raise LeaseLost(self._lost)
        self._check_stop()

    def call(self, work: Callable[[TrainerClient], Result]) -> Result:
        """Run a long request so that a lost lease or a stop ends the waiting at once.

        The request runs in a thread that is left behind in that case; it ends with its answer, which nobody reads.
        """
        answers: queue.SimpleQueue[Result | BaseException] = queue.SimpleQueue()
        client = self._client.checked_by(self._check_abandoned)

        def run() -> None:
            try:
                answers.put(work(client))
            except BaseException as error:  # noqa: BLE001  # whatever it is, it belongs to the waiting caller
                answers.put(error)

        threading.Thread(target=run, name=f"request for {self.batch_id}", daemon=True).start()
        while True:
            self.check()
            with contextlib.suppress(queue.Empty):
                answer = answers.get(timeout=_LOOK_S)
                if isinstance(answer, BaseException):
                    raise answer
                return answer

    def _beat(self) -> None:
        while not self._over.wait(self._lease_s / 3):
            try:
                state = self._client.heartbeat(self.batch_id, self._lease_s)
            except _Over:
                return
            except PlauditError as error:  # anything but a clear refusal is worth another beat
                if isinstance(error, APIStatusError) and is_lost(error):
                    self._lost = error.message
                    return
            else:
                if state.state != "leased":
                    self._lost = state.reason or f"the batch is {state.state}"
                    return

    def _check_over(self) -> None:
        if self._over.is_set():
            raise _Over

    def _check_abandoned(self) -> None:
        self._check_over()
        self.check()


class LeasedSampler:
    """The learner's Sampler: answers drawn through the server for as long as the batch is ours."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease

    def generate(
        self, prompts: Sequence[GeneratePrompt], *, version: str, n: int, sampling: SamplingParams
    ) -> list[GeneratedAnswer]:
        """`n` answers a prompt. Raises LeaseLost or Stopped within a moment of either."""
        return self._lease.call(lambda client: client.generate(prompts, version=version, n=n, sampling=sampling))

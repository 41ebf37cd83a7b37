"""Progress of a run: bars in a terminal, plain lines elsewhere, and metrics posted to the server.

Nothing here may cost a run: what cannot be posted is dropped, and posting happens in a thread of its own. The one
thing that a report does to its caller is to raise where the lease was lost or the trainer is to stop.
"""

import math
import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from plaudit.errors import PlauditError
from plaudit.wire.training import RunUpdate
from plaudit_trainer.lease import Stopped

POST_EVERY_S = 1.0
LINE_EVERY_S = 10.0
SHOWN_METRICS = 4
MAX_METRICS = 200
_MAX_WAITING = 256
_FLUSH_S = 5.0


class Display(Protocol):
    """Where a person sees progress."""

    def say(self, line: str) -> None:
        """One line of news."""
        ...

    def stage(self, name: str, total: int | None) -> None:
        """A stage begins."""
        ...

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """A step of it is done."""
        ...

    def close(self) -> None:
        """The run is over."""
        ...


class Bars:
    """A rich bar for each stage of the run."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def say(self, line: str) -> None:
        """One line above the bars."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def stage(self, name: str, total: int | None) -> None:
        """Finish the last bar and begin one."""
        if self._progress is None:
            columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            figures = TextColumn("{task.fields[figures]}")
            self._progress = Progress(*columns, TimeElapsedColumn(), figures, console=self._console)
            self._progress.start()
        self._finish_task()
        self._task = self._progress.add_task(name, total=total, figures="")

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Move the present bar."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=step, figures=_figures(metrics))

    def close(self) -> None:
        """Leave the bars as they are."""
        self._finish_task()
        if self._progress is not None:
            self._progress.stop()
        self._progress = self._task = None

    def _finish_task(self) -> None:
        if self._progress is None or self._task is None:
            return
        task = next(t for t in self._progress.tasks if t.id == self._task)
        if task.total is None:
            self._progress.update(self._task, total=max(1, task.completed), completed=max(1, task.completed))
        self._progress.stop_task(self._task)


class Lines:
    """Plain lines with the time, for logs: each stage, and its newest step every ten seconds."""

    def __init__(self, write: Callable[[str], None], now: Callable[[], float] = time.monotonic) -> None:
        self._write = write
        self._now = now
        self._name, self._total = "", None  # type: str, int | None
        self._began = self._told = now()

    def say(self, line: str) -> None:
        """One line of news."""
        self._write(f"{time.strftime('%H:%M:%S')} {line}")

    def stage(self, name: str, total: int | None) -> None:
        """Tell that a stage begins, and how long the last one took."""
        self._end_stage()
        self._name, self._total = name, total
        self._began = self._told = self._now()
        self.say(f"{name} …")

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Tell the step where the last line is old enough."""
        if self._now() - self._told < LINE_EVERY_S:
            return
        self._told = self._now()
        self.say(f"{self._name} {step}{f'/{self._total}' if self._total else ''} {_figures(metrics)}".rstrip())

    def close(self) -> None:
        """Tell how long the last stage took."""
        self._end_stage()

    def _end_stage(self) -> None:
        if self._name:
            self.say(f"{self._name} took {self._now() - self._began:.1f} s")
        self._name = ""


def display_for(console: Console) -> Display:
    """Bars where somebody watches, lines where a file does."""
    if console.is_terminal:
        return Bars(console)
    return Lines(lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True))


class Courier:
    """Posts updates in order from its own thread. Where the server is away for long, the oldest are dropped."""

    def __init__(self) -> None:
        self._waiting: queue.Queue[RunUpdate | None] = queue.Queue(_MAX_WAITING)
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def check(self) -> None:
        """Raise Stopped once the courier is closed for good."""
        if self._closing.is_set():
            raise Stopped

    def start(self, post: Callable[[RunUpdate], object], say: Callable[[str], None]) -> None:
        """Begin. `post` sends one update; its client's check must be `Courier.check`, so that closing ends a wait."""
        self._thread = threading.Thread(target=self._deliver, args=(post, say), name="courier", daemon=True)
        self._thread.start()

    def put(self, update: RunUpdate | None) -> None:
        """Hand an update over; never waits."""
        while True:
            try:
                self._waiting.put_nowait(update)
            except queue.Full:
                self._drop_oldest()
            else:
                return

    def close(self) -> None:
        """Deliver what is left within a few seconds, then give up."""
        self.put(None)
        if self._thread is not None:
            self._thread.join(timeout=_FLUSH_S)
        self._closing.set()

    def _drop_oldest(self) -> None:
        try:
            self._waiting.get_nowait()
        except queue.Empty:
            return  # the thread was faster

    def _deliver(self, post: Callable[[RunUpdate], object], say: Callable[[str], None]) -> None:
        refused = False
        while (update := self._waiting.get()) is not None:
            try:
                post(update)
            except Stopped:
                return
            except PlauditError as error:
                if not refused:
                    say(f"the server does not take this run's metrics: {error.message}")
                refused = True


class RunReporter:
    """The learner's Reporter.

    Steps that follow each other faster than once a second are thinned out for the server, but the last one of a stage
    always arrives.

    Args:
        display: where a person sees it.
        put: takes an update for the server and never waits.
        check: raises LeaseLost or Stopped.
    """

    def __init__(
        self,
        display: Display,
        put: Callable[[RunUpdate], None],
        check: Callable[[], None],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._display, self._put, self._check, self._now = display, put, check, now
        self._stage: str | None = None
        self._total: int | None = None
        self._held: RunUpdate | None = None
        self._put_at = -math.inf

    def stage(self, name: str, total: int | None = None) -> None:
        """A new stage begins."""
        self.flush()
        self._stage, self._total = name, total
        self._display.stage(name, total)
        self._put(RunUpdate(stage=name))
        self._check()

    def step(self, step: int, metrics: dict[str, float]) -> None:
        """One step of the present stage is done."""
        self._display.step(step, metrics)
        self._held = RunUpdate(stage=self._stage, step=step, progress=self._share(step), metrics=_finite(metrics))
        if self._now() - self._put_at >= POST_EVERY_S:
            self.flush()
        self._check()

    def flush(self) -> None:
        """Send the step that was held back."""
        if self._held is not None:
            self._put(self._held)
            self._held, self._put_at = None, self._now()

    def _share(self, step: int) -> float | None:
        return min(1.0, max(0.0, step / self._total)) if self._total else None


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """What JSON can carry: a figure that is not a number is left out rather than invented."""
    return dict([(name, float(value)) for name, value in metrics.items() if math.isfinite(value)][:MAX_METRICS])


def _figures(metrics: Mapping[str, float]) -> str:
    return " ".join(f"{name}={value:.4g}" for name, value in list(metrics.items())[:SHOWN_METRICS])

"""The trainer's loop: lease a batch, learn from it, publish, register; again.

    settle ▸ lease ▸ open the run ▸ learn in a workspace ▸ publish (one rename) ▸ register (consumes the batch)

What holds at any kill: before the rename nothing is visible, the lease or its expiry brings the records back, and the
next start throws the workspace away; after it, the next start finds the version and registers it, which the server
does once. So a record is consumed by exactly one version, or waits for one.

A stop on request gives the batch back, since the next start may be far off and half a run is not worth keeping.
"""

import errno
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from plaudit.errors import APIStatusError, AuthenticationError, PermissionDeniedError, PlauditError
from plaudit.wire.base import JsonObject
from plaudit.wire.training import Batch, Run, RunUpdate
from plaudit.wire.versions import Manifest
from plaudit_trainer.client import TrainerClient, is_lost, sleep_checked
from plaudit_trainer.config import TrainerConfig
from plaudit_trainer.learner import Job, Outcome, Reporter, Sampler
from plaudit_trainer.lease import Lease, LeasedSampler, LeaseLost, Stopped
from plaudit_trainer.progress import Courier, Display, RunReporter
from plaudit_trainer.publish import (
    BadVersion,
    Observer,
    Origin,
    PublishedOutcome,
    publish,
    registration,
    set_aside,
    sweep,
    verify,
    workspace,
    write_batch_ids,
)
from plaudit_trainer.state import TrainerState

Learn = Callable[[Job, Sampler, Reporter, TrainerConfig], Outcome]

LONGEST_PAUSE_S = 600.0
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class Turn(Enum):
    """How one turn of the loop ended."""

    REGISTERED = "a version was registered"
    WAITING = "too little feedback yet"
    INSUFFICIENT = "the feedback taught nothing"
    LOST = "the lease was lost"
    FAILED = "the run failed"


@dataclass(slots=True)
class _Appetite:
    """How much feedback the next lease asks for: more than what just taught nothing, until patience ends.

    The largest batch grows with it, or the same oldest records would be all that is ever looked at.
    """

    min_records: int
    until: float = 0.0

    def now(self, usual: int) -> int:
        return max(usual, self.min_records) if time.monotonic() < self.until else usual


class Trainer:
    """The loop and what it needs.

    Args:
        client: waits for the server; its check must raise Stopped when the trainer is to stop.
        config: settings.
        base: folder of the base model.
        learn: turns a job into an outcome (`plaudit_trainer.learner.learn`).
        display: where a person sees what happens.
        check_stop: raises Stopped when the trainer is to stop.
        observe: told each step just after it happened; tests kill the process there.
    """

    def __init__(
        self,
        client: TrainerClient,
        config: TrainerConfig,
        *,
        base: Path,
        learn: Learn,
        display: Display,
        check_stop: Callable[[], None],
        observe: Observer = lambda step: None,
    ) -> None:
        self.client = client
        self.config = config
        self.base = base
        self.versions = config.data / "versions"
        self.state = TrainerState(config.data)
        self._learn = learn
        self._display = display
        self._check_stop = check_stop
        self._observe = observe
        self._appetite = _Appetite(config.min_records)
        self._failures = 0
        self._told = ""

    def run(self, *, once: bool = False) -> None:
        """Turn after turn, until told to stop; with `once` a single one.

        Raises:
            Stopped: told to.
            AuthenticationError, PermissionDeniedError: the key is not (or no longer) a trainer's.
        """
        for name in sweep(self.versions):
            self._display.say(f"removed {name}: an interrupted run left it; its batch is trained on again")
        while True:
            self._check_stop()
            turn = self._guarded_turn()
            if once:
                return
            sleep_checked(self._pause_after(turn), self._check_stop)

    def turn(self) -> Turn:
        """Register what an earlier start published, then lease, learn, publish and register once."""
        self.settle()
        batch = self.client.lease(
            min_records=self._appetite.now(self.config.min_records),
            max_records=max(self.config.max_records, self._appetite.min_records),
            lease_seconds=self.config.lease_s,
            max_prompts=self.config.log_prompts,
        )
        if batch.id is None:
            self._say_once(f"waiting for feedback: {batch.reason or f'{batch.available} of {batch.needed} records'}")
            return Turn.WAITING
        self._told = ""
        self._observe("leased")
        return self._work(batch, batch.id)

    def settle(self) -> None:
        """Register versions that were published just before the trainer ended."""
        for name in self.state.pending():
            if (self.versions / name).is_dir():
                self._register(self.versions / name)
            self.state.remove_pending(name)

    def _guarded_turn(self) -> Turn:
        """A turn whose troubles outside the run itself (disk, server) are told and waited out."""
        try:
            turn = self.turn()
        except (AuthenticationError, PermissionDeniedError):
            raise
        except (OSError, PlauditError) as error:
            self._display.say(f"will try again: {_in_words(error)}")
            turn = Turn.FAILED
        self._failures = self._failures + 1 if turn is Turn.FAILED else 0
        return turn

    def _work(self, batch: Batch, batch_id: str) -> Turn:
        records = f"{len(batch.records)} records, {len(batch.comparisons)} comparisons"
        self._display.say(f"{'resumed' if batch.resumed else 'leased'} batch {batch_id}: {records}")
        with Lease(self.client, batch_id, self.config.lease_s, self._check_stop) as lease:
            try:
                run = self.client.create_run(batch_id, self._settings())
                self._observe("run_created")
                folder = self._published_before(run) or self._train(run, batch, lease)
            except LeaseLost as error:
                self._display.say(f"gave up batch {batch_id}: {error}")
                return Turn.LOST
            except Stopped:
                self._give_back(batch_id, "trainer stopped", release=True)
                raise
            except APIStatusError as error:
                if error.code == "parent_is_full":  # nothing is lost: it waits for a stable version to learn from
                    self._give_back(batch_id, error.message, release=True)
                    raise
                if not is_lost(error):
                    raise
                self._display.say(f"gave up batch {batch_id}: {error.message}")
                return Turn.LOST
            if isinstance(folder, Turn):
                return folder
            return self._settle_run(run, batch, folder)

    def _settle_run(self, run: Run, batch: Batch, folder: Path) -> Turn:
        """Register what this run published. What the server finds wrong with it counts as a failed run."""
        turn, reason = self._register(folder)
        if turn is Turn.FAILED:
            turn = self._count_against(run, batch, reason)
        self.state.remove_pending(run.version)
        self._observe("settled")
        return turn

    def _published_before(self, run: Run) -> Path | None:
        """The run's version, where it was published before the trainer was killed."""
        folder = self.versions / run.version
        if not folder.exists():
            return None
        try:
            manifest = verify(folder)
        except BadVersion as error:
            self._display.say(f"put aside as {set_aside(folder).name}: {error}")
            return None
        if manifest.run_id != run.id:
            self._display.say(f"put aside as {set_aside(folder).name}: it is of run {manifest.run_id}, not {run.id}")
            return None
        self._display.say(f"{run.version} was published before the last stop; registering it")
        return folder

    def _train(self, run: Run, batch: Batch, lease: Lease) -> Path | Turn:
        """Learn and publish; what goes wrong in it is told to the server and answered with what to do next."""
        try:
            with self._workspace(run) as folder:
                outcome = self._learn_reporting(run, batch, lease, folder)
                write_batch_ids(folder, batch)
                self._observe("learned")
                lease.check()
                if outcome.verdict == "insufficient":
                    return self._taught_nothing(run, batch, outcome)
                return self._publish(run, folder, outcome)
        except (LeaseLost, Stopped, AuthenticationError, PermissionDeniedError):
            raise
        except (ImportError, MemoryError) as error:  # this machine's fault: the records are innocent
            return self._failed(run, run.batch_id, _in_words(error), release=True)
        except OSError as error:
            if error.errno in _NO_ROOM:
                reason = f"no room in {self.config.data} ({error.strerror}): free some space; the batch waits"
            else:
                reason = _in_words(error)
            return self._failed(run, run.batch_id, reason, release=True)
        except Exception as error:  # noqa: BLE001  # whatever a learner raises: one batch must not stop the loop
            return self._count_against(run, batch, _in_words(error))

    def _learn_reporting(self, run: Run, batch: Batch, lease: Lease, folder: Path) -> Outcome:
        courier = Courier()
        poster = self.client.checked_by(courier.check)
        reporter = RunReporter(self._display, courier.put, lease.check)
        courier.start(lambda update: poster.update_run(run.id, update), self._display.say)
        try:
            self._display.say(f"run {run.id}: {run.version} from {run.parent}")
            job = Job(run=run, batch=batch, base=self.base, workspace=folder)
            return self._learn(job, LeasedSampler(lease), reporter, self.config)
        finally:
            reporter.flush()
            self._display.close()
            courier.close()

    @contextmanager
    def _workspace(self, run: Run) -> Iterator[Path]:
        """A temporary folder that is gone afterwards, unless it was renamed into a version."""
        folder = workspace(self.versions, run.version)
        self._observe("workspace_made")
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _publish(self, run: Run, folder: Path, outcome: Outcome) -> Path:
        assert outcome.verdict != "insufficient"
        self.state.add_pending(run.version)
        self._observe("marked_pending")
        return publish(
            folder,
            self.versions,
            origin=Origin(
                version=run.version,
                parent=run.parent,
                run_id=run.id,
                batch_ids=[run.batch_id],
                base_model=self.config.model or self.base.name,
            ),
            lora=outcome.lora,
            outcome=PublishedOutcome(
                outcome=outcome.verdict, reason=outcome.reason, gate=outcome.gate, metrics=outcome.metrics
            ),
            base=self.base,
            observe=self._observe,
        )

    def _register(self, folder: Path) -> tuple[Turn, str]:
        """Register a published folder, or take it out of sight where the server will not have it; and say why."""
        try:
            manifest = verify(folder)
            request = registration(folder, manifest)
        except (BadVersion, ValueError) as error:
            return self._put_aside(folder, Turn.FAILED, _in_words(error))
        try:
            version = self.client.register(request)
        except APIStatusError as error:
            if error.status in (401, 403) or error.status >= 500:
                raise
            if self._is_registered(manifest):
                self._display.say(f"{manifest.version} was registered already")
                return Turn.REGISTERED, ""
            return self._put_aside(folder, Turn.LOST if is_lost(error) else Turn.FAILED, error.message)
        self._observe("registered")
        self.state.forget_failures()
        self._appetite = _Appetite(self.config.min_records)
        reason = f": {request.reason}" if request.reason else ""
        self._display.say(f"{version.name} registered as {request.outcome}{reason}; it is {version.state}")
        return Turn.REGISTERED, ""

    def _put_aside(self, folder: Path, turn: Turn, reason: str) -> tuple[Turn, str]:
        aside = set_aside(folder)
        self._display.say(f"{folder.name} not registered, put aside as {aside.name}: {reason}")
        return turn, reason

    def _is_registered(self, manifest: Manifest) -> bool:
        try:
            run = self.client.run(manifest.run_id)
        except APIStatusError as error:
            if error.status == 404:
                return False
            raise
        return run.version == manifest.version and run.state in ("published", "rejected")

    def _taught_nothing(self, run: Run, batch: Batch, outcome: Outcome) -> Turn:
        """Give the votes back and wait for more of them before they are looked at again."""
        reason = outcome.reason or "nothing could be learnt from these votes"
        self._failed(run, run.batch_id, f"insufficient: {reason}", release=True)
        more = batch.available + max(1, self.config.min_records // 4)
        self._appetite = _Appetite(min(more, 100_000), until=time.monotonic() + self.config.patience_s)
        self._display.say(f"waiting for {more} records, or {self.config.patience_s:.0f} s")
        self.state.forget_failures()
        return Turn.INSUFFICIENT

    def _count_against(self, run: Run, batch: Batch, reason: str) -> Turn:
        """Give the batch back for another run, or, after too many with the same record in it, set it aside."""
        failures = self.state.count_failure(batch)
        release = failures < self.config.max_attempts
        if not release:
            reason = f"set aside after {failures} failed runs: {reason}"
            self.state.forget_failures()
        return self._failed(run, run.batch_id, reason, release=release)

    def _failed(self, run: Run, batch_id: str, reason: str, *, release: bool) -> Turn:
        self._display.say(f"run {run.id} ended without a version: {reason}")
        try:
            self.client.update_run(run.id, RunUpdate(state="failed", reason=reason[:4000]))
        except APIStatusError as error:
            if error.status in (401, 403):
                raise
        self._give_back(batch_id, reason[:4000], release=release)
        return Turn.FAILED

    def _give_back(self, batch_id: str, reason: str, *, release: bool) -> None:
        """Release or set aside; a batch that is no longer ours needs neither."""
        try:
            self.client.fail(batch_id, reason, release=release)
        except APIStatusError as error:
            if not is_lost(error):
                raise
        except Stopped:  # the server is away as well: the lease's expiry gives the batch back
            self._display.say(f"batch {batch_id} comes back when its lease expires: the server cannot be reached")
        self._observe("given_back")

    def _pause_after(self, turn: Turn) -> float:
        if turn is Turn.REGISTERED:
            return 0.0
        if turn is Turn.FAILED:
            return min(LONGEST_PAUSE_S, self.config.retry_s * 2.0 ** min(self._failures - 1, 16))
        return self.config.poll_s

    def _settings(self) -> JsonObject:
        """What the run was made with, for its record; never the key."""
        settings: JsonObject = self.config.model_dump(mode="json", exclude={"key", "key_file"})
        return settings

    def _say_once(self, line: str) -> None:
        if line != self._told:
            self._display.say(line)
        self._told = line


def _in_words(error: BaseException) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__

"""The loop against a FAKE server and a FAKE learner: what it does, in which order, and when things go wrong."""

import errno
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from plaudit.errors import AuthenticationError
from plaudit.wire.chat import SamplingParams
from plaudit.wire.training import GeneratePrompt
from plaudit_trainer import loop as looping
from plaudit_trainer.client import Link, TrainerClient
from plaudit_trainer.config import TrainerConfig
from plaudit_trainer.learner import Job, Reporter, Sampler
from plaudit_trainer.lease import Lease, LeaseLost, Stopped
from plaudit_trainer.loop import Trainer, Turn
from plaudit_trainer.progress import Lines
from plaudit_trainer.publish import verify
from plaudit_trainer.state import AlreadyRunning, TrainerState
from tests.support.fake_learner import FakeLearner, SilentClock, fake_base, outcome
from tests.support.fake_server import FakeServer, Refusal

STEPS = [
    "leased",
    "run_created",
    "workspace_made",
    "learned",
    "marked_pending",
    "outcome_written",
    "files_synced",
    "manifest_written",
    "renamed",
    "registered",
    "settled",
]


class Rig:
    """A trainer, its server and its data folder."""

    def __init__(self, data: Path, records: int = 8, learner: FakeLearner | None = None, **settings: object) -> None:
        self.server = FakeServer(records)
        self.data = data
        self.versions = data / "versions"
        self.learner = learner or FakeLearner()
        self.config = TrainerConfig(**({"data": data, "min_records": 4, "max_records": 8, "retry_s": 0} | settings))
        self.said: list[str] = []
        self.steps: list[str] = []
        self.stop = threading.Event()
        self.trainer = self.make()

    def make(self, observe: Callable[[str], None] | None = None) -> Trainer:
        state = TrainerState(self.data)
        state.prepare()
        link = Link(self.server.client(), self.said.append, SilentClock())  # type: ignore[arg-type]
        return Trainer(
            TrainerClient(link, state.worker(), self.check_stop),
            self.config,
            base=fake_base(self.data / "base"),
            learn=self.learner,
            display=Lines(self.said.append),
            check_stop=self.check_stop,
            observe=observe or self.steps.append,
        )

    def check_stop(self) -> None:
        if self.stop.is_set():
            raise Stopped

    def visible(self) -> list[str]:
        return sorted(path.name for path in self.versions.iterdir() if not path.name.startswith("."))

    def hidden(self) -> list[str]:
        return sorted(path.name.rsplit("-", 1)[0] for path in self.versions.iterdir() if path.name.startswith("."))


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def test_a_turn_takes_its_steps_in_order_and_consumes_the_batch_once(rig: Rig) -> None:
    assert rig.trainer.turn() is Turn.REGISTERED
    assert rig.steps == STEPS
    assert sorted(rig.server.consumed) == sorted(rig.server.records)
    assert rig.server.states() == ["consumed"]
    manifest = verify(rig.versions / "v1")
    assert (manifest.parent, manifest.batch_ids, manifest.run_id) == ("base", ["batch-0"], "run-1")
    assert rig.hidden() == []
    assert rig.trainer.state.pending() == []
    important = [line for line in rig.server.log if not line.endswith("/metrics")]
    assert important == ["POST /v1/batches:lease", "POST /v1/training/runs", "POST /v1/versions"]


def test_the_server_is_told_the_stages_and_steps(rig: Rig) -> None:
    rig.trainer.turn()
    told = [(update.stage, update.step, update.metrics) for _, update in rig.server.updates]
    assert told == [("faking", None, {}), ("faking", 1, {"loss": 1.0}), ("faking", 2, {"loss": 0.5})]


def test_the_run_is_recorded_with_its_settings_but_never_with_the_key(tmp_path: Path) -> None:
    rig = Rig(tmp_path, key="plk_very_secret")
    sent: list[bytes] = []
    real = rig.server.handle
    rig.server.handle = lambda request: sent.append(request.content) or real(request)  # type: ignore[assignment, func-returns-value]
    rig.trainer = rig.make()
    rig.trainer.turn()
    assert any(b'"min_records":4' in body for body in sent)
    assert not any(b"plk_very_secret" in body for body in sent)


def test_versions_follow_each_other(rig: Rig) -> None:
    rig.server.add_records(8)
    assert [rig.trainer.turn() for _ in range(3)] == [Turn.REGISTERED, Turn.REGISTERED, Turn.WAITING]
    assert rig.visible() == ["v1", "v2"]
    assert verify(rig.versions / "v2").parent == "v1"
    assert sorted(rig.server.consumed) == sorted(rig.server.records)


def test_waiting_is_said_once(tmp_path: Path) -> None:
    rig = Rig(tmp_path, records=3)
    assert [rig.trainer.turn() for _ in range(3)] == [Turn.WAITING] * 3
    (line,) = [line for line in rig.said if "waiting" in line]
    assert line.endswith("waiting for feedback: 3 of 4 records")


def test_a_rejected_version_is_registered_and_consumes(tmp_path: Path) -> None:
    rig = Rig(tmp_path, learner=FakeLearner(outcome("rejected", "reward model AUROC 0.51")))
    assert rig.trainer.turn() is Turn.REGISTERED
    assert rig.server.versions["v1"].outcome == "rejected"
    assert rig.server.versions["v1"].reason == "reward model AUROC 0.51"
    assert len(rig.server.consumed) == 8


def test_votes_that_teach_nothing_go_back_and_are_not_looked_at_again_until_there_are_more(tmp_path: Path) -> None:
    rig = Rig(tmp_path, records=6, learner=FakeLearner(outcome("insufficient", "one class only")))
    assert rig.trainer.turn() is Turn.INSUFFICIENT
    assert rig.server.states() == ["released"]
    assert rig.server.batches["batch-0"]["reason"] == "insufficient: one class only"
    assert rig.server.runs["run-1"].state == "failed"
    assert (rig.visible(), rig.hidden()) == ([], [])
    assert [rig.trainer.turn() for _ in range(5)] == [Turn.WAITING] * 5
    assert len(rig.learner.jobs) == 1
    rig.server.add_records(1)
    assert rig.trainer.turn() is Turn.REGISTERED
    assert len(rig.server.consumed) == 7


def test_oldest_votes_that_teach_nothing_do_not_hide_the_newer_ones(tmp_path: Path) -> None:
    rig = Rig(tmp_path, records=12, learner=FakeLearner(outcome("insufficient", "one class only")))
    assert rig.trainer.turn() is Turn.INSUFFICIENT
    assert len(rig.learner.jobs[0].batch.records) == 8
    rig.server.add_records(1)
    assert rig.trainer.turn() is Turn.REGISTERED
    assert len(rig.learner.jobs[1].batch.records) == 13


def test_votes_that_taught_nothing_are_looked_at_again_when_patience_ends(tmp_path: Path) -> None:
    rig = Rig(tmp_path, patience_s=0.05, learner=FakeLearner(outcome("insufficient", "one class only")))
    assert rig.trainer.turn() is Turn.INSUFFICIENT
    assert rig.trainer.turn() is Turn.WAITING
    time.sleep(0.06)
    assert rig.trainer.turn() is Turn.REGISTERED


def test_a_poison_batch_is_set_aside_after_some_attempts_and_the_loop_goes_on(tmp_path: Path) -> None:
    rig = Rig(tmp_path, learner=FakeLearner(*[ValueError("bad record") for _ in range(3)]))
    assert [rig.trainer.turn() for _ in range(3)] == [Turn.FAILED] * 3
    assert rig.server.states() == ["released", "released", "discarded"]
    assert "set aside after 3 failed runs: ValueError: bad record" in rig.server.batches["batch-2"]["reason"]
    assert {run.state for run in rig.server.runs.values()} == {"failed"}
    assert (rig.visible(), rig.hidden()) == ([], [])
    rig.server.add_records(4)
    assert rig.trainer.turn() is Turn.REGISTERED
    assert len(rig.server.consumed) == 4


def test_attempts_are_counted_across_restarts(tmp_path: Path) -> None:
    rig = Rig(tmp_path, learner=FakeLearner(*[ValueError("bad record") for _ in range(3)]))
    for _ in range(3):
        rig.trainer = rig.make()
        rig.trainer.turn()
    assert rig.server.states()[-1] == "discarded"


def test_failures_of_batches_that_share_no_record_are_not_added_up(rig: Rig) -> None:
    rig.learner._results = [ValueError("a"), ValueError("b"), ValueError("c"), ValueError("d")]
    for turn in range(4):
        rig.trainer.turn()
        rig.server.consumed += rig.server.batches[f"batch-{turn}"]["records"]  # as if another trainer had them
        rig.server.add_records(8)
    assert rig.server.states() == ["released"] * 4


@pytest.mark.parametrize("error", [MemoryError(), ImportError("no torch"), OSError(errno.EIO, "Input/output error")])
def test_this_machines_faults_are_never_held_against_the_records(tmp_path: Path, error: Exception) -> None:
    rig = Rig(tmp_path, learner=FakeLearner(*[error for _ in range(5)]))
    for _ in range(5):
        assert rig.trainer.turn() is Turn.FAILED
    assert rig.server.states() == ["released"] * 5
    assert rig.trainer.turn() is Turn.REGISTERED


def test_a_full_disk_is_said_and_cleaned_up_and_the_batch_waits(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(looping, "publish", full)
        assert rig.trainer.turn() is Turn.FAILED
    assert any("no room in" in line and "free some space" in line for line in rig.said)
    assert rig.server.states() == ["released"]
    assert (rig.visible(), rig.hidden()) == ([], [])
    assert rig.trainer.turn() is Turn.REGISTERED
    assert rig.visible() == ["v2"]
    assert rig.trainer.state.pending() == []


def test_a_run_that_leaves_no_adapter_counts_as_failed(tmp_path: Path) -> None:
    def lose(job: Job, sampler: Sampler, reporter: Reporter) -> None:
        (job.workspace / "adapter" / "adapter_model.safetensors").unlink()

    rig = Rig(tmp_path, learner=FakeLearner(during=lose))
    assert rig.trainer.turn() is Turn.FAILED
    assert rig.server.states() == ["released"]
    assert (rig.visible(), rig.hidden()) == ([], [])


def test_a_lease_lost_before_registering_puts_the_version_out_of_sight(rig: Rig) -> None:
    trainer = rig.make(lambda step: rig.server.expire_leases() if step == "renamed" else None)
    assert trainer.turn() is Turn.LOST
    assert (rig.visible(), rig.hidden()) == ([], [".lost-v1"])
    assert rig.server.consumed == []
    assert rig.trainer.turn() is Turn.REGISTERED
    assert rig.visible() == ["v2"]
    assert sorted(rig.server.consumed) == sorted(rig.server.records)


def test_a_conflict_on_registering_what_is_registered_already_is_no_loss(rig: Rig) -> None:
    def forget(step: str) -> None:
        if step == "registered":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rig.make(forget).turn()
    rig.server.remembered.clear()  # the idempotency key has expired
    assert rig.trainer.turn() is Turn.WAITING
    assert (rig.visible(), rig.hidden()) == (["v1"], [])
    assert len(rig.server.consumed) == 8
    assert rig.trainer.state.pending() == []


def test_a_version_the_server_refuses_counts_against_the_batch(rig: Rig) -> None:
    rig.server.script["/versions"] = [Refusal(422, "adapter rank 64 is larger than 16") for _ in range(3)]
    assert [rig.trainer.turn() for _ in range(3)] == [Turn.FAILED] * 3
    assert rig.server.states() == ["released", "released", "discarded"]
    assert rig.visible() == []


def test_a_server_that_dies_while_registering_gets_it_again_and_consumes_once(rig: Rig) -> None:
    rig.server.after["/versions"] = [httpx.ReadError("reset"), httpx.ReadError("reset")]
    assert rig.trainer.turn() is Turn.REGISTERED
    assert rig.server.log.count("POST /v1/versions") == 3
    assert sorted(rig.server.consumed) == sorted(rig.server.records)


def test_a_server_that_cannot_register_now_is_asked_again_without_training_again(rig: Rig) -> None:
    rig.server.script["/versions"] = [Refusal(500, "bug") for _ in range(12)]
    rig.trainer.run(once=True)
    assert any("will try again" in line for line in rig.said)
    rig.trainer.run(once=True)
    assert rig.server.versions.keys() == {"v1"}
    assert len(rig.learner.jobs) == 1
    assert len(rig.server.consumed) == 8


def test_a_lease_lost_between_lease_and_run_is_given_up(rig: Rig) -> None:
    assert rig.make(lambda step: rig.server.expire_leases() if step == "leased" else None).turn() is Turn.LOST
    assert rig.learner.jobs == []


def test_a_published_folder_of_another_run_is_put_aside_and_never_registered(rig: Rig) -> None:
    rig.trainer.turn()
    other = Rig(rig.data, learner=rig.learner)  # a fresh server that gives the name v1 again
    manifest = rig.versions / "v1" / "manifest.json"
    manifest.chmod(0o644)
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"run_id": "run-of-old"}), encoding="utf-8")
    assert other.trainer.turn() is Turn.REGISTERED
    assert (other.visible(), other.hidden()) == (["v1"], [".lost-v1"])
    assert verify(rig.versions / "v1").run_id == "run-1"


def test_a_stop_gives_the_batch_back_at_once(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.learner._during = lambda job, sampler, reporter: rig.stop.set()
    with pytest.raises(Stopped):
        rig.trainer.run()
    assert rig.server.states() == ["released"]
    assert rig.server.batches["batch-0"]["reason"] == "trainer stopped"
    assert (rig.visible(), rig.hidden()) == ([], [])


def test_a_stop_while_the_server_is_away_ends_at_once_and_leaves_the_lease_to_expire(tmp_path: Path) -> None:
    rig = Rig(tmp_path)

    def stop(job: Job, sampler: Sampler, reporter: Reporter) -> None:
        rig.stop.set()
        rig.server.script[":fail"] = [httpx.ConnectError("refused") for _ in range(99)]

    rig.learner._during = stop
    with pytest.raises(Stopped):
        rig.trainer.run()
    assert rig.server.log.count("POST /v1/batches/batch-0:fail") == 1
    assert any("comes back when its lease expires" in line for line in rig.said)


def test_a_stop_after_publishing_keeps_the_batch_and_the_next_start_registers(rig: Rig) -> None:
    def stop(step: str) -> None:
        if step == "renamed":
            rig.stop.set()
            rig.server.script["/versions"] = [httpx.ConnectError("refused")]

    with pytest.raises(Stopped):
        rig.make(stop).run()
    assert rig.server.states() == ["leased"]
    rig.stop.clear()
    rig.trainer.run(once=True)
    assert len(rig.learner.jobs) == 1
    assert sorted(rig.server.consumed) == sorted(rig.server.records)


def test_a_refused_key_ends_the_loop(rig: Rig) -> None:
    rig.server.script[":lease"] = [Refusal(401, "revoked")]
    with pytest.raises(AuthenticationError):
        rig.trainer.run()


def test_a_key_revoked_during_a_run_is_not_held_against_the_records(tmp_path: Path) -> None:
    def sample(job: Job, sampler: Sampler, reporter: Reporter) -> None:
        sampler.generate([GeneratePrompt(prompt_ids=[1])], version="base", n=1, sampling=SamplingParams())

    rig = Rig(tmp_path, learner=FakeLearner(during=sample))
    rig.server.script["/generate"] = [Refusal(401, "revoked")]
    with pytest.raises(AuthenticationError):
        rig.trainer.run()
    assert not (tmp_path / "trainer" / "attempts.json").exists()


def test_failures_make_the_loop_pause_longer_and_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(tmp_path, learner=FakeLearner(*[MemoryError() for _ in range(9)]), retry_s=10)
    pauses: list[float] = []

    def pause(seconds: float, check: Callable[[], None]) -> None:
        pauses.append(seconds)
        if len(pauses) == 11:
            rig.stop.set()

    monkeypatch.setattr(looping, "sleep_checked", pause)
    with pytest.raises(Stopped):
        rig.trainer.run()
    assert pauses == [10, 20, 40, 80, 160, 320, 600, 600, 600, 0, rig.config.poll_s]


# the lease


def until(condition: Callable[[], object], seconds: float = 10) -> None:
    """What is awaited is a thread of the lease's own."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def lease_of(rig: Rig, seconds: float) -> Lease:
    batch = rig.trainer.client.lease(min_records=1, max_records=8, lease_seconds=seconds)
    assert batch.id is not None
    return Lease(rig.trainer.client, batch.id, seconds, rig.check_stop)


def test_the_lease_is_kept_alive_while_the_work_goes_on(rig: Rig) -> None:
    with lease_of(rig, 0.3) as lease:
        until(lambda: rig.server.heartbeats >= 4)
        lease.check()
        again = rig.trainer.client.lease(min_records=1, max_records=8, lease_seconds=0.3)
        assert again.resumed
    beats = rig.server.heartbeats
    time.sleep(0.4)
    assert rig.server.heartbeats == beats


def test_a_lost_lease_is_noticed_by_the_next_check(rig: Rig) -> None:
    with lease_of(rig, 0.15) as lease:
        rig.server.expire_leases()
        with pytest.raises(LeaseLost, match="expired"):
            until(lease.check)


def test_a_server_that_is_away_does_not_lose_the_lease(rig: Rig) -> None:
    with lease_of(rig, 0.15) as lease:
        rig.server.script[":heartbeat"] = [httpx.ConnectError("refused") for _ in range(5)] + [Refusal(500, "x")] * 3
        until(lambda: rig.server.heartbeats >= 1)
        lease.check()


def test_a_long_request_ends_with_the_lease_or_a_stop(rig: Rig) -> None:
    hold = threading.Event()
    try:
        with lease_of(rig, 0.15) as lease:
            rig.server.expire_leases()
            with pytest.raises(LeaseLost):
                lease.call(lambda client: hold.wait(20))
        with lease_of(rig, 60) as lease:
            threading.Timer(0.1, rig.stop.set).start()
            began = time.monotonic()
            with pytest.raises(Stopped):
                lease.call(lambda client: hold.wait(20))
            assert time.monotonic() - began < 5
    finally:
        hold.set()


def test_an_error_of_a_long_request_reaches_its_caller(rig: Rig) -> None:
    with lease_of(rig, 60) as lease, pytest.raises(AuthenticationError):
        rig.server.script["/run-1"] = [Refusal(401, "no")]
        lease.call(lambda client: client.run("run-1"))
    with lease_of(rig, 60) as lease, pytest.raises(KeyError):
        lease.call(lambda client: {}["a bug"])


# what is kept on disk


def test_the_worker_keeps_its_name_and_the_folder_has_one_trainer(tmp_path: Path) -> None:
    state = TrainerState(tmp_path)
    state.prepare()
    assert state.worker() == TrainerState(tmp_path).worker()
    other = TrainerState(tmp_path / "other")
    other.prepare()
    assert state.worker() != other.worker()
    with state.locked(), pytest.raises(AlreadyRunning, match="process"), TrainerState(tmp_path).locked():
        pass
    with TrainerState(tmp_path).locked():
        pass


def test_a_damaged_attempts_file_is_as_none(rig: Rig) -> None:
    (rig.data / "trainer" / "attempts.json").write_text("{", encoding="utf-8")
    batch = rig.trainer.client.lease(min_records=1, max_records=8, lease_seconds=60)
    assert rig.trainer.state.count_failure(batch) == 1
    assert rig.trainer.state.count_failure(batch) == 2

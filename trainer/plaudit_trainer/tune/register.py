"""A tuned model's way to the server: a run without a batch, a published folder, a registered version.

Like any other version it is loaded and proven by the server before it may serve. Its run has learnt from no feedback:
the server gives it an empty batch, whose lease is the run's.
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from plaudit.errors import APIStatusError
from plaudit.wire.base import JsonObject
from plaudit.wire.training import Run, RunCreate, RunUpdate
from plaudit_trainer.client import TrainerClient, connect
from plaudit_trainer.publish import (
    BadVersion,
    Origin,
    PublishedOutcome,
    publish,
    registration,
    set_aside,
    verify,
    workspace,
)
from plaudit_trainer.tune.result import Registered, TuneReport, write_registered

PATIENCE_S = 30.0
_LEASE_S = 900.0


class NotRegistered(Exception):
    """The tuning is complete in its folder, but no version on the server; the message says why."""


class TuningClient(TrainerClient):
    """The trainer's endpoints, and the one that begins a run without a batch."""

    def begin(self, digest: str, config: JsonObject) -> Run:
        """A run that reserves a version's name; repeated, the same one."""
        request = RunCreate(worker=self.worker, parent="base", lease_seconds=_LEASE_S, config=config)
        return self._post("/v1/training/runs", request, Run, key=f"tune-{self.worker}-{digest}")


def register(
    out: Path, report: TuneReport, *, base: Path, data: Path, url: str, key: str, say: Callable[[str], None]
) -> str:
    """Publish the adapter or whole model in `out` as a version's folder below `data`, and register it.

    Returns:
        The version's name.

    Raises:
        NotRegistered: the server is away or refuses; `out` is untouched, and the same command tries again.
    """
    deadline = time.monotonic() + PATIENCE_S

    def check() -> None:
        if time.monotonic() > deadline:
            raise NotRegistered(f"no answer from {url} within {PATIENCE_S:.0f} s")

    link = connect(url, key, say)
    client = TuningClient(link, f"tune-{report.digest}-{time.time_ns():x}", check)
    try:
        version, folder = _register(out, report, base, data / "versions", client)
    except APIStatusError as error:
        raise NotRegistered(f"{url} refuses it: {error.message}") from error
    except (OSError, BadVersion) as error:
        raise NotRegistered(f"{data / 'versions'} cannot take it: {error}") from error
    finally:
        link.http.close()
    write_registered(out, Registered(url=url, version=version, location=str(folder)))
    return version


def _register(out: Path, report: TuneReport, base: Path, versions: Path, client: TuningClient) -> tuple[str, Path]:
    if not (out / "probe.json").is_file():
        raise NotRegistered("it has no probe, so nothing could be proven; serve it with PLAUDIT_MODEL")
    run = client.begin(report.digest, report.settings)
    folder = None
    try:
        folder = _publish(out, report, base, versions, run)
        version = client.register(registration(folder, verify(folder)))
    except (APIStatusError, OSError, BadVersion) as error:
        # A refusal is final, and the name goes to nobody else. Where there was no answer at all, the version may have
        # been registered: then its folder must stay.
        if folder is not None:
            set_aside(folder)
        _give_up(client, run, error)
        raise
    return version.name, folder


def _give_up(client: TuningClient, run: Run, error: Exception) -> None:
    """Tell the server that the run ended; where it cannot be told, its lease tells it."""
    reason = f"tuning: {type(error).__name__}"[:200]
    try:
        client.update_run(run.id, RunUpdate(state="failed", reason=reason))
    except (APIStatusError, NotRegistered):
        return


def _publish(out: Path, report: TuneReport, base: Path, versions: Path, run: Run) -> Path:
    folder = workspace(versions, run.version)
    try:
        weights = "adapter" if report.kind == "adapter" else "model"
        shutil.copytree(out / weights, folder / weights)
        for name in ("probe.json", "tune.json"):
            shutil.copyfile(out / name, folder / name)
        return publish(
            folder,
            versions,
            origin=Origin(
                version=run.version, parent=run.parent, run_id=run.id, batch_ids=[run.batch_id], base_model=base.name
            ),
            lora=report.lora,
            outcome=_outcome(report),
            base=base,
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # renamed, unless something failed


def _outcome(report: TuneReport) -> PublishedOutcome:
    outcome: Literal["candidate", "rejected"] = "candidate" if report.gate.passed else "rejected"
    reason = "; ".join(report.gate.refusals) or None
    return PublishedOutcome(outcome=outcome, reason=reason, gate=report.gate, metrics=report.metrics)

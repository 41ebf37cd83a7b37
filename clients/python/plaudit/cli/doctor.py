"""`plaudit doctor`: what is wrong, and what mends it."""

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plaudit import __version__
from plaudit.cli._session import REFUSED, JsonFlag, one_line, printable, session_of
from plaudit.cli._trial import Trial, attempt

if TYPE_CHECKING:
    from plaudit import Plaudit, PlauditError
    from plaudit.wire.ops import Health, ReplicaHealth

FREE_BYTES_NEEDED = 1 << 30
TRAINER_SILENT_S = 900.0
CLOCK_SKEW_S = 5.0
"""Votes carry times, leases and tokens end by them: clocks further apart than this make nonsense of some."""


@dataclass(frozen=True, slots=True)
class Check:
    """One line. `ok` is None where it could not be told. `figures` are what was measured, in seconds."""

    name: str
    ok: bool | None
    detail: str
    mend: str = ""
    figures: dict[str, float] = field(default_factory=dict)

    def line(self) -> str:
        """The check as a line for the terminal."""
        mark = {True: "ok  ", False: "FAIL", None: "?   "}[self.ok]
        mend = f" Mend: {self.mend}" if self.mend and self.ok is not True else ""
        return printable(f"{mark}  {self.name}: {self.detail}{mend}")


def doctor(
    ctx: typer.Context,
    as_json: JsonFlag = False,
    read_only: Annotated[bool, typer.Option("--read-only", help="Do not chat or vote: write nothing.")] = False,
) -> None:
    """Check a server from end to end: one chat is asked, rated, taken back and erased. Exit code 1: something fails."""
    session = session_of(ctx, as_json)
    with session.client() as client:
        checks = examine(client, read_only=read_only)
    if session.as_json:
        typer.echo(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        for check in checks:
            typer.echo(check.line())
    if any(check.ok is False for check in checks):
        raise typer.Exit(REFUSED)


def examine(client: "Plaudit", *, read_only: bool = False) -> list[Check]:
    """All checks. Where the server cannot be reached, only those that need no server.

    Args:
        read_only: leave out those that chat and vote.
    """
    checks = _local_checks() if client.endpoint.local else []
    began = datetime.now(UTC)
    reached, health = _server(client)
    if health is None:
        return [reached, *checks]
    clock = _clock(health, began, datetime.now(UTC))
    asked: list[tuple[str, Callable[[], Check]]] = [
        ("key", lambda: _key(client)),
        ("engine", lambda: _engine(client.ready())),
        ("stable version", lambda: _stable(client, client.ready().stable)),
        ("trainer", lambda: _trainer(client, health)),
    ]
    told = [_guarded(name, ask) for name, ask in asked]
    tried = [] if read_only else _tried(attempt(client))
    return [reached, _releases(health), clock, *told, *tried, *checks]


def _guarded(name: str, ask: Callable[[], Check]) -> Check:
    from plaudit import AuthenticationError, PermissionDeniedError, PlauditError

    try:
        return ask()
    except (AuthenticationError, PermissionDeniedError) as error:
        return Check(name, None, one_line(error), "use a key with the viewer role to check this")
    except PlauditError as error:
        return Check(name, False, one_line(error), "look into the server's log")


def _server(client: "Plaudit") -> tuple[Check, "Health | None"]:
    from plaudit import PlauditError

    address = client.endpoint.base_url
    try:
        health = client.health()
    except PlauditError as error:
        return Check("server", False, one_line(error), "start it (`make run`), or set PLAUDIT_URL"), None
    return Check("server", True, f"{address}, up for {health.uptime_s:.0f} s"), health


def _releases(health: "Health") -> Check:
    same = health.release.split(".")[:2] == __version__.split(".")[:2]
    mend = "install the same release of plaudit on both sides"
    return Check("releases", same, f"server {health.release}, client {__version__}", mend)


def _clock(health: "Health", asked: datetime, answered: datetime) -> Check:
    """The server's clock against this machine's, as exact as half a round trip."""
    if health.now is None:
        return Check("clock", None, "the server does not tell its time", "install the same release on both sides")
    skew_s = (health.now - (asked + (answered - asked) / 2)) / timedelta(seconds=1)
    detail = f"the server's is {abs(skew_s):.2f} s {'ahead' if skew_s > 0 else 'behind'}"
    mend = "set the clock on both machines (NTP)"
    return Check("clock", abs(skew_s) <= CLOCK_SKEW_S, detail, mend, {"skew_seconds": round(skew_s, 3)})


def _key(client: "Plaudit") -> Check:
    from plaudit import AuthenticationError, NotFoundError

    source = client.endpoint.key_source
    try:
        own = client.keys.own()
    except AuthenticationError as error:
        return Check("key", False, one_line(error), "set PLAUDIT_API_KEY, or run where data/admin.key is")
    except NotFoundError:
        return Check("key", None, f"from {source}; the server does not tell its roles", "upgrade the server")
    return Check("key", True, f"{own.name} (from {source}) with {', '.join(own.roles)}")


def _engine(ready: "Health") -> Check:
    if ready.fake_engine:
        return Check("engine", False, "the FAKE engine answers: nonsense, for tests only", "unset PLAUDIT_ENGINE")
    detail = "; ".join(_replica(one) for one in ready.replicas) or "no replica"
    states = {one.state for one in ready.replicas}
    if ready.engine == "ready" and "down" not in states:
        all_ready = None if "starting" in states else True
        return Check("engine", all_ready, detail, "wait: a replica is starting")
    mend = "wait: it is starting" if ready.engine == "starting" else "look into the engine's log in the data folder"
    return Check("engine", False, f"{ready.engine} ({detail})", mend)


def _replica(one: "ReplicaHealth") -> str:
    restarts = f", {one.restarts} restarts" if one.restarts else ""
    return f"{one.replica}: {one.detail or one.state}{restarts}"


def _stable(client: "Plaudit", stable: str | None) -> Check:
    if stable is None:
        return Check("stable version", False, "none", "wait for the engine, or promote a version")
    if stable == "base":
        return Check("stable version", True, "base, which needs no proof")
    version = client.versions.get(stable)
    mend = "roll back: `plaudit rollback`"
    if version.tainted:
        return Check("stable version", False, f"{stable} learnt from data that was erased since", mend)
    if version.state == "ready" and version.proof is not None and version.proof.passed:
        return Check("stable version", True, f"{stable}, proven {version.proof.checked_at:%Y-%m-%d %H:%M} UTC")
    return Check("stable version", False, f"{stable} is {version.state} and not proven", mend)


def _trainer(client: "Plaudit", health: "Health") -> Check:
    seen = health.trainer_seen_at
    newest = client.training.runs(limit=1).data
    if seen is None and newest and newest[0].state == "running":
        seen = newest[0].updated_at
    if seen is None:
        detail = f"silent; its last run was {newest[0].state}" if newest else "silent; no run yet"
        return Check("trainer", None, detail, "see that it runs; it reports once it leases a batch")
    silent_s = ((health.now or datetime.now(UTC)) - seen).total_seconds()
    return Check("trainer", silent_s <= TRAINER_SILENT_S, f"heard {max(0.0, silent_s):.0f} s ago", "start it again")


def _tried(trial: Trial) -> list[Check]:
    """What the trial showed of chat, vote and store."""
    return [_chat(trial), _vote(trial), _store(trial)]


def _chat(trial: Trial) -> Check:
    if error := trial.errors.get("chat"):
        return _failed("chat", error, "chat", "see the checks of engine and stable version")
    figures = {"seconds": round(trial.seconds, 3)}
    if trial.first_token_s is None:
        return Check("chat", False, f"{trial.version} answered without a word", "look into the engine's log", figures)
    figures["first_token_seconds"] = round(trial.first_token_s, 3)
    kept = "" if trial.erased else "; the key may not erase the answer: it stays, and is not learnt from"
    detail = (
        f"{trial.version} answered in {trial.seconds:.2f} s, its first word after {trial.first_token_s:.2f} s{kept}"
    )
    return Check("chat", True, detail, figures=figures)


def _vote(trial: Trial) -> Check:
    if trial.errors.get("chat"):
        return Check("vote", None, "there is no answer to vote on", "mend the chat first")
    if error := trial.errors.get("vote"):
        return _failed("vote", error, "feedback", "free space for the data folder; look into the server's log")
    if not trial.retracted:
        return Check("vote", False, "accepted, but not taken back when asked to", "look into the server's log")
    figures = {"seconds": round(trial.vote_s, 3)}
    return Check("vote", True, f"durable after {trial.vote_s * 1000:.0f} ms, and taken back", figures=figures)


def _store(trial: Trial) -> Check:
    if trial.vote is None:
        return Check("store", None, "nothing was written that could be read back", "mend the vote first")
    if error := trial.errors.get("store"):
        return _failed("store", error, "viewer", "look into the server's log")
    same = trial.read_back is not None and trial.read_back.retracted and trial.read_back.id == trial.vote.id
    detail = "the vote reads back as it was written" if same else "the vote does not read back as it was written"
    return Check("store", same, detail, "look into the server's log; is another database behind another gateway?")


def _failed(name: str, error: "PlauditError", role: str, mend: str) -> Check:
    """A step of the trial that raised: undecided where the key's roles do not allow to try."""
    from plaudit import AuthenticationError, PermissionDeniedError

    if isinstance(error, AuthenticationError | PermissionDeniedError):
        return Check(name, None, one_line(error), f"use a key with the {role} role to check this")
    return Check(name, False, one_line(error), mend)


def _local_checks() -> list[Check]:
    from plaudit._config import data_folder

    folder = data_folder()
    if not folder.is_dir():
        return [Check("data folder", None, f"{folder} is not here", "run where the server runs, or set PLAUDIT_DATA")]
    return [_writable(folder), _free(folder)]


def _writable(folder: Path) -> Check:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"plaudit")
    except OSError as error:
        return Check("data folder", False, f"{folder}: {error.strerror}", "free some space, or mend its permissions")
    return Check("data folder", True, f"{folder} is writable")


def _free(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free
    detail = f"{free / (1 << 30):.1f} GiB free at {folder}"
    return Check("disk", free >= FREE_BYTES_NEEDED, detail, "free at least 1 GiB, or move PLAUDIT_DATA")

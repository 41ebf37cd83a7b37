"""`plaudit doctor`: what is wrong, and what mends it."""

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from plaudit import __version__
from plaudit.cli._session import REFUSED, JsonFlag, one_line, printable, session_of

if TYPE_CHECKING:
    from plaudit import Plaudit
    from plaudit.wire.ops import Health

FREE_BYTES_NEEDED = 1 << 30
TRAINER_SILENT_S = 900.0


@dataclass(frozen=True, slots=True)
class Check:
    """One line. `ok` is None where it could not be told."""

    name: str
    ok: bool | None
    detail: str
    mend: str = ""

    def line(self) -> str:
        """The check as a line for the terminal."""
        mark = {True: "ok  ", False: "FAIL", None: "?   "}[self.ok]
        mend = f" Mend: {self.mend}" if self.mend and self.ok is not True else ""
        return printable(f"{mark}  {self.name}: {self.detail}{mend}")


def doctor(ctx: typer.Context, as_json: JsonFlag = False) -> None:
    """Check server, key, engine, stable version, trainer, data folder and releases."""
    session = session_of(ctx, as_json)
    with session.client() as client:
        checks = examine(client)
    if session.as_json:
        typer.echo(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        for check in checks:
            typer.echo(check.line())
    if any(check.ok is False for check in checks):
        raise typer.Exit(REFUSED)


def examine(client: "Plaudit") -> list[Check]:
    """All checks. Where the server cannot be reached, only those that need no server."""
    checks = _local_checks() if client.endpoint.local else []
    reached, health = _server(client)
    if health is None:
        return [reached, *checks]
    asked: list[tuple[str, Callable[[], Check]]] = [
        ("key", lambda: _key(client)),
        ("engine", lambda: _engine(client.ready())),
        ("stable version", lambda: _stable(client, client.ready().stable)),
        ("trainer", lambda: _trainer(client, health)),
    ]
    return [reached, _releases(health), *(_guarded(name, ask) for name, ask in asked), *checks]


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


def _key(client: "Plaudit") -> Check:
    from plaudit import AuthenticationError, PermissionDeniedError

    source = client.endpoint.key_source
    try:
        client.chat.models()
    except PermissionDeniedError:
        return Check("key", True, f"known (from {source}), but without the chat role")
    except AuthenticationError as error:
        return Check("key", False, one_line(error), "set PLAUDIT_API_KEY, or run where data/admin.key is")
    return Check("key", True, f"from {source}")


def _engine(ready: "Health") -> Check:
    if ready.fake_engine:
        return Check("engine", False, "the FAKE engine answers: nonsense, for tests only", "unset PLAUDIT_ENGINE")
    if ready.engine == "ready":
        return Check(
            "engine", True, f"{len(ready.replicas)} replica(s), {sum(r.restarts for r in ready.replicas)} restarts"
        )
    detail = "; ".join(f"{r.replica}: {r.detail or r.state}" for r in ready.replicas) or "no replica"
    mend = "wait: it is starting" if ready.engine == "starting" else "look into the engine's log in the data folder"
    return Check("engine", False, f"{ready.engine} ({detail})", mend)


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
    silent_s = (datetime.now(UTC) - seen).total_seconds()
    return Check("trainer", silent_s <= TRAINER_SILENT_S, f"heard {max(0.0, silent_s):.0f} s ago", "start it again")


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

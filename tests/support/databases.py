"""Databases for tests: an SQLite file, or a database of its own on a real PostgreSQL, as the test's parameter says.

The PostgreSQL server is the one that `PLAUDIT_TEST_POSTGRES` names (a URL with the right to create databases), or one
that is started here from the installed package, in a temporary folder on a Unix socket, once for the whole run.
"""

import asyncio
import fcntl
import hashlib
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import asyncpg
from sqlalchemy import make_url

from plaudit_server.store import migrate
from plaudit_server.store.database import Database, sqlite_url

RUN = "TESTS_RUN"
"""Environment variable that the process at the root of a run of tests leaves for its workers: its id."""

HOW = (
    "no PostgreSQL: apt-get install -y postgresql, or set PLAUDIT_TEST_POSTGRES to the URL of a server, "
    "such as postgresql://postgres:secret@127.0.0.1:5432/postgres, where databases may be created"
)
_FAST = ("fsync=off", "full_page_writes=off", "synchronous_commit=on", "max_connections=300", "shared_buffers=64MB")
_MIGRATIONS = sorted((Path(migrate.__file__).parent / "migrations" / "versions").glob("*.py"))
_TEMPLATE = "plaudit_template_" + hashlib.sha256(b"".join(path.read_bytes() for path in _MIGRATIONS)).hexdigest()[:8]


@dataclass
class Databases:
    """Where the tests of one process keep their data."""

    kind: str = "sqlite"
    made: dict[Path, str] = field(default_factory=dict)

    def url(self, folder: Path) -> str:
        """The database that belongs to a folder: the same again for the same folder."""
        if self.kind == "sqlite":
            return sqlite_url(folder / "plaudit.db")
        if folder not in self.made:
            raise LookupError(f"await databases.ready({folder}) first")
        return self.made[folder]

    async def ready(self, folder: Path) -> str:
        """As `url`; on PostgreSQL the database is made, already migrated, where it is not there yet."""
        if self.kind == "postgres" and folder not in self.made:
            self.made[folder] = await asyncio.to_thread(lambda: asyncio.run(_create(server_url())))
        return self.url(folder)

    async def empty(self, folder: Path) -> str:
        """A new PostgreSQL database without any table."""
        self.made[folder] = await asyncio.to_thread(lambda: asyncio.run(_create(server_url(), "template0")))
        return self.made[folder]

    async def drop(self) -> None:
        """Remove what this test made."""
        urls, self.made = list(self.made.values()), {}
        if urls:
            await asyncio.to_thread(lambda: asyncio.run(_drop(server_url(), urls)))


current = Databases()
"""What the test that runs now uses; `tests/conftest.py` sets it."""


def server_url() -> str | None:
    """The server for this run, started if need be; None where there is none."""
    given = os.environ.get("PLAUDIT_TEST_POSTGRES")
    return given or started(_FAST)


def new_database(server: str) -> str:
    """The URL of a new, migrated database on a server. Not to be called from a running loop."""
    return asyncio.run(_create(server))


def started(settings: Sequence[str]) -> str | None:
    """A server of this run's own, started if need be with these settings; None where the programs are missing."""
    found = programs()
    if found is None:
        return None
    run = os.environ.setdefault(RUN, str(os.getpid()))
    folder = Path(tempfile.gettempdir()) / f"plaudit-pg-{run}"
    lock = Path(tempfile.gettempdir()) / f"plaudit-pg-{run}.lock"
    with lock.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not (folder / "ready").exists():
            _start(found, folder, int(run), settings)
            (folder / "ready").touch()
    return f"postgresql://plaudit@/postgres?host={folder}"


def programs() -> Path | None:
    """The newest installed server's programs."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    onto_path = shutil.which("initdb")
    if found:
        return found[-1].parent
    return Path(onto_path).resolve().parent if onto_path else None


def _start(found: Path, folder: Path, run: int, settings: Sequence[str]) -> None:
    folder.mkdir(mode=0o755)
    user = None
    if os.getuid() == 0:  # the server refuses to run as root
        user = "postgres"
        os.chown(folder, pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid)
    data = folder / "data"
    made = [found / "initdb", "-D", data, "-U", "plaudit", "-A", "trust", "--no-sync"]
    subprocess.run([*made, "--locale=C.UTF-8", "-E", "UTF8"], user=user, check=True, capture_output=True, cwd=folder)
    command = [str(found / "postgres"), "-D", str(data), "-k", str(folder), "-c", "listen_addresses="]
    for setting in settings:
        command += ["-c", setting]
    keeper = [sys.executable, "-m", "tests.support.postgres_keeper", str(folder), str(run), user or ""]
    subprocess.run([*keeper, *command], check=True, start_new_session=True, cwd=Path(__file__).parents[2])
    deadline = time.monotonic() + 30
    while not _answers(found, folder):
        if time.monotonic() > deadline:
            raise RuntimeError(f"PostgreSQL does not start: {(folder / 'log').read_text()}")
        time.sleep(0.05)


def _answers(found: Path, folder: Path) -> bool:
    return subprocess.run([found / "pg_isready", "-q", "-h", folder], check=False).returncode == 0


async def _create(server: str | None, template: str = _TEMPLATE) -> str:
    """A new database: unless told otherwise a copy of one that is migrated."""
    assert server is not None
    name = f"plaudit_{uuid4().hex[:16]}"
    conn = await asyncpg.connect(server)
    try:
        # One at a time: a template that somebody else copies or makes cannot be copied.
        await conn.execute("SELECT pg_advisory_lock(1)")
        if not await conn.fetchval("SELECT 1 FROM pg_database WHERE datname = $1 AND datistemplate", template):
            await _make_template(conn, server)
        await conn.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    finally:
        await conn.close()
    return _on(server, name)


async def _make_template(conn: asyncpg.Connection, server: str) -> None:
    await conn.execute(f"DROP DATABASE IF EXISTS {_TEMPLATE}")
    await conn.execute(f"CREATE DATABASE {_TEMPLATE} TEMPLATE template0 ENCODING 'UTF8'")
    made = await Database.open(_on(server, _TEMPLATE))
    await made.close()
    await conn.execute(f"ALTER DATABASE {_TEMPLATE} IS_TEMPLATE true")


async def _drop(server: str | None, urls: list[str]) -> None:
    assert server is not None
    conn = await asyncpg.connect(server)
    try:
        for url in urls:
            await conn.execute(f"DROP DATABASE IF EXISTS {make_url(url).database} WITH (FORCE)")
    finally:
        await conn.close()


def _on(server: str, name: str) -> str:
    return make_url(server).set(database=name).render_as_string(hide_password=False)

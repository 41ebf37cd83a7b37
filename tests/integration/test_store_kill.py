"""Nothing acknowledged is lost: a writing process is killed at random moments, and the database opened again."""

import asyncio
import os
import random
import signal
import sqlite3
import sys
from pathlib import Path

from plaudit_server.store import feedback
from plaudit_server.store.database import Database
from tests.support.databases import current
from tests.support.store_rows import open_store

ROOT = Path(__file__).resolve().parents[2]
KILLS = 4


async def _write_until_killed(url: str, seed: int) -> set[str]:
    """Names that the child saw acknowledged before it died."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.support.store_writer_child",
        url,
        str(seed),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    assert child.stdout is not None
    assert await child.stdout.readline() == b"ready\n"
    await asyncio.sleep(random.Random(seed).uniform(0.1, 0.6))
    os.kill(child.pid, signal.SIGKILL)
    printed = (await child.stdout.read()).decode()
    assert await child.wait() == -signal.SIGKILL
    return {line for line in printed[: printed.rfind("\n") + 1].splitlines() if line}


async def _stored(database: Database) -> set[str]:
    rows = await database.read(lambda conn: feedback.page(conn, limit=1_000_000))
    return {row.response_id for row in rows.items}


async def test_every_acknowledged_vote_survives_kill_9(tmp_path: Path, database_kind: str) -> None:
    url, acknowledged = await current.ready(tmp_path), set[str]()
    for seed in range(KILLS):
        acknowledged |= await _write_until_killed(url, seed)
        async with open_store(tmp_path) as database:
            assert acknowledged - await _stored(database) == set()
    assert len(acknowledged) > KILLS * 5
    if database_kind == "sqlite":
        assert _integrity(tmp_path / "plaudit.db") == "ok"


def _integrity(path: Path) -> str:
    connection = sqlite3.connect(path)
    (word,) = connection.execute("PRAGMA integrity_check").fetchone()
    connection.close()
    return str(word)

"""`kill -9` between an answer and its row: no acknowledged vote is lost, nor the answer it is about."""

import asyncio
import os
import random
import signal
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


async def killed(folder: Path, after: int, seed: int) -> list[tuple[str, str]]:
    """What the child said before it died, in order."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.support.chat_vote_child", str(folder)),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    assert child.stdout is not None
    lines = [await child.stdout.readline() for _ in range(after)]
    await asyncio.sleep(random.Random(seed).uniform(0, 0.05))
    os.kill(child.pid, signal.SIGKILL)
    rest = await child.stdout.read()
    assert await child.wait() == -signal.SIGKILL
    printed = b"".join(lines) + rest[: rest.rfind(b"\n") + 1]
    return [(what, response_id) for what, response_id in map(str.split, printed.decode().splitlines())]


def ids(folder: Path, query: str) -> set[str]:
    with closing(sqlite3.connect(folder / "data" / "plaudit.db")) as connection:
        return {row[0] for row in connection.execute(query)}


@pytest.mark.parametrize("seed", range(3))
async def test_a_vote_is_never_lost_and_an_answer_only_at_the_very_end(tmp_path: Path, seed: int) -> None:
    said_and_voted = await killed(tmp_path, 40 + seed, seed)
    voted = {response_id for what, response_id in said_and_voted if what == "voted"}
    said = [response_id for what, response_id in said_and_voted if what == "said"]
    answers, votes = ids(tmp_path, "select id from interactions"), ids(tmp_path, "select response_id from feedback")
    assert len(voted) >= 8
    assert voted <= votes and voted <= answers
    # A vote has everything before it written, so at most what came after the last one is gone.
    assert set(said[: said.index([i for w, i in said_and_voted if w == "voted"][-1])]) <= answers

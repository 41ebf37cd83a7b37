"""A process that writes votes for ever and says which were acknowledged; a test kills it.

Run with the database's path and a seed. Prints `ready`, then each acknowledged name on a line of its own.
"""

import asyncio
import sys
from pathlib import Path

from plaudit_server.store import feedback
from plaudit_server.store.database import Database, sqlite_url
from tests.support.store_rows import a_vote


async def main(path: Path, seed: str) -> None:
    """Keep eight writes under way at a time."""
    database = await Database.open(sqlite_url(path))
    print("ready", flush=True)
    await asyncio.gather(*(_write_on(database, f"{seed}-{lane}") for lane in range(8)))


async def _write_on(database: Database, lane: str) -> None:
    count = 0
    while True:
        name = f"chatcmpl-{lane}-{count}"
        await database.write(lambda conn, name=name: feedback.put(conn, a_vote(name)))
        print(name, flush=True)
        count += 1


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))

"""A process that writes votes for ever and says which were acknowledged; a test kills it.

Run with the database's URL and a seed. Prints `ready`, then each acknowledged name on a line of its own.
"""

import asyncio
import sys

from plaudit_server.store import feedback
from plaudit_server.store.database import Database
from tests.support.store_rows import a_vote


async def main(url: str, seed: str) -> None:
    """Keep eight writes under way at a time."""
    database = await Database.open(url)
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
    asyncio.run(main(sys.argv[1], sys.argv[2]))

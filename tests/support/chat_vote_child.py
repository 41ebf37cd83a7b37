"""A server with the fake engine that is chatted with and voted on for ever; a test kills it.

Prints `said ID` once an answer was given and `voted ID` once a vote on it was acknowledged.
"""

import asyncio
import sys
from pathlib import Path

from tests.support.server import serving


async def main(folder: Path) -> None:
    """Three chats, then a vote on the last of them."""
    async with serving(folder) as server:
        while True:
            for _ in range(3):
                response_id = (await server.chat())["id"]
                print("said", response_id, flush=True)
            if (await server.vote(response_id)).status_code == 201:
                print("voted", response_id, flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))

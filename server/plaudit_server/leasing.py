"""How a worker gets a batch: what can be learnt from is looked for beside the writers, then taken in one short write.

A search takes as long as much waits. While a write runs, nothing else is written: votes and answers would wait as long.
"""

from functools import partial

from plaudit.wire.training import LeaseRequest
from plaudit_server.domain.records import BatchData
from plaudit_server.store import leases
from plaudit_server.store.database import Database


async def take(database: Database, request: LeaseRequest, *, now_ms: int) -> BatchData:
    """Lease the oldest records that can be learnt from; or the same batch again to a worker that still holds one."""
    if await database.read(lambda conn: leases.lapsed(conn, now_ms)):
        await database.write(lambda conn: leases.expire(conn, now_ms))
    while True:  # whoever was outrun looks again: somebody else got a batch each time
        found = await database.read(lambda conn: leases.survey(conn, request.max_records))
        batch = await database.write(partial(leases.lease, request=request, found=found, now_ms=now_ms))
        if batch is not None:
            return batch

"""Does the store stay as quick as it grows? Votes, answers, leases, lists and lineage on SQLite and PostgreSQL.

    python -m benchmarks.store [--quick] [--sizes 10000,100000,1000000] [--ten-million] [--databases sqlite,postgres]
                               [--postgres URL] [--folder FOLDER]

Loads a history of that many answers (a third voted on, a tenth without consent, events on a twentieth, all but a
backlog of 1,000 votes consumed by batches of 256), times each operation on it, and goes on to the next size. Operations
run one after another, durably (fsync on); before each lease come eight votes that it may not learn from. Prints a table
and the machine, and writes benchmarks/results/store.json.

Without --postgres a server is started from the installed package, with its defaults but for 512 MB of shared buffers.
"""

import argparse
import asyncio
import os
import random
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Table, insert, text, update

from benchmarks.report import machine, write_result
from plaudit.wire.training import FailRequest, LeaseRequest
from plaudit_server import leasing
from plaudit_server.domain.ids import new_id
from plaudit_server.domain.moments import now_ms
from plaudit_server.domain.records import NewFeedback
from plaudit_server.store import feedback, interactions, leases, versions
from plaudit_server.store import tables as t
from plaudit_server.store.database import Database, Op, sqlite_url
from tests.support import databases
from tests.support.store_rows import a_vote, an_interaction

BATCH = 256
BACKLOG = 1000
CHUNK = 4096
TIMED = ("insert", "vote", "lease", "list", "list_by_version", "list_by_user", "lineage")
_SERVER = ("shared_buffers=512MB",)


@dataclass
class History:
    """What has been loaded: answers, and how far training has come with them."""

    database: Database
    rng: random.Random
    answers: int = 0
    voted: list[str] = field(default_factory=list)
    sample: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    version: str = "base"
    number: int = 0

    async def grow(self, size: int) -> None:
        """Load answers up to `size`; all votes but the newest are consumed."""
        while self.answers < size:
            count = min(CHUNK, size - self.answers)
            votes: list[dict[str, Any]] = []
            await self._insert(t.interactions, [self._answer(votes) for _ in range(count)])
            self.answers += count
            await self._insert(t.feedback, votes)
            await self._insert(t.events, [self._event() for _ in range(count // 20)])
            await self._consume(keep=BACKLOG)
            if self.answers % 1_000_000 < count:
                print(f"  {self.answers:,} of {size:,} answers", flush=True)
        if self.database.shared:  # autovacuum would do it within a minute
            await self.database.write(lambda conn: conn.execute(text("ANALYZE")))

    def _answer(self, votes: list[dict[str, Any]]) -> dict[str, Any]:
        user = f"eu_{self.rng.randrange(1 + self.answers // 20)}"
        consent = self.rng.random() > 0.1
        status = "complete" if self.rng.random() > 0.03 else "aborted"
        made = an_interaction(
            created_at_ms=now_ms(),
            version=self.version,
            end_user=user,
            prompt_key=f"pk_{self.rng.randrange(1 + self.answers // 4)}",
            train_consent=consent,
            status=status,
            text="A sentence or two of an answer, as long as short ones are. " * 4,
        )
        row = {name: getattr(made, name) for name in type(made).__slots__}
        row["created_at"] = row.pop("created_at_ms")
        if self.rng.random() < 1 / 3:
            teaches = consent and status == "complete"
            votes.append(_vote_row(made.id, user, self.version, self.rng) | {"spent": not teaches})
            if teaches:
                self.voted.append(made.id)
        if not consent and len(self.refused) < 2000:
            self.refused.append(made.id)
        if len(self.sample) < 20_000:
            self.sample.append(made.id)
        else:
            self.sample[self.rng.randrange(20_000)] = made.id
        return row

    async def _consume(self, keep: int = 0) -> None:
        """Batches, versions and consumptions of everything that waits, but for the newest `keep`."""
        while len(self.voted) >= keep + BATCH:
            taken, self.voted = self.voted[:BATCH], self.voted[BATCH:]
            parent, self.number = self.version, self.number + 1
            self.version = f"v{self.number}"
            await self.database.write(_consumption(taken, self.version, self.number, parent))

    def _event(self) -> dict[str, Any]:
        """A tenth are regenerations; half of these were learnt from, the others never can be."""
        sent_back, kept = self.rng.sample(self.sample, 2)
        event = {"id": new_id("evt_"), "response_id": sent_back, "new_response_id": kept, "end_user": None}
        kind = {"type": "copy", "spent": False}
        if self.rng.random() < 0.1:
            kind = {"type": "regenerate", "spent": self.rng.random() < 0.5}
        return {**event, **kind, "occurred_at": now_ms(), "received_at": now_ms()}

    async def _insert(self, table: Table, rows: list[dict[str, Any]]) -> None:
        if rows:
            await self.database.write(lambda conn: conn.execute(insert(table), rows))


def _consumption(taken: list[str], version: str, number: int, parent: str) -> Op[None]:
    batch_id, now = new_id("batch_"), now_ms()

    async def consume(conn: Any) -> None:
        await conn.execute(insert(t.batches).values(_batch_row(batch_id, version, now)))
        used = [{"item_id": item, "batch_id": batch_id, "at": now} for item in taken]
        await conn.execute(insert(t.consumptions), used)
        answer, said = t.interactions, t.feedback
        await conn.execute(update(answer).where(answer.c.id.in_(taken)).values(consumed_by=batch_id))
        await conn.execute(update(said).where(said.c.response_id.in_(taken)).values(spent=True))
        await conn.execute(insert(t.versions).values(_version_row(version, number, parent, now)))

    return consume


def _vote_row(response_id: str, user: str, version: str, rng: random.Random) -> dict[str, Any]:
    now = now_ms()
    return {
        "id": new_id("fb_"),
        "response_id": response_id,
        "key": "thumb",
        "end_user": user,
        "value": rng.choice((1.0, -1.0)),
        "tags": [],
        "comment": None,
        "correction": None,
        "source": "user",
        "occurred_at": now,
        "received_at": now,
        "version": version,
        "revision": 1,
        "retracted": False,
        "trainable": True,
        "spent": False,
    }


def _batch_row(batch_id: str, version: str, now: int) -> dict[str, Any]:
    counts = {"records": BATCH, "up": BATCH // 2, "down": BATCH // 2, "comparisons": 0, "dropped": {}}
    lease = {"worker": "loader", "held_by": None, "state": "consumed", "created_at": now, "lease_expires_at": now}
    return {"id": batch_id, "version": version, **lease, **counts}


def _version_row(name: str, number: int, parent: str, now: int) -> dict[str, Any]:
    made = {"name": name, "number": number, "state": "retired", "parent": parent, "created_at": now}
    return {**made, "location": f"/srv/{name}", "records": BATCH, "metrics": {}, "tainted": False}


async def measure(history: History, repeats: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each operation, p50 and p99."""
    database, rng = history.database, history.rng
    users = iter(range(10**9))

    async def add(_: int) -> None:
        made = an_interaction(created_at_ms=now_ms(), version=history.version, end_user=f"eu_{rng.randrange(500)}")
        await database.write(lambda conn: interactions.add(conn, made), touching=[made.id])

    async def vote(_: int) -> None:
        new = a_vote(
            rng.choice(history.sample), end_user=f"new_{next(users)}", occurred_at_ms=now_ms(), received_at_ms=now_ms()
        )

        async def put(conn: Any) -> None:
            await interactions.fate(conn, new.response_id)
            await feedback.put(conn, new)

        await database.write(put, touching=[new.response_id])

    async def listed(**wanted: Any) -> None:
        await database.read(lambda conn: interactions.page(conn, limit=20, **wanted))

    operations: dict[str, Callable[[int], Awaitable[None]]] = {
        "insert": add,
        "list": lambda _: listed(),
        "list_by_version": lambda _: listed(version=f"v{rng.randrange(1, max(2, history.number))}"),
        "list_by_user": lambda _: listed(end_user=f"eu_{rng.randrange(1 + history.answers // 20)}"),
        "lineage": lambda _: _lineage(database, history.version),
    }
    first = await _lease(database, "first")
    figures = {name: await _time(operation, repeats) for name, operation in operations.items()}
    figures["lease"] = await _time_leases(history, max(repeats // 4, 10))
    # Last, and on old answers mostly: these votes change nothing that a lease looks at.
    figures["vote"] = await _time(vote, repeats)
    figures["first_lease"] = {"p50": first, "p99": first}
    return figures


async def _lineage(database: Database, version: str) -> None:
    await database.read(lambda conn: versions.lineage(conn, version))


async def _lease(database: Database, worker: str) -> float:
    """Milliseconds of one lease; the batch is given back."""
    request = LeaseRequest(worker=worker, min_records=64, max_records=BATCH, lease_seconds=600)
    began = time.perf_counter()
    batch = await leasing.take(database, request, now_ms=now_ms())
    took = (time.perf_counter() - began) * 1000
    assert batch.id is not None, batch.reason
    assert len(batch.records) == BATCH
    done = FailRequest(worker=worker, reason="benchmark")
    await database.write(lambda conn: leases.fail(conn, batch.id or "", done, now_ms=now_ms()))
    return took


async def _time_leases(history: History, repeats: int) -> dict[str, float]:
    took = []
    for number in range(repeats):
        for vote in _passed_over(history, f"rater-{history.answers}-{number}"):
            await history.database.write(lambda conn, vote=vote: feedback.put(conn, vote))
        took.append(await _lease(history.database, f"bench-{number}"))
    return _percentiles(took)


def _passed_over(history: History, user: str) -> Iterator[NewFeedback]:
    """Votes that a lease has to look at and may not learn from: without consent, too late, taken back."""
    now, rng = now_ms(), history.rng
    about: dict[str, Any] = {"end_user": user, "occurred_at_ms": now, "received_at_ms": now}
    for answer in rng.sample(history.refused, 4):
        yield a_vote(answer, **about)
    for answer in rng.sample(history.sample, 2):
        yield a_vote(answer, max_age_ms=-1, **about)
    for answer in rng.sample(history.sample, 2):
        yield a_vote(answer, **about)
        yield a_vote(answer, None, retracts=True, **about)


async def _time(operation: Callable[[int], Awaitable[None]], repeats: int) -> dict[str, float]:
    took = []
    for number in range(repeats):
        began = time.perf_counter()
        await operation(number)
        took.append((time.perf_counter() - began) * 1000)
    return _percentiles(took)


def _percentiles(took: list[float]) -> dict[str, float]:
    took = sorted(took)
    return {"p50": round(took[len(took) // 2], 3), "p99": round(took[min(len(took) - 1, len(took) * 99 // 100)], 3)}


async def run(name: str, url: str, sizes: list[int], repeats: int) -> dict[str, Any]:
    """One database through all sizes."""
    database = await Database.open(url)
    history = History(database, random.Random(1))
    by_size: dict[str, Any] = {}
    for size in sizes:
        began = time.perf_counter()
        await history.grow(size)
        loaded = time.perf_counter() - began
        print(f"{name}: {size:,} answers, loaded in {loaded:.0f} s; timing", flush=True)
        by_size[str(size)] = await measure(history, repeats)
        _show(name, size, by_size[str(size)])
    await database.close()
    small, large = by_size[str(sizes[0])], by_size[str(sizes[-1])]
    growth = {f"{op}_p99_growth": round(large[op]["p99"] / small[op]["p99"], 2) for op in TIMED}
    growth |= {f"{op}_p50_growth": round(large[op]["p50"] / small[op]["p50"], 2) for op in TIMED}
    print(f"{name}: growth of p99 { ({op: growth[f'{op}_p99_growth'] for op in TIMED}) }", flush=True)
    return {"sizes": by_size, **growth}


def _show(name: str, size: int, figures: dict[str, dict[str, float]]) -> None:
    cells = "  ".join(f"{op} {figures[op]['p50']:.2f}/{figures[op]['p99']:.2f}" for op in (*TIMED, "first_lease"))
    print(f"{name:<9} {size:>10,}  {cells}  (ms, p50/p99)", flush=True)


def main(options: argparse.Namespace) -> None:
    """Run what was asked for."""
    sizes = [int(size) for size in options.sizes.split(",")]
    if options.ten_million:
        sizes.append(10_000_000)
    repeats = 40 if options.quick else options.repeats
    if options.quick:
        sizes = [2_000, 10_000]
    figures: dict[str, Any] = {"sizes": sizes, "repeats": repeats}
    for name in options.databases.split(","):
        with _database(name, options) as url:
            figures[name] = asyncio.run(run(name, url, sizes, repeats))
    for op in ("lease", "vote"):
        worst = max(figures[name][f"{op}_p99_growth"] for name in options.databases.split(","))
        figures[f"{op}_p99_growth"] = worst
        print(f"{op}_p99_growth {worst} (aim ≤ 2)")
    print(machine())
    if not options.quick:
        print(f"written: {write_result('store', figures)}")


@contextmanager
def _database(name: str, options: argparse.Namespace) -> Iterator[str]:
    """The URL of an empty database. SQLite's file goes when it has been timed: of ten million answers it is 11 GB."""
    if name == "sqlite":
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            yield sqlite_url(Path(folder) / "plaudit.db")
        return
    os.environ["TESTS_RUN"] = str(os.getpid())
    server = options.postgres or databases.started(_SERVER)
    if server is None:
        raise SystemExit(databases.HOW.replace("set PLAUDIT_TEST_POSTGRES to", "give --postgres"))
    yield databases.new_database(server)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="2,000 and 10,000 answers; writes nothing")
    parser.add_argument("--sizes", default="10000,100000,1000000")
    parser.add_argument("--ten-million", action="store_true", help="ten million answers after the other sizes")
    parser.add_argument("--databases", default="sqlite,postgres")
    parser.add_argument("--postgres", help="URL of a server where a database may be made")
    parser.add_argument("--folder", type=Path, help="where the SQLite file lies; a temporary folder otherwise")
    parser.add_argument("--repeats", type=int, default=400)
    main(parser.parse_args())

"""What a process knows of aliases and versions."""

import asyncio
from typing import Any

from plaudit_server.catalog import Catalog
from plaudit_server.domain.records import AliasRow


class Slow:
    """A database whose readings take as long as is said, and show what was so when they began."""

    def __init__(self) -> None:
        self.stable, self.takes = "base", [0.02, 0.0]

    async def read(self, _: Any) -> Any:
        row = AliasRow("stable", self.stable, etag="e", updated_at_ms=0, actor="me", reason=None)
        await asyncio.sleep(self.takes.pop(0))
        return {"stable": row}, {"base": "ready", "v1": "ready"}, None, []


class Ready:
    def is_ready(self, version: str) -> bool:
        return True


async def test_an_older_reading_never_comes_after_a_newer_one() -> None:
    database: Any = Slow()
    engine: Any = Ready()
    catalog = Catalog(database, engine, wake=lambda: None)
    early = asyncio.create_task(catalog.refresh())
    await asyncio.sleep(0.005)
    database.stable = "v1"
    await asyncio.gather(early, catalog.refresh())
    assert catalog.stable == "v1"

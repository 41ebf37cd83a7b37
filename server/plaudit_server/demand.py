"""What the engine should hold, most needed first: what serves, what speaks, what was asked for by name."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from plaudit.wire.versions import AliasName
from plaudit_server.catalog import Catalog
from plaudit_server.domain.versions import BASE
from plaudit_server.engine.base import Engine

WANTED_S = 300.0
"""How long a version that was asked for by name stays resident after the last request for it."""

_SERVING_ORDER: tuple[AliasName, ...] = ("stable", "canary", "previous")


class Demand:
    """Who is needed.

    Args:
        max_resident: adapters the engine may hold at once; at least 2, a version and the one it is compared with.
    """

    def __init__(self, catalog: Catalog, engine: Engine, *, max_resident: int) -> None:
        self._catalog = catalog
        self._engine = engine
        self.max_resident = max_resident
        self._held: Counter[str] = Counter()
        self._expected: list[str] = []
        self._asked: dict[str, float] = {}
        self._pinned: dict[str, float] = {}

    def hold(self, version: str) -> None:
        """A request speaks with `version`: it stays resident."""
        self._held[version] += 1

    def release(self, version: str) -> None:
        """That request has ended."""
        self._held[version] -= 1
        if not self._held[version]:
            del self._held[version]

    def held(self) -> set[str]:
        """Versions that requests speak with now."""
        return set(self._held)

    @contextmanager
    def expecting(self, version: str) -> Iterator[None]:
        """While a version is about to serve, nothing takes its whole model's place."""
        self._expected.append(version)
        try:
            yield
        finally:
            self._expected.remove(version)

    def ask(self, version: str) -> None:
        """A request is for this version, which is ready."""
        self._asked[version] = time.monotonic()

    def pin(self, version: str) -> None:
        """A request named this version, so that its whole model is worth a replica for a while."""
        self._pinned[self._catalog.foundation(version)] = time.monotonic()

    def current(self) -> set[str]:
        """Versions that serve, are held or are resident: those that figures are kept of."""
        serving = {row.version for row in self._catalog.aliases.values()}
        return {BASE, *serving, *self._held, *self._engine.resident()}

    def foundations(self) -> list[str]:
        """Whole models that should be live, as many as there can be; base where none other is needed."""
        catalog = self._catalog
        rows = [row for by_name in (catalog.aliases, catalog.targets) for row in by_name.values()]
        serving = [row.version for row in rows if row.name != "previous"]
        loading = [name for name, state in catalog.states.items() if state == "loading" and catalog.is_adapter(name)]
        names = [*self._expected, catalog.stable, *serving, *self._held, *_latest(self._pinned), *loading]
        ready = [name for name in dict.fromkeys(map(catalog.foundation, names)) if catalog.is_ready(name)]
        return ready[: max(1, self._engine.capacity())] or [BASE]

    def adapters(self) -> list[str]:
        """Adapters that should be resident; none while no replica holds the base model."""
        if BASE not in self._engine.weights():
            return []
        catalog = self._catalog
        serving = [
            by_name[alias].version
            for by_name in (catalog.aliases, catalog.targets)
            for alias in _SERVING_ORDER
            if alias in by_name
        ]
        order = dict.fromkeys([*serving, *self._held, *_latest(self._asked), *catalog.newest_ready()])
        return [name for name in order if catalog.is_adapter(name)][: self.max_resident]


def _latest(asked: dict[str, float]) -> list[str]:
    """Names by their last request, the latest first; those of long ago are forgotten."""
    soon = time.monotonic() - WANTED_S
    for name in [name for name, at in asked.items() if at <= soon]:
        del asked[name]
    return sorted(asked, key=lambda name: -asked[name])

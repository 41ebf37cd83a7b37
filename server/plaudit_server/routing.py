"""Which version answers a request: proven and resident, or a refusal that says why not yet."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from plaudit.wire.chat import ModelCard
from plaudit_server.catalog import Catalog
from plaudit_server.demand import Demand
from plaudit_server.domain.traffic import Route, resolve
from plaudit_server.domain.versions import BASE
from plaudit_server.engine.base import Engine
from plaudit_server.errors import EngineUnavailable, NotFound

_SWAP_POLL_S = 0.02

SWAP_UNDER_WAY = "swap_under_way"
"""Code of the refusal of a chat whose whole model is about to be live."""


class Routing:
    """Routes requests to versions.

    Args:
        reasons: why the last proof failed of versions that are being loaded again.
        wake: called when the engine must be brought in line.
        swap_wait_s: how long a chat waits for a whole model that is being swapped in.
    """

    def __init__(
        self,
        catalog: Catalog,
        demand: Demand,
        engine: Engine,
        *,
        reasons: Mapping[str, str],
        wake: Callable[[], None],
        swap_wait_s: float,
    ) -> None:
        self._catalog = catalog
        self._demand = demand
        self._engine = engine
        self._reasons = reasons
        self._wake = wake
        self._swap_wait_s = swap_wait_s

    async def route(self, model: str, subject: str | None) -> Route:
        """The version that answers, proven and resident. What is not known here is looked for in the store once.

        While the whole model that is asked for is being swapped in, it is waited for; who it is may change meanwhile.

        Raises:
            NotFound: no such model.
            EngineUnavailable: it cannot answer now; the message says why. Another version is never put in its place.
        """
        try:
            return await self._route_in_time(model, subject)
        except NotFound:
            await self._catalog.refresh()
            return await self._route_in_time(model, subject)

    async def _route_in_time(self, model: str, subject: str | None) -> Route:
        deadline = time.monotonic() + self._swap_wait_s
        while True:
            try:
                return self._route(model, subject)
            except EngineUnavailable as error:
                if error.code != SWAP_UNDER_WAY or time.monotonic() >= deadline:
                    raise
            await asyncio.sleep(_SWAP_POLL_S)

    def _route(self, model: str, subject: str | None) -> Route:
        catalog = self._catalog
        targets: dict[str, str] = {name: row.version for name, row in catalog.aliases.items()}
        if model in ("policy", "policy@stable") and not catalog.is_ready(catalog.stable):
            raise EngineUnavailable(self._why_not(catalog.stable), code="stable_unproven", retry_after_s=30)
        route = resolve(model, aliases=targets, states=catalog.states, subject=subject, split=catalog.split)
        if route.arm == "canary" and not self._engine.is_ready(route.version):
            # Being loaded again: its users are not kept waiting, and these answers are no sample of either arm.
            self._wake()
            route = Route(catalog.stable, "stable")
        if route.arm == "pinned":
            self._demand.pin(route.version)
        self._require(route.version)
        return route

    @asynccontextmanager
    async def speaking(self, version: str) -> AsyncIterator[None]:
        """Keep a version resident while it is used.

        Raises:
            NotFound: there is no such version that is ready.
            EngineUnavailable: it cannot answer yet.
        """
        if not self._catalog.is_ready(version):
            await self._catalog.refresh()
        if not self._catalog.is_ready(version):
            raise NotFound(f"There is no ready version {version}.", code="version_not_ready", param="version")
        self._demand.pin(version)
        self._require(version)
        self._demand.hold(version)
        try:
            yield
        finally:
            self._demand.release(version)

    def _require(self, version: str) -> None:
        """Let a version that can answer pass; have any other loaded, if it may be."""
        if version != BASE and self._catalog.is_ready(version):
            self._demand.ask(version)
        if not self._engine.is_ready(version):
            self._wake()
            raise EngineUnavailable(
                self._why_not(version), code=SWAP_UNDER_WAY if self._is_coming(version) else "engine_unavailable"
            )

    def _is_coming(self, version: str) -> bool:
        """Whether the whole model that a version needs is not live on any replica, but is to be."""
        needed = self._catalog.foundation(version)
        if not self._engine.is_up() or needed in self._engine.weights() or not self._catalog.is_ready(version):
            return False
        return version == self._catalog.stable or needed in self._demand.foundations()

    def _why_not(self, version: str) -> str:
        if not self._engine.is_up():
            return "The engine is starting or down. Feedback is still accepted; chat again shortly."
        if self._catalog.states.get(version) == "failed":
            row = self._catalog.rows.get(version)
            why = self._reasons.get(version) or (row.reason if row else None) or "it could not be proven"
            return f"{version} serves, but could not be proven on the engine: {why}. Roll back (POST /v1/rollback)."
        needed, live = self._catalog.foundation(version), sorted(self._engine.weights())
        if needed not in live and version not in self._reasons:
            return (
                f"{version} needs the whole model {needed}, and a replica holds one at a time: "
                f"{', '.join(live) or 'none'} on {self._engine.capacity()} now."
            )
        if version in self._reasons:
            return f"{version} is being loaded again, since its last proof failed: {self._reasons[version]}."
        return f"{version} is being loaded and proven on the engine; chat again shortly."

    def answers(self) -> bool:
        """Whether a chat on `policy` would be answered, now or after the swap that is under way."""
        stable = self._catalog.stable
        return self._catalog.is_ready(stable) and (self._engine.is_ready(stable) or self._is_coming(stable))

    async def models(self) -> list[ModelCard]:
        """What a chat may name, read from the store: `policy`, the aliases, the ready versions newest first, base."""
        await self._catalog.refresh()
        aliases = {f"policy@{name}": row.version for name, row in self._catalog.aliases.items()}
        ready = {f"policy@{name}": name for name in self._catalog.newest_ready()}
        named = {"policy": self._catalog.stable} | aliases | ready
        return [self._card(model, version) for model, version in named.items()]

    async def model(self, name: str) -> ModelCard:
        """One of `models`. Raises NotFound."""
        for card in await self.models():
            if card.id == name:
                return card
        raise NotFound(f"There is no model {name[:64]!r}.", code="model_not_found", param="model")

    def _card(self, model: str, version: str) -> ModelCard:
        row = self._catalog.rows.get(version)
        created = row.created_at_ms // 1000 if row else 0
        return ModelCard(id=model, created=created, version=version, parent=row.parent if row else None)

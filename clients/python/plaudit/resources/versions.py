"""Policy versions and the names that traffic follows."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from plaudit._binding import D_co, Driver, Resource, endpoint, pages, procedure
from plaudit._core import Call, Flow, Pause, ask, encode, get, post, reader, segment
from plaudit.errors import VersionRefusedError, WaitTimeoutError
from plaudit.wire.base import Page
from plaudit.wire.versions import (
    Alias,
    AliasUpdate,
    GateReport,
    Lineage,
    PromoteRequest,
    Version,
    VersionCreate,
    VersionKind,
    VersionState,
)


class Versions(Resource[D_co]):
    """`client.versions`."""

    @endpoint
    def list(
        self, *, state: VersionState | None = None, limit: int | None = None, after: str | None = None
    ) -> Call[Page[Version]]:
        """Versions, newest first, those that were refused included."""
        return get("/v1/versions", Page[Version], state=state, limit=limit, after=after)

    iterate = pages(list)

    @endpoint
    def get(self, name: str) -> Call[Version]:
        """One version, with its gate and its proof."""
        return get(f"/v1/versions/{segment(name)}", Version)

    @endpoint
    def lineage(self, name: str) -> Call[Lineage]:
        """Where a version comes from."""
        return get(f"/v1/versions/{segment(name)}/lineage", Lineage)

    @endpoint
    def promote(self, name: str, reason: str | None = None) -> Call[Alias]:
        """Make a proven version the stable one.

        Raises:
            ConflictError: it is not ready, or somebody else moved `stable` meanwhile.
        """
        return post(f"/v1/versions/{segment(name)}/promote", Alias, ask(PromoteRequest, reason=reason))

    @endpoint
    def register(
        self,
        *,
        name: str,
        run_id: str,
        batch_ids: Sequence[str],
        parent: str,
        location: str,
        manifest_sha256: str,
        outcome: Literal["candidate", "rejected"],
        gate: GateReport,
        kind: VersionKind | None = None,
        reason: str | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> Call[Version]:
        """Register a version whose folder is complete. Its batches are acknowledged in the same transaction.

        Returns at once with state `loading` (or `rejected`); `wait` follows it to its proof.

        Args:
            kind: `full` where the folder holds a whole model; without it an adapter.
        """
        body = ask(
            VersionCreate,
            name=name,
            run_id=run_id,
            batch_ids=batch_ids,
            parent=parent,
            location=location,
            manifest_sha256=manifest_sha256,
            outcome=outcome,
            gate=gate,
            kind=kind,
            reason=reason,
            metrics=metrics,
        )
        return post("/v1/versions", Version, body)

    @procedure
    def wait(self, name: str, *, timeout: float = 600.0, poll: float = 1.0) -> Flow[Version]:
        """Wait until a version is proven, and return it.

        Args:
            timeout: longest wait, in seconds.
            poll: seconds between two looks.

        Raises:
            VersionRefusedError: its gate or its proof failed; `error.version` says why.
            WaitTimeoutError: it is still loading.
        """
        driver: Driver = self._driver  # type: ignore[assignment]  # bound through either client
        call = get(f"/v1/versions/{segment(name)}", Version)
        end = driver.core.clock.now() + timeout
        while (version := (yield from driver.core.exchange(call))).state == "loading":
            if driver.core.clock.now() + poll > end:
                raise WaitTimeoutError(f"{name} is still loading after {timeout:g} s")
            yield Pause(poll)
        if version.state != "ready":
            raise VersionRefusedError(version)
        return version


class Aliases(Resource[D_co]):
    """`client.aliases`."""

    @endpoint
    def list(self) -> Call[Page[Alias]]:
        """`stable`, `canary`, `previous` and where they point."""
        return get("/v1/aliases", Page[Alias])

    @endpoint
    def set(
        self,
        name: Literal["stable", "canary"],
        version: str,
        *,
        reason: str | None = None,
        if_match: str | None = None,
    ) -> Call[Alias]:
        """Point an alias at a version.

        Args:
            if_match: the `etag` last seen: refuse where somebody else has moved the alias since. Such a request is not
                sent again after a lost answer, since its own first try would then be that somebody. None moves it
                from wherever it is.

        Raises:
            PreconditionFailedError: somebody else has.
        """
        body = encode(ask(AliasUpdate, version=version, reason=reason))
        call = Call("PUT", f"/v1/aliases/{segment(name)}", reader(Alias), body=body)
        if if_match is None:
            return replace(call, headers={"if-match": "*"})
        etag = f'"{if_match.strip(chr(34))}"'
        return replace(call, headers={"if-match": etag}, replayable=False)

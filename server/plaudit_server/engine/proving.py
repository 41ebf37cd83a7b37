"""Whether a version is what it says: an adapter, proven on one replica or on as many as must have proven it."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from plaudit.wire.fingerprint import base_fingerprint, file_sha256
from plaudit.wire.versions import Manifest, ProofReport, ReplicaProof
from plaudit_server.engine.artefact import ArtefactRefused, BaseModel, CheckedAdapter, check_artefact, read_base
from plaudit_server.engine.base import AdapterRef, Others
from plaudit_server.engine.swap import (
    BASE,
    Bounds,
    Replica,
    Resident,
    SwapRefused,
    loaded_for_a_while,
    prove_on,
    unload,
)
from plaudit_server.errors import EngineUnavailable
from plaudit_server.settings import Settings

PROOF_TIMEOUT_S = 600.0
"""A replica that has not proven a version after this long counts as away: it must not hold up the others for ever."""

_FIRST_WAITS_S, _OTHERS_WAIT_S = 1.0, 6.0
"""After a replica's restart all gateways miss the same versions: the first in order loads them, the others adopt."""


class Proving:
    """Loads adapters and proves them.

    Args:
        settings: `engine_max_lora_rank`, `engine_quorum`, `probe_*`.
        base: the base model's folder.
        replicas: those of the fleet, as they are when it is called.
    """

    def __init__(self, settings: Settings, base: Path, replicas: Callable[[], Sequence[Replica]]) -> None:
        self._settings = settings
        self._base = base
        self._replicas = replicas
        self.bounds = Bounds(settings.probe_slope_low, settings.probe_slope_high)
        self._model: BaseModel | None = None
        self._known: dict[str, AdapterRef] = {}
        self.others: Others | None = None
        """Other gateways on these replicas; None: there is none."""

    async def base_model(self) -> BaseModel:
        """What adapters are checked against; read once."""
        if self._model is None:
            fingerprint = await asyncio.to_thread(base_fingerprint, self._base)
            self._model = await asyncio.to_thread(read_base, self._base, fingerprint)
        return self._model

    async def check(self, adapter: AdapterRef) -> CheckedAdapter:
        """The artefact against its manifest and the base model. Raises ArtefactRefused."""
        base = await self.base_model()
        return await asyncio.to_thread(check_artefact, adapter, base, max_rank=self._settings.engine_max_lora_rank)

    def enough(self) -> list[Replica]:
        """The ready replicas that hold the base model. Raises EngineUnavailable where they are below the quorum."""
        ready = [r for r in self._replicas() if r.serves(BASE)]
        quorum = self._settings.engine_quorum or 1
        if not ready and any(r.ready for r in self._replicas()):
            raise EngineUnavailable("No engine replica holds the base model now, which adapters are loaded on.")
        if not ready:
            raise EngineUnavailable()
        if len(ready) < quorum:
            raise EngineUnavailable(
                f"{len(ready)} of {len(self._replicas())} engine replicas are ready, and a version needs {quorum} "
                "(PLAUDIT_ENGINE_QUORUM) to prove it."
            )
        return ready

    async def on_enough(
        self,
        replicas: Sequence[Replica],
        adapter: AdapterRef,
        checked: CheckedAdapter,
        before: ProofReport | None,
        started: float,
    ) -> ProofReport:
        """Prove on a quorum or on none. A replica that goes away meanwhile is proven when it comes back.

        Args:
            before: how it was proven where it is loaded already.
            started: when this began, in seconds of the monotonic clock.
        """
        attempts = await asyncio.gather(
            *(self.on(replica, adapter, checked, before) for replica in replicas), return_exceptions=True
        )
        proofs: list[ReplicaProof] = []
        placed: list[tuple[Replica, Resident]] = []
        for replica, attempt in zip(replicas, attempts, strict=True):
            if isinstance(attempt, EngineUnavailable):
                continue
            if isinstance(attempt, BaseException):
                raise attempt
            proofs.append(attempt[0])
            if attempt[1] is not None:
                placed.append((replica, attempt[1]))
        if self._suffice(proofs):
            for replica, resident in placed:
                replica.resident[adapter.name] = resident
            self._known[adapter.name] = adapter
            return report(started, proofs, None)
        for replica, resident in placed:
            if adapter.name not in replica.resident:
                await unload(replica, resident)
        self._still_possible(proofs)
        return report(started, proofs, next(f"{p.replica}: {p.reason}" for p in proofs if not p.passed))

    def _suffice(self, proofs: Sequence[ReplicaProof]) -> bool:
        needed = self._settings.engine_quorum or len(proofs)
        return bool(proofs) and sum(proof.passed for proof in proofs) >= needed

    def _still_possible(self, proofs: Sequence[ReplicaProof]) -> None:
        """Raise EngineUnavailable where the replicas that did not answer could still make the quorum."""
        silent = len(self._replicas()) - len(proofs)
        passed = sum(proof.passed for proof in proofs)
        if not proofs or passed + silent >= (self._settings.engine_quorum or len(proofs) + silent + 1):
            raise EngineUnavailable(f"{passed} engine replicas have proven it, too few; {silent} did not answer.")

    async def on(
        self, replica: Replica, adapter: AdapterRef, checked: CheckedAdapter, before: ProofReport | None
    ) -> tuple[ReplicaProof, Resident | None]:
        """Load and prove on one replica; None with a proof that failed. Raises EngineUnavailable where it is away."""
        if adapter.name in replica.resident:
            unproven = ReplicaProof(replica=replica.name, passed=False, slope=None)
            known = before.replicas if before else []
            return next((p for p in known if p.replica == replica.name), unproven), replica.resident[adapter.name]
        try:
            async with asyncio.timeout(PROOF_TIMEOUT_S), self._parent(replica, adapter, checked) as parent_model:
                patience_s = self._patience_s(adapter.name)
                return await prove_on(replica, adapter, checked, parent_model, self.bounds, adopt_within_s=patience_s)
        except TimeoutError as error:
            raise EngineUnavailable(
                f"{replica.name} has not proven {adapter.name} after {PROOF_TIMEOUT_S:g} s."
            ) from error
        except (SwapRefused, ArtefactRefused) as error:
            reason = f"its parent {adapter.parent} cannot be compared with: {error}"
            return ReplicaProof(replica=replica.name, passed=False, slope=None, reason=reason), None

    def is_shared(self, version: str) -> bool:
        """Whether another gateway uses it on these replicas too."""
        return self.others is not None and version in self.others.versions

    def _patience_s(self, version: str) -> float | None:
        """How long to wait for another gateway to load a version that it uses too; None where none does."""
        if self.others is None or not self.is_shared(version):
            return None
        return _FIRST_WAITS_S if self.others.is_first else _OTHERS_WAIT_S

    @contextlib.asynccontextmanager
    async def _parent(self, replica: Replica, adapter: AdapterRef, checked: CheckedAdapter) -> AsyncIterator[str]:
        """The name of the parent on this replica; one that is not resident is loaded into the spare slot."""
        if adapter.parent == BASE or adapter.parent in replica.resident:
            yield replica.model(adapter.parent)
            return
        known = self._known.get(adapter.parent)
        ref = known if known is not None else await asyncio.to_thread(sibling, checked.folder.parent, adapter.parent)
        parent = await self.check(ref)
        async with loaded_for_a_while(replica, ref, parent) as lora_name:
            yield lora_name


def sibling(child: Path, name: str) -> AdapterRef:
    """The parent's folder beside its child's, where the trainer puts versions."""
    folder = child.parent / name
    try:
        manifest_sha256 = file_sha256(folder / "manifest.json")
        manifest = Manifest.model_validate_json((folder / "manifest.json").read_bytes())
    except (OSError, ValueError) as error:
        raise ArtefactRefused(f"there is no folder of it at {folder}") from error
    return AdapterRef(name, manifest.parent, str(folder), manifest_sha256, manifest.kind)


def report(started: float, proofs: list[ReplicaProof], reason: str | None) -> ProofReport:
    """What a try that began then came to; without a reason it passed."""
    values: dict[str, Any] = {"passed": reason is None, "replicas": proofs, "reason": reason}
    return ProofReport(**values, checked_at=datetime.now(UTC), seconds=round(time.monotonic() - started, 3))

"""The engine on vLLM: one child of our own, or several servers that others run."""

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from plaudit.wire.base import JsonObject
from plaudit.wire.chat import SamplingParams
from plaudit.wire.fingerprint import base_fingerprint, file_sha256
from plaudit.wire.ops import ReplicaHealth
from plaudit.wire.training import GeneratedAnswer, GeneratePrompt, TokenSequence
from plaudit.wire.versions import ProofReport, ReplicaProof
from plaudit_server.engine.artefact import ArtefactRefused, BaseModel, CheckedAdapter, check_artefact, read_base
from plaudit_server.engine.base import AdapterRef, ChatStream, ChatTrace
from plaudit_server.engine.keeper import ChildKeeper, RemoteKeeper
from plaudit_server.engine.process import Launcher, launch_vllm
from plaudit_server.engine.replica import TRAINER_PRIORITY
from plaudit_server.engine.swap import (
    BASE,
    Bounds,
    Replica,
    Resident,
    SwapRefused,
    clear,
    loaded_for_a_while,
    prove_on,
    unload,
)
from plaudit_server.errors import EngineUnavailable
from plaudit_server.settings import Settings

_DRAIN_POLL_S = 0.1

_log = logging.getLogger(__name__)


class VllmEngine:
    """Implements `plaudit_server.engine.base.Engine` on vLLM.

    Args:
        settings: `engine_*`, `probe_*` and `data`.
        base: the base model's folder.
        launcher: what to start as a child; whatever it starts must speak the part of vLLM's interface that we use.
        note: what `health` says of replicas that are ready.
    """

    is_fake = False

    def __init__(
        self, settings: Settings, base: Path, *, launcher: Launcher = launch_vllm, note: str | None = None
    ) -> None:
        self._settings = settings
        self._base = base
        self._note = note
        self._bounds = Bounds(settings.probe_slope_low, settings.probe_slope_high)
        self._model: BaseModel | None = None
        self._installed: dict[str, tuple[AdapterRef, ProofReport]] = {}
        self._known: dict[str, AdapterRef] = {}
        self._retiring: set[str] = set()
        self._swapping = asyncio.Lock()  # one change of what is resident at a time
        self._tasks: list[asyncio.Task[None]] = []
        self._replicas = [Replica(f"engine-{number}") for number in range(max(1, len(settings.engine_urls)))]
        self._keepers: Sequence[ChildKeeper | RemoteKeeper] = [
            RemoteKeeper(replica, url, self._restore)
            for replica, url in zip(self._replicas, settings.engine_urls, strict=False)
        ] or [ChildKeeper(self._replicas[0], settings, base, self._restore, launcher)]

    async def start(self) -> None:
        """Begin to bring the engine up; `health` tells when it is ready."""
        self._tasks = [asyncio.create_task(keeper.run(), name="engine-keeper") for keeper in self._keepers]

    async def close(self) -> None:
        """Stop what was started, and wait for it."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    def health(self) -> list[ReplicaHealth]:
        """One entry a replica."""
        return [
            ReplicaHealth(
                replica=r.name,
                state=r.state,
                detail=r.detail or self._note,
                resident=[BASE, *r.resident],
                restarts=r.restarts,
            )
            if r.state == "ready"
            else ReplicaHealth(replica=r.name, state=r.state, detail=r.detail, restarts=r.restarts)
            for r in self._replicas
        ]

    def is_ready(self, version: str = BASE) -> bool:
        """Whether some replica would answer a chat on `version`."""
        return bool(self._serving(version))

    def resident(self) -> set[str]:
        """Versions proven on every ready replica."""
        ready = [r for r in self._replicas if r.state == "ready"]
        if not ready:
            return set()
        return {BASE} | (set.intersection(*(set(r.resident) for r in ready)) - self._retiring)

    async def base_fingerprint(self) -> str:
        """Identity of the base model."""
        return (await self._base_model()).fingerprint

    async def chat(self, body: JsonObject, *, version: str, request_id: str) -> tuple[JsonObject, ChatTrace]:
        """One whole chat completion; see `Engine.chat`."""
        replica = self._pick(version)
        with _counted(replica, version):
            return await replica.reach().chat(
                body, model=replica.model(version), version=version, request_id=request_id
            )

    async def chat_stream(self, body: JsonObject, *, version: str, request_id: str) -> ChatStream:
        """As `chat`, streamed."""
        replica = self._pick(version)
        counted = contextlib.ExitStack()
        counted.enter_context(_counted(replica, version))
        try:
            return await replica.reach().chat_stream(
                body, model=replica.model(version), version=version, request_id=request_id, on_close=counted.close
            )
        except BaseException:
            counted.close()
            raise

    async def generate(
        self, prompts: Sequence[GeneratePrompt], *, version: str, n: int, sampling: SamplingParams
    ) -> list[GeneratedAnswer]:
        """Draw answers for the trainer on all replicas that have the version; see `Engine.generate`."""

        async def on(replica: Replica, places: Sequence[int]) -> list[GeneratedAnswer]:
            with _counted(replica, version):
                answers = await replica.reach().generate(
                    [prompts[i] for i in places], model=replica.model(version), n=n, sampling=sampling
                )
            return [a.model_copy(update={"prompt_index": places[a.prompt_index]}) for a in answers]

        parts = await asyncio.gather(*(on(*share) for share in self._shares(version, len(prompts))))
        return sorted(itertools.chain.from_iterable(parts), key=lambda answer: answer.prompt_index)

    async def score(self, sequences: Sequence[TokenSequence], *, version: str) -> list[list[float]]:
        """Log-probability (nats) of each response token under `version`."""
        replica = self._pick(version)
        with _counted(replica, version):
            return await replica.reach().score(sequences, model=replica.model(version), priority=TRAINER_PRIORITY)

    async def install(self, adapter: AdapterRef) -> ProofReport:
        """Check, load and prove a version on every replica; see `Engine.install`."""
        started = time.monotonic()
        while adapter.name in self._retiring:  # noqa: ASYNC110  # it is on its way out; load it afresh then
            await asyncio.sleep(_DRAIN_POLL_S)
        async with self._swapping:
            ready = [r for r in self._replicas if r.state == "ready"]
            if not ready:
                raise EngineUnavailable()
            already = self._installed.get(adapter.name)
            if already is not None and already[0] == adapter and all(adapter.name in r.resident for r in ready):
                return already[1]
            try:
                checked = await self._admit(adapter)
            except ArtefactRefused as error:
                return _report(started, [], str(error))
            report = await self._install_on(ready, adapter, checked, started)
            if report.passed:
                self._installed[adapter.name] = (adapter, report)
                self._known[adapter.name] = adapter
            return report

    async def retire(self, version: str) -> None:
        """Unload a version once no request uses it."""
        if version not in self._installed:
            return
        self._retiring.add(version)
        try:
            while any(r.in_flight[version] for r in self._replicas):  # noqa: ASYNC110  # rare, and nobody is waiting
                await asyncio.sleep(_DRAIN_POLL_S)
            async with self._swapping:
                self._installed.pop(version, None)
                for replica in self._replicas:
                    resident = replica.resident.pop(version, None)
                    if resident is not None and replica.client is not None:
                        await unload(replica, resident)
        finally:
            self._retiring.discard(version)

    # ---- choosing replicas

    def _serving(self, version: str) -> list[Replica]:
        return [] if version in self._retiring else [r for r in self._replicas if r.serves(version)]

    def _pick(self, version: str) -> Replica:
        serving = self._serving(version)
        if serving:
            return min(serving, key=lambda replica: replica.load)
        if self.is_ready():
            raise EngineUnavailable(f"{version} is not live on any engine replica yet; try again shortly.")
        details = "; ".join(r.detail for r in self._replicas if r.detail)
        raise EngineUnavailable(f"The engine is not ready{f': {details}' if details else ', it is starting'}.")

    def _shares(self, version: str, count: int) -> list[tuple[Replica, list[int]]]:
        """Which prompts go to which replica: every k-th to each of k."""
        self._pick(version)
        serving = self._serving(version)
        places = [list(range(first, count, len(serving))) for first in range(len(serving))]
        return [(replica, mine) for replica, mine in zip(serving, places, strict=True) if mine]

    # ---- installing

    async def _base_model(self) -> BaseModel:
        if self._model is None:
            fingerprint = await asyncio.to_thread(base_fingerprint, self._base)
            self._model = await asyncio.to_thread(read_base, self._base, fingerprint)
        return self._model

    async def _admit(self, adapter: AdapterRef) -> CheckedAdapter:
        """The artefact's check, and whether there is room for it."""
        already = self._installed.get(adapter.name)
        if already is not None and already[0].manifest_sha256 != adapter.manifest_sha256:
            raise ArtefactRefused(f"{adapter.name} is already live with another manifest; a version never changes")
        if already is None and len(self._installed) >= self._settings.engine_max_loras:
            held = ", ".join(self._installed)
            raise ArtefactRefused(
                f"{len(self._installed)} versions are resident ({held}); retire one, or raise PLAUDIT_ENGINE_MAX_LORAS"
            )
        return await self._check(adapter)

    async def _check(self, adapter: AdapterRef) -> CheckedAdapter:
        base = await self._base_model()
        return await asyncio.to_thread(check_artefact, adapter, base, max_rank=self._settings.engine_max_lora_rank)

    async def _install_on(
        self, replicas: Sequence[Replica], adapter: AdapterRef, checked: CheckedAdapter, started: float
    ) -> ProofReport:
        """Prove on all of them or on none. A replica that goes away meanwhile is proven when it comes back."""
        attempts = await asyncio.gather(
            *(self._attempt(replica, adapter, checked) for replica in replicas), return_exceptions=True
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
        if not proofs:
            raise EngineUnavailable()
        if all(proof.passed for proof in proofs):
            for replica, resident in placed:
                replica.resident[adapter.name] = resident
            return _report(started, proofs, None)
        for replica, resident in placed:
            await unload(replica, resident)
        return _report(started, proofs, next(f"{p.replica}: {p.reason}" for p in proofs if not p.passed))

    async def _attempt(
        self, replica: Replica, adapter: AdapterRef, checked: CheckedAdapter
    ) -> tuple[ReplicaProof, Resident | None]:
        if adapter.name in replica.resident:
            unproven = ReplicaProof(replica=replica.name, passed=False, slope=None)
            before = self._installed.get(adapter.name)
            known = before[1].replicas if before else []
            return next((p for p in known if p.replica == replica.name), unproven), replica.resident[adapter.name]
        try:
            async with self._parent(replica, adapter, checked) as parent_model:
                return await prove_on(replica, adapter, checked, parent_model, self._bounds)
        except (SwapRefused, ArtefactRefused) as error:
            reason = f"its parent {adapter.parent} cannot be compared with: {error}"
            return ReplicaProof(replica=replica.name, passed=False, slope=None, reason=reason), None

    @contextlib.asynccontextmanager
    async def _parent(self, replica: Replica, adapter: AdapterRef, checked: CheckedAdapter) -> AsyncIterator[str]:
        """The name of the parent on this replica; one that is not resident is loaded into the spare slot."""
        if adapter.parent == BASE or adapter.parent in replica.resident:
            yield replica.model(adapter.parent)
            return
        known = self._known.get(adapter.parent)
        ref = known if known is not None else await asyncio.to_thread(_sibling, checked)
        parent = await self._check(ref)
        async with loaded_for_a_while(replica, ref, parent) as lora_name:
            yield lora_name

    async def _restore(self, replica: Replica) -> None:
        """Called when a replica has come up, before it is ready: put back what was installed, with proof."""
        await clear(replica)
        async with self._swapping:
            for adapter, _ in list(self._installed.values()):
                try:
                    proof, resident = await self._attempt(replica, adapter, await self._check(adapter))
                except ArtefactRefused as error:
                    _log.error("%s was not put back on %s: %s", adapter.name, replica.name, error)
                    continue
                if resident is not None:
                    replica.resident[adapter.name] = resident
                    _log.info("%s is back on %s", adapter.name, replica.name)
                else:
                    _log.error("%s was not put back on %s: %s", adapter.name, replica.name, proof.reason)
            # Within the lock, so that a swap that waits for it sees this replica.
            replica.state = "ready"


def _sibling(checked: CheckedAdapter) -> AdapterRef:
    """The parent's folder beside its child's, where the trainer puts versions."""
    name = checked.manifest.parent
    folder = checked.folder.parent.parent / name
    try:
        manifest_sha256 = file_sha256(folder / "manifest.json")
        grandparent = _parent_of(folder)
    except (OSError, ValueError) as error:
        raise ArtefactRefused(f"there is no folder of it at {folder}") from error
    return AdapterRef(name=name, parent=grandparent, location=str(folder), manifest_sha256=manifest_sha256)


def _parent_of(folder: Path) -> str:
    from plaudit.wire.versions import Manifest

    return Manifest.model_validate_json((folder / "manifest.json").read_bytes()).parent


@contextlib.contextmanager
def _counted(replica: Replica, version: str) -> Iterator[None]:
    replica.in_flight[version] += 1
    try:
        yield
    finally:
        replica.in_flight[version] -= 1


def _report(started: float, proofs: list[ReplicaProof], reason: str | None) -> ProofReport:
    values: dict[str, Any] = {"passed": reason is None, "replicas": proofs, "reason": reason}
    return ProofReport(**values, checked_at=datetime.now(UTC), seconds=round(time.monotonic() - started, 3))

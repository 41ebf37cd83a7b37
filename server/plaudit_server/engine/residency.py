"""Which versions are where: installing with proof, retiring, putting back, and looking whether it is still so.

One change at a time: whoever loads or unloads holds the lock, so that what another part is about to prove is never
taken for a stranger.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from plaudit.wire.versions import ProofReport
from plaudit_server.engine.artefact import ArtefactRefused, BaseModel, CheckedAdapter
from plaudit_server.engine.assignment import spare
from plaudit_server.engine.audit import Believed, Difference, Held, compare, removable
from plaudit_server.engine.base import AdapterRef, Others
from plaudit_server.engine.exchange import labels
from plaudit_server.engine.placement import Placement
from plaudit_server.engine.proving import Proving, report, sibling
from plaudit_server.engine.swap import (
    BASE,
    Replica,
    SwapRefused,
    held_numbers,
    unload,
)
from plaudit_server.errors import EngineError, EngineUnavailable
from plaudit_server.settings import Settings

WORKERS_ASKED_EVERY_S = 30.0
"""Names are compared at every look; the workers' numbers this often, since that waits for the engine's step."""

STRANGER_GRACE_S = 60.0
"""What another gateway loads may be unknown this long before it is taken away."""

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 10.0, 300.0
_DRAIN_POLL_S = 0.1

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Notes:
    """What is remembered of a replica from look to look. Times are seconds of the monotonic clock."""

    workers_asked_at: float = float("-inf")
    strange_since: dict[str, float] = field(default_factory=dict)
    try_again_at: dict[str, float] = field(default_factory=dict)
    pauses: dict[str, float] = field(default_factory=dict)

    def failed(self, version: str, now: float) -> None:
        """A version could not be put back: wait twice as long each time."""
        pause = min(_LONGEST_PAUSE_S, 2 * self.pauses.get(version, _FIRST_PAUSE_S / 2))
        self.pauses[version], self.try_again_at[version] = pause, now + pause

    def succeeded(self, version: str) -> None:
        """It is there."""
        self.pauses.pop(version, None)
        self.try_again_at.pop(version, None)


class Residency:
    """What is installed, and on which replicas.

    Args:
        settings: `engine_max_loras`, `engine_max_lora_rank`, `engine_quorum`, `probe_*`.
        base: the base model's folder.
        replicas: those of the fleet, as they are when it is called.
    """

    def __init__(self, settings: Settings, base: Path, replicas: Callable[[], Sequence[Replica]]) -> None:
        self._settings = settings
        self._replicas = replicas
        self._proving = Proving(settings, base, replicas)
        self._installed: dict[str, tuple[AdapterRef, ProofReport]] = {}
        self._swapping = asyncio.Lock()
        self._notes: dict[str, _Notes] = {}
        self.placement = Placement(base, self._proving.bounds, drain_s=settings.engine_drain_s, sibling=sibling)
        self.retiring: set[str] = set()

    @property
    def others(self) -> Others | None:
        """Other gateways on these replicas; None: there is none."""
        return self._proving.others

    @others.setter
    def others(self, others: Others | None) -> None:
        self._proving.others = others

    def versions(self) -> set[str]:
        """Versions that hold a place."""
        return set(self._installed) - self.retiring

    async def base_model(self) -> BaseModel:
        """What adapters are checked against; read once."""
        return await self._proving.base_model()

    # ---- installing

    async def install(self, adapter: AdapterRef) -> ProofReport:
        """Check, load and prove a version; see `Engine.install`."""
        if adapter.kind == "full":
            return await self._install_whole(adapter)
        started = time.monotonic()
        while adapter.name in self.retiring:  # noqa: ASYNC110  # it is on its way out; load it afresh then
            await asyncio.sleep(_DRAIN_POLL_S)
        async with self._swapping:
            ready = self._proving.enough()
            already = self._installed.get(adapter.name)
            if already is not None and already[0] == adapter and all(adapter.name in r.resident for r in ready):
                return already[1]
            try:
                checked = await self._admit(adapter)
            except ArtefactRefused as error:
                return report(started, [], str(error))
            proven = await self._proving.on_enough(ready, adapter, checked, already[1] if already else None, started)
            if proven.passed:
                self._installed[adapter.name] = (adapter, proven)
            return proven

    async def _install_whole(self, ref: AdapterRef) -> ProofReport:
        """Check a whole model, swap it in and prove it on one replica; see `Engine.install`."""
        started = time.monotonic()
        async with self._swapping:
            ready = self._alone()
            holder = next((r for r in ready if r.weights == ref.name), None)
            if holder is not None and holder.proof is not None and self.placement.has(ref):
                return report(started, [holder.proof], None)
            try:
                model = await self.placement.check(ref)
                held, loads = [r.weights for r in ready], [r.load for r in ready]
                replica = ready[spare(held, loads, self.placement.wanted)]
                proof = await self.placement.bring(replica, model)
            except ArtefactRefused as error:
                return report(started, [], str(error))
            if proof.passed:
                self.placement.installed(ref)
            else:
                await self._put_all_back(replica)
            return report(started, [proof], None if proof.passed else f"{proof.replica}: {proof.reason}")

    async def place(self, wanted: Sequence[str]) -> None:
        """Have these whole models live; see `Engine.place`."""
        if list(wanted) == self.placement.wanted and not self.placement.unsettled(self._replicas()):
            return
        async with self._swapping:
            self.placement.wanted = list(wanted)
            for replica in await self.placement.settle(self._alone()):
                await self._put_all_back(replica)

    def _alone(self) -> list[Replica]:
        """The ready replicas, if no other gateway asks them: it would not know what they hold."""
        if self.others is not None:
            raise EngineUnavailable(
                "Another gateway uses these replicas; whole models are swapped in place by one gateway only.",
                code="several_gateways",
            )
        if not (ready := [r for r in self._replicas() if r.ready]):
            raise EngineUnavailable()
        return ready

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
        return await self._proving.check(adapter)

    # ---- retiring

    async def retire(self, version: str) -> None:
        """Unload a version once no request uses it. Where another gateway uses it, it is only forgotten here."""
        if version not in self._installed:
            return
        self.retiring.add(version)
        try:
            while any(r.in_flight[version] for r in self._replicas()):  # noqa: ASYNC110  # rare, and nobody is waiting
                await asyncio.sleep(_DRAIN_POLL_S)
            async with self._swapping:
                self._installed.pop(version, None)
                for replica in self._replicas():
                    resident = replica.resident.pop(version, None)
                    if resident is not None and replica.client is not None and not self._proving.is_shared(version):
                        await unload(replica, resident)
        finally:
            self.retiring.discard(version)

    # ---- putting back

    async def restore(self, replica: Replica) -> None:
        """Called when a replica has come up, before it is ready: put back what was installed, with proof."""
        async with self._swapping:
            self._notes.pop(replica.name, None)
            await self._weights_back(replica)
            await self._take_away(replica, await self._compare(replica, ask_workers=True))
            await self._put_all_back(replica)
            # Within the lock, so that a swap that waits for it sees this replica.
            replica.state = "ready"

    async def _weights_back(self, replica: Replica) -> None:
        """The whole model that it is to hold, and before that whatever it holds known. Raises SwapRefused."""
        if self.others is None:
            await self.placement.restore(replica)
        elif await labels(replica.reach()) <= {""}:
            replica.weights = BASE
        else:
            raise SwapRefused("another gateway has swapped a whole model in here, which must then be its only gateway")

    async def _put_all_back(self, replica: Replica) -> None:
        """Adapters, where the base model is what they are loaded on. The lock must be held."""
        if replica.weights == BASE:
            for version in set(self._installed) - set(replica.resident):
                await self._put_back(replica, version)

    async def look(self, replica: Replica) -> None:
        """Compare what a ready replica holds with what we believe, and mend the difference.

        A version that is gone gets no further request there until it is loaded afresh and proven. A server that was
        restarted without our noticing gets everything back before it is ready again.
        """
        notes = self._notes.setdefault(replica.name, _Notes())
        now = time.monotonic()
        ask_workers = now - notes.workers_asked_at >= WORKERS_ASKED_EVERY_S
        if self._swapping.locked() and (replica.swapping or replica.weights != BASE):
            return  # what is under way is looked at when it is over
        # A child of ours cannot be restarted unnoticed, and asking costs its worker's polling.
        doubtful = replica.weights != BASE and (ask_workers or replica.url is not None)
        if doubtful and not await self._as_believed(replica):
            await self._again(replica, "its weights are not those that were put in place")
            return
        difference = await self._compare(replica, ask_workers=ask_workers)
        if ask_workers:
            notes.workers_asked_at = now
        if difference.restarted:
            await self._again(replica, "it holds nothing of ours")
            return
        due = self._due(replica, notes, now)
        strange = difference.strange_names or difference.strange_numbers
        if not (due or strange) or self._swapping.locked():  # at the next look then
            return
        async with self._swapping:
            if strange:  # what was under way a moment ago is no stranger now
                await self._take_away(replica, await self._compare(replica, ask_workers=ask_workers))
            for version in due:
                if version in self._installed:
                    await self._put_back(replica, version)

    async def _as_believed(self, replica: Replica) -> bool:
        """Whether a replica without the base model holds what is believed; also where that has just changed."""
        before = replica.weights
        believed = await self.placement.is_as_believed(replica)
        return believed or self._swapping.locked() or replica.weights is not before

    async def _again(self, replica: Replica, why: str) -> None:
        """Everything anew, before it is ready again."""
        _log.warning("engine %s was restarted: %s", replica.name, why)
        replica.restarts, replica.state = replica.restarts + 1, "starting"
        replica.forget()
        await self.restore(replica)

    def lost(self, replica: Replica, version: str, why: str) -> None:
        """A replica turned out not to have a version: no further request for it there until it is proven again."""
        if replica.resident.pop(version, None) is not None:
            _log.error("engine %s lost %s (%s); it is loaded and proven again", replica.name, version, why)

    def _due(self, replica: Replica, notes: _Notes, now: float) -> list[str]:
        if replica.weights != BASE:
            return []
        missing = set(self._installed) - set(replica.resident) - self.retiring
        return sorted(version for version in missing if notes.try_again_at.get(version, now) <= now)

    async def _compare(self, replica: Replica, *, ask_workers: bool) -> Difference:
        """How things differ; versions that were lost are taken out of the routing at once."""
        client = replica.reach()
        before = dict(replica.resident)
        names = await client.models()
        workers = await held_numbers(client) if ask_workers else None
        # What was unloaded or loaded meanwhile is left out of the comparison; the next look sees it.
        believed = {name: one for name, one in before.items() if replica.resident.get(name) is one}
        difference = compare(
            {name: Believed(one.lora_name, one.numbers) for name, one in believed.items()}, Held(names, workers)
        )
        for version, why in difference.lost.items():
            self.lost(replica, version, why)
        return difference

    async def _take_away(self, replica: Replica, difference: Difference) -> None:
        """Unload what nobody uses. The lock must be held."""
        notes, now = self._notes.setdefault(replica.name, _Notes()), time.monotonic()
        strange = {*difference.strange_names, *map(str, difference.strange_numbers)}
        notes.strange_since = {name: notes.strange_since.get(name, now) for name in strange}
        names = removable(
            difference.strange_names,
            ours=self.others is None,
            claimed=self.others.versions if self.others else frozenset(),
            first_seen=notes.strange_since,
            now=now,
            grace_s=STRANGER_GRACE_S,
        )
        client = replica.reach()
        for name in sorted(names):
            _log.warning("engine %s holds %s, which nobody asked for: it is unloaded", replica.name, name)
            with contextlib.suppress(EngineError):
                await client.unload_adapter(name)
        numbers = self._strays(difference, names, notes, now)
        if numbers:
            await client.call_workers("plaudit_forget", sorted(numbers))

    def _strays(self, difference: Difference, removed: frozenset[str], notes: _Notes, now: float) -> set[int]:
        """Tensors without an owner. While another gateway's names are there, any number may be one of theirs."""
        if self.others is None:
            return set(difference.strange_numbers)
        if difference.strange_names - removed:
            return set()
        return {n for n in difference.strange_numbers if now - notes.strange_since[str(n)] >= STRANGER_GRACE_S}

    async def _put_back(self, replica: Replica, version: str) -> None:
        """Load and prove an installed version again on one replica. The lock must be held."""
        notes = self._notes.setdefault(replica.name, _Notes())
        adapter, before = self._installed[version]
        try:
            proof, resident = await self._proving.on(replica, adapter, await self._proving.check(adapter), before)
            reason = proof.reason
        except ArtefactRefused as error:
            resident, reason = None, str(error)
        if resident is not None:
            replica.resident[version] = resident
            notes.succeeded(version)
            _log.info("%s is back on %s", version, replica.name)
        else:
            notes.failed(version, time.monotonic())
            _log.error("%s was not put back on %s: %s", version, replica.name, reason)

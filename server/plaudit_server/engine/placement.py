"""Which replica holds which whole model: in-place swaps with proof, one replica at a time.

An adapter lives beside others on the base model. A version that is a whole model takes the base model's place, so that
a replica answers for one such version at a time. Whoever swaps holds the lock of `residency.py`, as for adapters.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from plaudit.wire.versions import ReplicaProof
from plaudit_server.engine.artefact import ArtefactRefused
from plaudit_server.engine.assignment import goals
from plaudit_server.engine.base import AdapterRef
from plaudit_server.engine.exchange import Scores, WeightsLost, exchange, labels, probe_live, score
from plaudit_server.engine.swap import BASE, Bounds, Replica, SwapRefused, fill, unload
from plaudit_server.engine.whole_model import WholeModel, check_whole_model, read_base_weights
from plaudit_server.errors import EngineError, EngineUnavailable

_DRAIN_POLL_S = 0.05
_TRY_AGAIN_S = 60.0

_log = logging.getLogger(__name__)

Sibling = Callable[[Path, str], AdapterRef]
"""(a version's folder, its parent's name) → the parent as it lies beside it."""


class Placement:
    """Whole models on replicas.

    Args:
        base: the base model's folder.
        bounds: for the probe's slope.
        drain_s: how long a swap waits for answers that have begun.
        sibling: finds a parent that was never installed here.
    """

    def __init__(self, base: Path, bounds: Bounds, *, drain_s: float, sibling: Sibling) -> None:
        self._base = base
        self._bounds = bounds
        self._drain_s = drain_s
        self._sibling = sibling
        self._refs: dict[str, AdapterRef] = {}
        self._models: dict[str, WholeModel] = {}
        self._not_before: dict[tuple[str, str], float] = {}
        self.wanted: list[str] = [BASE]

    def knows(self, name: str) -> bool:
        """Whether a whole model can be placed: base, or one that was installed before."""
        return name == BASE or name in self._refs

    def has(self, ref: AdapterRef) -> bool:
        """Whether exactly this was installed before."""
        return self._refs.get(ref.name) == ref

    async def check(self, ref: AdapterRef) -> WholeModel:
        """A version's artefact. Raises ArtefactRefused."""
        known = self._refs.get(ref.name)
        if known is not None and known.manifest_sha256 != ref.manifest_sha256:
            raise ArtefactRefused(f"{ref.name} was installed with another manifest; a version never changes")
        model = await asyncio.to_thread(check_whole_model, ref, self._base)
        before = self._models.get(ref.name)
        if before is not None and before.label == model.label:  # the same bytes, as was just checked
            model.digests.update(before.digests)
        self._models[ref.name] = model
        return model

    def installed(self, ref: AdapterRef) -> None:
        """It was proven somewhere: it may be placed."""
        self._refs[ref.name] = ref

    async def _model(self, name: str, child: WholeModel | None = None) -> WholeModel:
        """Base, or a version's whole model, whose files are checked once more.

        Args:
            child: where to look for a parent that was never installed here.
        """
        if name == BASE:
            if BASE not in self._models:
                self._models[BASE] = await asyncio.to_thread(read_base_weights, self._base)
            return self._models[BASE]
        ref = self._refs.get(name)
        if ref is None:
            if child is None:
                raise ArtefactRefused(f"{name} was never installed")
            ref = await asyncio.to_thread(self._sibling, child.folder.parent, name)
        return await self.check(ref)

    def unsettled(self, replicas: Sequence[Replica]) -> bool:
        """Whether some ready replica holds something else than it is to hold."""
        return any(one.ready and one.weights != one.goal for one in replicas)

    # ---- one replica

    async def bring(self, replica: Replica, model: WholeModel) -> ReplicaProof:
        """Swap a replica to these weights, with proof. On a failure it has those from before again.

        Raises:
            EngineUnavailable: the replica went away, or its weights were lost: it is to be restarted.
        """
        proof = ReplicaProof(replica=replica.name, passed=False, slope=None, tensors_expected=len(model.tensors))
        started = time.monotonic()
        try:
            parent = await self._parent_beforehand(replica, model)
            replica.swapping = True
            await self._drained(replica)
            await self._leave_adapters(replica)
            await self._swap(replica, model, parent, proof)
        except WeightsLost as error:
            replica.weights, replica.condemned = None, str(error)
            raise EngineUnavailable(f"{replica.name} is restarted: {error}") from error
        except EngineUnavailable:
            replica.weights = None if replica.swapping else replica.weights
            raise
        except (SwapRefused, ArtefactRefused) as error:
            proof.reason = str(error)
        finally:
            replica.swapping = False
        proof.passed = proof.reason is None
        replica.proof = proof if proof.passed else replica.proof
        level = logging.INFO if proof.passed else logging.ERROR
        _log.log(
            level,
            "%s: %s in place after %.2f s%s",
            replica.name,
            model.name,
            time.monotonic() - started,
            "" if proof.passed else f": refused, {proof.reason}",
        )
        return proof

    async def _parent_beforehand(self, replica: Replica, model: WholeModel) -> Scores | None:
        """The parent's scores, taken while it is still live, among the users' requests; None where it is not live."""
        if model.probe is None or model.parent is None:
            return None
        if model.label not in replica.parent_scores and replica.weights == model.parent:
            replica.parent_scores[model.label] = await score(replica.reach(), model.probe.sequences)
        return replica.parent_scores.get(model.label)

    async def _drained(self, replica: Replica) -> None:
        """Until what has begun is over, or has had its time."""
        deadline = time.monotonic() + self._drain_s
        while replica.load and time.monotonic() < deadline:  # noqa: ASYNC110  # rare, and requests end elsewhere
            await asyncio.sleep(_DRAIN_POLL_S)
        if replica.load:
            _log.warning("%s: %d answers go on across the swap", replica.name, replica.load)

    async def _leave_adapters(self, replica: Replica) -> None:
        """Adapters belong to the base model; `residency.py` puts them back when that is back."""
        for version in list(replica.resident):
            await unload(replica, replica.resident.pop(version))

    async def _swap(self, replica: Replica, model: WholeModel, parent: Scores | None, proof: ReplicaProof) -> None:
        """Raises SwapRefused, with the weights from before in place again."""
        before = now = await self._model(replica.weights or BASE)
        try:
            if model.probe is not None and parent is None:
                now = await self._visit(replica, model, now)
                parent = replica.parent_scores[model.label]
            await exchange(replica, model, now, proof)
            replica.weights, now = None, model  # nobody is answered until its behaviour is proven
            if model.probe is not None and parent is not None:
                fill(proof, await probe_live(replica.reach(), model.probe, parent, self._bounds))
                if proof.reason is not None:
                    raise SwapRefused(proof.reason)
        except (EngineUnavailable, WeightsLost):
            raise
        except (SwapRefused, EngineError) as error:
            await self._go_back(replica, before, now)
            raise SwapRefused(str(error)) from error
        replica.weights = model.name

    async def _visit(self, replica: Replica, model: WholeModel, now: WholeModel) -> WholeModel:
        """Have the parent in place for as long as it is scored; the parent."""
        assert model.parent is not None and model.probe is not None
        parent = await self._model(model.parent, model)
        await exchange(replica, parent, now)
        replica.weights = None
        replica.parent_scores[model.label] = await score(replica.reach(), model.probe.sequences)
        return parent

    async def _go_back(self, replica: Replica, before: WholeModel, now: WholeModel) -> None:
        """What answered before answers again; its bytes are compared, its behaviour was proven before."""
        if replica.weights is None:
            try:
                await exchange(replica, before, now)
            except WeightsLost:
                raise
            except SwapRefused as error:
                raise WeightsLost(f"{before.name} could not be put back: {error}") from error
            replica.weights = before.name

    async def restore(self, replica: Replica) -> None:
        """A replica has come up: bring it to what it held before, or find out that it is what it was started with.

        Raises:
            SwapRefused: it holds something else, and is not ours alone.
        """
        goal = replica.goal if self.knows(replica.goal) else BASE
        if await labels(replica.reach()) <= {""}:
            replica.weights = BASE
        else:  # a replica that outlived this server, or whose swap was interrupted
            replica.weights = None
            await self._base_again(replica)
        if goal != BASE and not self._rests(replica, goal):
            self.failed(replica, goal)  # should the engine die of it, it comes up without it next time
            proof = await self.bring(replica, await self._model(goal))
            if proof.passed:
                self._not_before.pop((replica.name, goal))

    async def _base_again(self, replica: Replica) -> None:
        base = await self._model(BASE)
        try:
            await exchange(replica, base, base)
        except WeightsLost as error:
            replica.condemned = str(error)
            raise EngineUnavailable(f"{replica.name}: {error}") from error
        replica.weights = BASE

    async def is_as_believed(self, replica: Replica) -> bool:
        """Whether the workers still call what they hold what it was called. Cheap: no weight is looked at."""
        if replica.weights is None:
            return False
        known = self._models.get(replica.weights)
        believed = {known.label} if known is not None else set()
        return await labels(replica.reach()) <= (believed | {""} if replica.weights == BASE else believed)

    # ---- all of them

    def failed(self, replica: Replica, name: str) -> None:
        """It is not tried there again for a while."""
        self._not_before[replica.name, name] = time.monotonic() + _TRY_AGAIN_S

    def _rests(self, replica: Replica, name: str) -> bool:
        return self._not_before.get((replica.name, name), 0) > time.monotonic()

    async def settle(self, replicas: Sequence[Replica]) -> list[Replica]:
        """Bring replicas to what is wanted, one after the other; those that were swapped."""
        wanted = [name for name in dict.fromkeys(self.wanted) if self.knows(name)] or [BASE]
        changed = []
        for place, name in goals([replica.weights for replica in replicas], wanted):
            replica = replicas[place]
            replica.goal = name
            if replica.weights == name or self._rests(replica, name):
                continue
            proof = await self.bring(replica, await self._model(name))
            if proof.passed:
                changed.append(replica)
            else:
                self.failed(replica, name)
        return changed

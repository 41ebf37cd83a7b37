"""One adapter onto one replica, with proof: load, find it in the workers, compare bytes, compare behaviour.

A version is loaded under a name made of its own name, its manifest's hash and something random: vLLM keys its prefix
cache by that name, so a name is never used for a second load, not even after a failed one or by a later server.
"""

import asyncio
import contextlib
import logging
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from plaudit.wire.training import TokenSequence
from plaudit.wire.versions import Probe, ProbeSequence, ReplicaProof
from plaudit_server.engine.artefact import CheckedAdapter
from plaudit_server.engine.base import AdapterRef
from plaudit_server.engine.breaker import Breaker
from plaudit_server.engine.probe import ProbeResult, ScoredSequence, is_beyond_doubt, judge, looks
from plaudit_server.engine.replica import PROBE_PRIORITY, ReplicaClient
from plaudit_server.errors import EngineError, EngineRefused, EngineUnavailable

BASE = "base"

_ADOPT_POLL_S = 0.2

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Resident:
    """An adapter on a replica: the name vLLM knows it by, and its number in each worker."""

    ref: AdapterRef
    lora_name: str
    numbers: frozenset[int]


@dataclass(slots=True)
class Replica:
    """One vLLM server as the engine sees it. `url` is None for a child of ours; draining, it takes nothing new.

    Attributes:
        weights: the whole model that it answers with, proven; None where it answers with none.
        goal: the whole model that it is to have, also after a restart.
        swapping: one whole model is being put in the place of another.
        condemned: why its process must be replaced, if it must.
        proof: that of `weights`, where it has one.
        held_since: every whole model that was put in place, in that order.
        parent_scores: by a whole model's label, what its parent gave for its probe in this life of the process.
    """

    name: str
    url: str | None = None
    client: ReplicaClient | None = None
    state: Literal["starting", "ready", "down"] = "starting"
    detail: str | None = None
    restarts: int = 0
    resident: dict[str, Resident] = field(default_factory=dict)
    in_flight: Counter[str] = field(default_factory=Counter)
    draining: bool = False
    weights: str | None = BASE
    goal: str = BASE
    swapping: bool = False
    condemned: str | None = None
    proof: ReplicaProof | None = None
    held_since: list[str] = field(default_factory=list)
    parent_scores: dict[str, list[list[float]]] = field(default_factory=dict)
    breaker: Breaker = field(default_factory=Breaker)

    @property
    def ready(self) -> bool:
        """Whether it may be given work."""
        return self.state == "ready" and not self.draining

    @property
    def load(self) -> int:
        """Requests in flight."""
        return self.in_flight.total()

    def serves(self, version: str) -> bool:
        """Whether it is ready and has the version proven."""
        return self.ready and not self.swapping and (version == self.weights or version in self.resident)

    def model(self, version: str) -> str:
        """The name by which vLLM knows the version here."""
        return self.resident[version].lora_name if version in self.resident else BASE

    def versions(self) -> list[str]:
        """All that it would answer for."""
        held = [] if self.weights is None or self.swapping else [self.weights]
        return [*held, *self.resident] if self.ready else []

    def reach(self) -> ReplicaClient:
        """Its client."""
        if self.client is None:
            raise EngineUnavailable()
        return self.client

    def forget(self) -> None:
        """Its process is gone, and everything in it."""
        self.resident.clear()
        self.parent_scores.clear()
        self.weights, self.condemned = None, None


@dataclass(frozen=True, slots=True)
class Bounds:
    """Within which the probe's interval must lie."""

    low: float
    high: float


class SwapRefused(Exception):
    """The adapter is not what it should be on this replica; the message says why."""


async def prove_on(
    replica: Replica,
    ref: AdapterRef,
    adapter: CheckedAdapter,
    parent_model: str,
    bounds: Bounds,
    *,
    adopt_within_s: float | None = None,
) -> tuple[ReplicaProof, Resident | None]:
    """Load and prove an adapter on one replica; unload it again where the proof fails.

    Args:
        replica: where to.
        ref: the version.
        adapter: its checked artefact.
        parent_model: the name by which the replica knows the parent.
        bounds: for the slope.
        adopt_within_s: another gateway uses it too: use what that one has loaded, if it appears within this time and
            can be proven; else load our own beside it.

    Raises:
        EngineUnavailable: the replica went away.
    """
    if adopt_within_s is not None:
        found = await adopt(replica, ref, adapter, within_s=adopt_within_s)
        if found is not None:
            proof = await _prove(replica, found, adapter, parent_model, bounds)
            if proof.passed:
                return proof, found
    proof = _unproven(replica, adapter)
    resident: Resident | None = None
    try:
        resident = await load(replica, ref, adapter)
    except EngineUnavailable:
        raise
    except (SwapRefused, EngineError) as error:
        proof.reason = str(error)
    else:
        proof = await _prove(replica, resident, adapter, parent_model, bounds)
    if proof.passed:
        return proof, resident
    _log.warning("%s is not proven on %s: %s", ref.name, replica.name, proof.reason)
    if resident is not None:
        await unload(replica, resident)
    return proof, None


def _unproven(replica: Replica, adapter: CheckedAdapter) -> ReplicaProof:
    return ReplicaProof(replica=replica.name, passed=False, slope=None, tensors_expected=len(adapter.tensors))


async def _prove(
    replica: Replica, resident: Resident, adapter: CheckedAdapter, parent_model: str, bounds: Bounds
) -> ReplicaProof:
    """Bytes, then behaviour, of what is loaded there. Raises EngineUnavailable."""
    proof = _unproven(replica, adapter)
    try:
        await _prove_bytes(replica, resident, adapter, proof)
        result = await probe_replica(replica.reach(), resident.lora_name, parent_model, adapter.probe, bounds)
        fill(proof, result)
    except EngineUnavailable:
        raise
    except (SwapRefused, EngineError) as error:
        if isinstance(error, EngineRefused) and error.status == 404:
            # Not the version's fault: the replica was restarted, or another gateway took the adapter for a stranger.
            raise EngineUnavailable(f"{resident.ref.name} was taken away during its proof.") from error
        proof.reason = str(error)
    proof.passed = proof.reason is None
    return proof


async def adopt(replica: Replica, ref: AdapterRef, adapter: CheckedAdapter, *, within_s: float) -> Resident | None:
    """The version as another gateway has loaded it on this replica, unproven; None where it is not there whole."""
    client = replica.reach()
    deadline = time.monotonic() + within_s
    while not (names := sorted(name for name in await client.models() if name.startswith(_prefix(ref)))):
        if time.monotonic() > deadline:
            return None
        await asyncio.sleep(_ADOPT_POLL_S)
    workers = await held_numbers(client)
    for number in sorted(set.intersection(*workers)):
        answers = await client.call_workers("plaudit_digests", number, adapter.rank)
        if answers and all(_compare(place, answer, adapter)[1] is None for place, answer in enumerate(answers)):
            return Resident(ref, names[0], frozenset({number}))
    return None


def _prefix(ref: AdapterRef) -> str:
    return f"{ref.name}-{ref.manifest_sha256[:8]}-"


async def load(replica: Replica, ref: AdapterRef, adapter: CheckedAdapter) -> Resident:
    """Load an adapter under a fresh name and find its number in the workers: the one that was not there before.

    Raises:
        SwapRefused: no worker took up an adapter.
    """
    client = replica.reach()
    lora_name = _prefix(ref) + secrets.token_hex(3)
    before = await held_numbers(client)
    await client.load_adapter(lora_name, adapter.folder)
    new = set().union(*(after - old for after, old in zip(await held_numbers(client), before, strict=True)))
    if len(new) != 1:
        with contextlib.suppress(EngineError):
            await client.unload_adapter(lora_name)
        raise SwapRefused(f"the engine said that it loaded {ref.name}, but its workers hold {len(new)} new adapters")
    return Resident(ref, lora_name, frozenset(new))


async def unload(replica: Replica, resident: Resident) -> None:
    """Take an adapter away: its name, and the tensors that vLLM's own unloading leaves in the workers."""
    client = replica.reach()
    with contextlib.suppress(EngineError):
        await client.unload_adapter(resident.lora_name)
    with contextlib.suppress(EngineError):
        await client.call_workers("plaudit_forget", sorted(resident.numbers))


async def held_numbers(client: ReplicaClient) -> list[set[int]]:
    """The adapters that each worker holds."""
    workers: list[Any] = []
    with contextlib.suppress(EngineRefused):
        workers = await client.call_workers("plaudit_adapters")
    if not workers or not all(isinstance(numbers, list) for numbers in workers):
        raise SwapRefused(
            "the engine's workers cannot be asked what they hold: start vLLM with VLLM_SERVER_DEV_MODE=1 and "
            "--worker-extension-cls plaudit_server.engine.worker.AdapterInspector"
        )
    return [set(numbers) for numbers in workers]


async def _prove_bytes(replica: Replica, resident: Resident, adapter: CheckedAdapter, proof: ReplicaProof) -> None:
    """Each worker must hold exactly the published tensors. Fills `tensors_matched` and `workers`."""
    (number,) = resident.numbers
    rank = adapter.rank
    answers = await replica.reach().call_workers("plaudit_digests", number, rank)
    proof.workers = len(answers)
    matches = [await asyncio.to_thread(_compare, place, answer, adapter) for place, answer in enumerate(answers)]
    proof.tensors_matched = min((matched for matched, _ in matches), default=0)
    if not answers:
        raise SwapRefused("no worker answered")
    if wrong := [reason for _, reason in matches if reason is not None]:
        raise SwapRefused(wrong[0])


def _compare(place: int, answer: Any, adapter: CheckedAdapter) -> tuple[int, str | None]:
    """How many tensors of a worker are the published ones, and what is wrong."""
    if not isinstance(answer, dict) or "error" in answer:
        return 0, f"worker {place} cannot say what it holds: {answer and answer.get('error')}"
    expected = adapter.resident_digests(answer["dtype"] or "bfloat16")
    held: dict[str, str] = answer["digests"]
    matched = sum(held.get(key) == digest for key, digest in expected.items())
    if matched != len(expected):
        return matched, f"worker {place} holds {matched} of {len(expected)} tensors as published"
    if stray := sorted(set(held) - set(expected)) + list(answer["stray"]):
        return matched, f"worker {place} holds something beside the published tensors: {stray[0]}"
    return matched, None


def fill(proof: ReplicaProof, result: ProbeResult) -> None:
    """Into the proof: slope, interval, correlation, tokens, and why it fails if it does."""
    proof.slope, proof.low, proof.high = result.slope, result.low, result.high
    proof.correlation, proof.tokens, proof.reason = result.correlation, result.tokens, result.reason


async def probe_replica(
    client: ReplicaClient, new_model: str, parent_model: str, probe: Probe, bounds: Bounds
) -> ProbeResult:
    """Score the probe under both names and judge.

    The first sequences are looked at alone: where they leave no doubt that the right adapter is live, the rest is not
    scored, since every token of a proof is taken from the users' answers. Only a pass can come early, and only a far
    clearer one than the bounds ask for; three looks instead of one at most triple a chance of error that is far below
    that of the bounds.
    """
    scored: list[ScoredSequence] = []
    for until in looks(len(probe.sequences)):
        scored += await _scored(client, new_model, parent_model, probe.sequences[len(scored) : until])
        result = await asyncio.to_thread(judge, scored, low=bounds.low, high=bounds.high)
        if is_beyond_doubt(result):
            break
    return result


async def _scored(
    client: ReplicaClient, new_model: str, parent_model: str, sequences: Sequence[ProbeSequence]
) -> list[ScoredSequence]:
    tokens = [TokenSequence(prompt_ids=s.prompt_ids, response_ids=s.response_ids) for s in sequences]
    served_parent = await client.score(tokens, model=parent_model, priority=PROBE_PRIORITY)
    served_new = await client.score(tokens, model=new_model, priority=PROBE_PRIORITY)
    return [
        ScoredSequence(s.parent_logprobs, s.new_logprobs, parent, new, s.exact_change)
        for s, parent, new in zip(sequences, served_parent, served_new, strict=True)
    ]


@contextlib.asynccontextmanager
async def loaded_for_a_while(replica: Replica, ref: AdapterRef, adapter: CheckedAdapter) -> AsyncIterator[str]:
    """An adapter in the spare slot, unproven and without traffic: a parent that is compared with. Yields its name."""
    resident = await load(replica, ref, adapter)
    try:
        await _prove_bytes(replica, resident, adapter, ReplicaProof(replica=replica.name, passed=False, slope=None))
        yield resident.lora_name
    finally:
        await unload(replica, resident)

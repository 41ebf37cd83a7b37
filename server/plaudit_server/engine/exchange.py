"""One whole model in the place of another on one replica: pause, reload, compare bytes, empty the cache, go on.

Answers that have begun are frozen by the pause and not aborted. Before they go on, every weight that the workers
compute with has been compared with what was published: where it is not that, the weights from before are put back.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from plaudit.wire.training import TokenSequence
from plaudit.wire.versions import Probe, ProbeSequence, ReplicaProof
from plaudit_server.engine.probe import ProbeResult, ScoredSequence, is_beyond_doubt, judge, looks
from plaudit_server.engine.replica import PROBE_PRIORITY, ReplicaClient
from plaudit_server.engine.swap import BASE, Bounds, Replica, SwapRefused
from plaudit_server.engine.whole_model import COMPARED, WholeModel
from plaudit_server.errors import EngineError, EngineUnavailable

RELOAD_TIMEOUT_S = 300.0
UNDER_WAY = "?"
"""What a worker calls its weights from before the pause until they were loaded: who finds it repeats the swap."""
_TIED, _EMBEDDINGS = "lm_head.weight", "embed_tokens.weight"

_log = logging.getLogger(__name__)

Scores = list[list[float]]
"""Log-probabilities (nats) of a probe's response tokens, one list a sequence."""


class WeightsLost(SwapRefused):
    """The replica holds neither the new weights nor the old ones; it must be restarted."""


async def exchange(replica: Replica, new: WholeModel, old: WholeModel, proof: ReplicaProof | None = None) -> None:
    """Put `new` in the place of `old`; adapters must have been unloaded.

    Args:
        proof: filled with what the workers hold.

    Raises:
        SwapRefused: they do not hold `new`; `old` is back, compared in the same way.
        WeightsLost: that failed too. Generation stays paused.
        EngineUnavailable: the replica went away.
    """
    client = replica.reach()
    said = await client.call_workers("plaudit_weights", UNDER_WAY)
    await asyncio.to_thread(_prepare, new, said)
    await client.pause()
    try:
        await _load(client, new, proof)
    except EngineUnavailable:
        raise
    except (SwapRefused, EngineError) as error:
        _log.error("%s could not take %s: %s", replica.name, new.name, error)
        await _put_back(client, old)
        await client.resume()
        raise SwapRefused(str(error)) from error
    await _forget_prefixes(client)
    replica.held_since.append(new.name)
    await client.resume()


def _prepare(model: WholeModel, said: Sequence[Any]) -> None:
    """Compute what will be compared before the pause, which would otherwise be longer by it."""
    for answer in said:
        if isinstance(answer, dict) and answer.get("dtype") in COMPARED:
            model.resident_digests(answer["dtype"])


async def _put_back(client: ReplicaClient, old: WholeModel) -> None:
    try:
        await _load(client, old, None)
    except EngineUnavailable:
        raise
    except (SwapRefused, EngineError) as error:
        raise WeightsLost(f"{old.name} could not be put back either: {error}") from error
    await _forget_prefixes(client)


async def _forget_prefixes(client: ReplicaClient) -> None:
    try:
        await client.forget_prefixes()
    except EngineUnavailable:
        raise
    except EngineError as error:  # what would be served is then a mixture of two models
        raise WeightsLost(str(error)) from error


async def _load(client: ReplicaClient, model: WholeModel, proof: ReplicaProof | None) -> None:
    """Reload, and compare what every worker then computes with. Raises SwapRefused."""
    said = await client.call_workers("plaudit_reload", str(model.folder), model.label, timeout_s=RELOAD_TIMEOUT_S)
    for place, answer in enumerate(said):
        if not isinstance(answer, dict) or "error" in answer:
            raise SwapRefused(f"worker {place} could not load {model.name}: {answer and answer.get('error')}")
    await compare_resident(client, model, proof)


async def compare_resident(client: ReplicaClient, model: WholeModel, proof: ReplicaProof | None = None) -> None:
    """Every worker computes with exactly these weights. Raises SwapRefused."""
    answers = await client.call_workers("plaudit_weight_digests", timeout_s=RELOAD_TIMEOUT_S)
    verdicts = [await asyncio.to_thread(_verdict, place, answer, model) for place, answer in enumerate(answers)]
    if proof is not None:
        proof.workers = len(answers)
        proof.tensors_expected = len(_with_tied_head(dict.fromkeys(model.tensors, "")))
        proof.tensors_matched = min((matched for matched, _ in verdicts), default=0)
    if not answers:
        raise SwapRefused("no worker answered")
    if wrong := [reason for _, reason in verdicts if reason is not None]:
        raise SwapRefused(wrong[0])


def _verdict(place: int, answer: Any, model: WholeModel) -> tuple[int, str | None]:
    """How many weights of a worker are the published ones, and what is wrong."""
    if not isinstance(answer, dict) or "error" in answer:
        return 0, f"worker {place} cannot say which weights it holds: {answer and answer.get('error')}"
    held = _with_tied_head(answer["digests"])
    expected = _with_tied_head(model.resident_digests(answer["dtype"]))
    matched = sum(held.get(name) == digest for name, digest in expected.items())
    if matched != len(expected):
        wrong = next(name for name, digest in expected.items() if held.get(name) != digest)
        return matched, f"worker {place} holds {matched} of {len(expected)} weights of {model.name}, not {wrong}"
    if stray := sorted(set(held) - set(expected)):
        return matched, f"worker {place} computes with weights that were not published: {stray[0]}"
    return matched, None


def _with_tied_head(digests: Mapping[str, str]) -> Mapping[str, str]:
    """Checkpoints and engines may have one matrix under two names, or leave the second name out."""
    embeddings = next((digest for name, digest in digests.items() if name.endswith(_EMBEDDINGS)), None)
    return {_TIED: embeddings, **digests} if embeddings is not None else digests


async def labels(client: ReplicaClient) -> set[str]:
    """By which names the workers call what they hold; the empty one is what they were started with."""
    try:
        answers = await client.call_workers("plaudit_weights")
    except EngineUnavailable:
        raise
    except EngineError:  # an inspector that knows nothing of swaps has made none
        return {""}
    return {str(answer["label"]) for answer in answers if isinstance(answer, dict) and "label" in answer}


async def score(client: ReplicaClient, sequences: Sequence[ProbeSequence]) -> Scores:
    """A probe's sequences under the whole model that is live."""
    tokens = [TokenSequence(prompt_ids=s.prompt_ids, response_ids=s.response_ids) for s in sequences]
    return await client.score(tokens, model=BASE, priority=PROBE_PRIORITY)


async def probe_live(client: ReplicaClient, probe: Probe, parent: Scores, bounds: Bounds) -> ProbeResult:
    """Score the probe under what is live, and judge it against the parent's scores, taken on the same replica.

    As for adapters, the rest is not scored where the first sequences leave no doubt.
    """
    served: Scores = []
    for until in looks(len(probe.sequences)):
        served += await score(client, probe.sequences[len(served) : until])
        result = await asyncio.to_thread(_judge, probe, parent, served, bounds)
        if is_beyond_doubt(result):
            break
    return result


def _judge(probe: Probe, parent: Scores, served: Scores, bounds: Bounds) -> ProbeResult:
    rows = zip(probe.sequences, parent, served, strict=False)  # as many as were scored
    scored = [ScoredSequence(s.parent_logprobs, s.new_logprobs, p, n, s.exact_change) for s, p, n in rows]
    return judge(scored, low=bounds.low, high=bounds.high)

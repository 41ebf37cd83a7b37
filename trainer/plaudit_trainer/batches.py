"""From votes to a preference batch: singles, pairs and trajectories, weighted, capped, split, every drop counted.

No model here: text is turned into tokens by the `Encoder` that the caller brings.
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from plaudit.wire.base import JsonObject
from plaudit.wire.chat import SamplingParams
from plaudit.wire.training import Batch, RecordVote, TrainingComparison, TrainingRecord
from plaudit_trainer.config import TrainerConfig

Encoder = Callable[[Sequence[JsonObject], str], "tuple[list[int], list[int]]"]
"""(messages, answer) → (prompt ids, response ids with the end-of-text token). For texts the engine did not draw."""

Tokens = tuple[tuple[int, ...], tuple[int, ...]]
"""(prompt ids, response ids)."""

_PAIRS_PER_PROMPT = 4
_MAX_CLASS_WEIGHT = 4.0


@dataclass(frozen=True, slots=True)
class Single:
    """A voted answer. `label` is the mean vote brought to [0, 1]; `users` are its raters."""

    response_id: str
    tokens: Tokens
    label: float
    weight: float
    users: frozenset[str]
    cluster: str


@dataclass(frozen=True, slots=True)
class Pair:
    """One answer preferred to another on the same prompt."""

    source: Literal["comparison", "correction", "votes"]
    chosen: Tokens
    rejected: Tokens
    weight: float
    users: frozenset[str]
    cluster: str


@dataclass(frozen=True, slots=True)
class Trajectory:
    """An answer that may enter a PPO ratio: ids and sampling-time log-probabilities are exactly the engine's.

    Args:
        vote: its raters' mean vote in [−1, 1], None where nobody voted (fresh rollouts).
    """

    tokens: Tokens
    logprobs: tuple[float, ...]
    temperature: float
    finish_reason: str | None
    has_stops: bool
    version: str
    vote: float | None
    cluster: str


@dataclass(frozen=True, slots=True)
class PreferenceBatch:
    """What a leased batch says. `reason` names why it is not enough to learn from; None where it is."""

    singles: list[Single]
    pairs: list[Pair]
    trajectories: list[Trajectory]
    messages: dict[str, list[JsonObject]]
    dropped: dict[str, int] = field(default_factory=dict)
    reason: str | None = None

    def counts(self) -> dict[str, float]:
        """Figures for the run's metrics."""
        up = sum(s.label > 0.5 for s in self.singles)
        figures = {"singles": len(self.singles), "up": up, "down": len(self.singles) - up, "pairs": len(self.pairs)}
        figures |= {"trajectories": len(self.trajectories), "prompts": len(self.messages)}
        return {f"batch/{k}": float(v) for k, v in figures.items()} | {
            f"batch/dropped_{k}": float(v) for k, v in self.dropped.items()
        }


def build(batch: Batch, encode: Encoder, config: TrainerConfig) -> PreferenceBatch:
    """Turn a leased batch into what is learnt from. Deterministic: the same batch gives the same result."""
    drops: Counter[str] = Counter(batch.dropped)
    records = _without_duplicates(_with_votes(batch.records, config, drops), drops)
    tokens = {r.response_id: _tokens(r.prompt_ids, r.response_ids, r.messages, r.content, encode) for r in records}
    singles = [_single(r, tokens[r.response_id]) for r in records]
    pairs = [p for c in batch.comparisons if (p := _compared(c, batch.records, encode, drops)) is not None]
    pairs += [p for r in records for p in _corrections(r, tokens[r.response_id], encode)]
    from_votes, paired = _pairs_from_votes(singles)
    unpaired = [s for s in singles if s.response_id not in paired]
    trajectories = [t for r in records if (t := _trajectory(r, drops)) is not None]
    reason = _insufficient(singles, pairs, batch, config)
    shares = _user_weights([*singles, *pairs], config.max_weight_share)
    return PreferenceBatch(
        singles=_balanced([replace(s, weight=s.weight * _mean(shares, s.users)) for s in unpaired]),
        pairs=[replace(p, weight=p.weight * _mean(shares, p.users)) for p in pairs + from_votes],
        trajectories=trajectories,
        messages={_cluster(r.messages, r.prompt_key): r.messages for r in batch.records},
        dropped=dict(drops),
        reason=reason,
    )


# Which votes count


def _with_votes(records: Sequence[TrainingRecord], config: TrainerConfig, drops: Counter[str]) -> list[TrainingRecord]:
    """Records with at least one counted vote or correction; each rater's votes beyond the cap are left out."""
    allowed = _capped_votes(records, config)
    kept = []
    for record in records:
        counted = [v for v in record.votes if v.feedback_id in allowed]
        drops["votes_over_user_cap"] += sum(
            v.key == config.vote_key and v.feedback_id not in allowed for v in record.votes
        )
        if not counted:
            drops["no_counted_vote"] += 1
        elif not record.content.strip() and not record.response_ids:
            drops["empty_answer"] += 1
        else:
            kept.append(record.model_copy(update={"votes": counted}))
    drops += Counter()  # forget zero counts
    return kept


def _capped_votes(records: Sequence[TrainingRecord], config: TrainerConfig) -> set[str]:
    by_user: dict[str, list[RecordVote]] = defaultdict(list)
    for record in records:
        for vote in record.votes:
            if vote.key == config.vote_key:
                by_user[_user(vote, record)].append(vote)
    cap = config.max_votes_per_user or None
    return {v.feedback_id for votes in by_user.values() for v in sorted(votes, key=lambda v: v.occurred_at)[:cap]}


def _user(vote: RecordVote, record: TrainingRecord) -> str:
    """The rater; nameless ones are told apart by the answer they rated."""
    return vote.end_user or f"nameless:{record.response_id}"


def _without_duplicates(records: Sequence[TrainingRecord], drops: Counter[str]) -> list[TrainingRecord]:
    """The same raters giving the same vote on the same answer to the same prompt say it once."""
    seen: set[tuple[object, ...]] = set()
    kept = []
    for record in records:
        says = (record.prompt_key, record.content, tuple(sorted((v.end_user or "", v.value) for v in record.votes)))
        if says in seen:
            drops["duplicate"] += 1
        else:
            seen.add(says)
            kept.append(record)
    return kept


def _insufficient(singles: Sequence[Single], pairs: Sequence[Pair], batch: Batch, config: TrainerConfig) -> str | None:
    examples = len(singles) + len(pairs)
    users = {user for s in singles for user in s.users} | {user for p in pairs for user in p.users}
    texts = {s.tokens for s in singles} | {t for p in pairs for t in (p.chosen, p.rejected)}
    if len(texts) <= 1 < examples:
        return "all answers are duplicates of one another: there is nothing to compare"
    if examples < config.min_examples:
        return f"{examples} usable examples, at least {config.min_examples} are needed"
    if len(users) < config.min_users:
        return f"{len(users)} rater(s), at least {config.min_users} are needed"
    if not pairs and len({s.label > 0.5 for s in singles}) < 2:
        return f"only {'up' if singles[0].label > 0.5 else 'down'}-votes: one class cannot teach a difference"
    return None


# Examples


def _tokens(
    prompt_ids: list[int] | None, response_ids: list[int] | None, messages: list[JsonObject], text: str, encode: Encoder
) -> Tokens:
    if prompt_ids is None or response_ids is None:
        prompt_ids, response_ids = encode(messages, text)
    return tuple(prompt_ids), tuple(response_ids)


def _single(record: TrainingRecord, tokens: Tokens) -> Single:
    mean = sum(v.value for v in record.votes) / len(record.votes)
    users = frozenset(_user(v, record) for v in record.votes)
    cluster = _cluster(record.messages, record.prompt_key)
    return Single(record.response_id, tokens, (mean + 1) / 2, 1.0, users, cluster)


def _compared(
    comparison: TrainingComparison, records: Sequence[TrainingRecord], encode: Encoder, drops: Counter[str]
) -> Pair | None:
    if comparison.tie is not None:
        drops["tie"] += 1
        return None
    by_id = {r.response_id: r for r in records}

    def side(response_id: str | None, text: str) -> Tokens:
        record = by_id.get(response_id or "")
        ids = (record.prompt_ids, record.response_ids) if record else (None, None)
        return _tokens(*ids, comparison.messages, text, encode)

    chosen = side(comparison.chosen_id, comparison.chosen_text)
    rejected = side(comparison.rejected_id, comparison.rejected_text)
    if chosen[1] == rejected[1]:
        drops["equal_sides"] += 1
        return None
    users = frozenset([comparison.end_user or f"nameless:{comparison.id}"])
    return Pair("comparison", chosen, rejected, 1.0, users, _cluster(comparison.messages, None))


def _corrections(record: TrainingRecord, answer: Tokens, encode: Encoder) -> list[Pair]:
    """What a user wrote instead is preferred to what the model said."""
    pairs = []
    for vote in record.votes:
        if vote.correction and vote.correction.strip() != record.content.strip():
            better = encode(record.messages, vote.correction)
            chosen = (answer[0], tuple(better[1]))  # the prompt as the engine saw it
            users = frozenset([_user(vote, record)])
            pairs.append(Pair("correction", chosen, answer, 1.0, users, _cluster(record.messages, record.prompt_key)))
    return pairs


def _pairs_from_votes(singles: Sequence[Single]) -> tuple[list[Pair], set[str]]:
    """Up-voted over down-voted answers to the same prompt, each answer in one pair; and the ids that were paired."""
    by_prompt: dict[tuple[int, ...], tuple[list[Single], list[Single]]] = defaultdict(lambda: ([], []))
    for single in singles:
        by_prompt[single.tokens[0]][single.label <= 0.5].append(single)
    pairs, paired = [], set[str]()
    for ups, downs in by_prompt.values():
        for up, down in list(zip(ups, downs, strict=False))[:_PAIRS_PER_PROMPT]:
            if up.tokens != down.tokens:
                pairs.append(Pair("votes", up.tokens, down.tokens, 1.0, up.users | down.users, up.cluster))
                paired |= {up.response_id, down.response_id}
    return pairs, paired


def _trajectory(record: TrainingRecord, drops: Counter[str]) -> Trajectory | None:
    """The record as PPO may use it; None, counted, where its log-probabilities are not those of π at a temperature."""
    why = unusable_sampling(record.sampling)
    if record.prompt_ids is None or record.response_ids is None or record.logprobs is None:
        why = "trajectory_without_logprobs"
    elif not record.response_ids or len(record.logprobs) != len(record.response_ids):
        why = "trajectory_length_mismatch"
    if why is not None:
        drops[why] += 1
        return None
    votes = [v.value for v in record.votes]
    return Trajectory(
        tokens=(tuple(record.prompt_ids or ()), tuple(record.response_ids or ())),
        logprobs=tuple(record.logprobs or ()),
        temperature=record.sampling.temperature,
        finish_reason=record.finish_reason,
        has_stops=bool(record.sampling.stop),
        version=record.version,
        vote=sum(votes) / len(votes),
        cluster=_cluster(record.messages, record.prompt_key),
    )


_NEUTRAL: dict[str, tuple[object, ...]] = {
    "repetition_penalty": (1, None),
    "presence_penalty": (0, None),
    "frequency_penalty": (0, None),
    "logit_bias": (None, {}),
    "structured_outputs": (None,),
    "response_format": (None,),
    "min_tokens": (0, None),
}


def unusable_sampling(sampling: SamplingParams) -> str | None:
    """Why answers drawn this way cannot enter a ratio: they did not come from softmax(logits / temperature)."""
    if sampling.temperature <= 0:
        return "trajectory_greedy"
    if sampling.top_p < 1 or sampling.top_k not in (None, 0, -1) or sampling.min_p not in (None, 0):
        return "trajectory_truncated_sampling"
    extra = sampling.model_extra or {}
    if any(extra.get(name, allowed[0]) not in allowed for name, allowed in _NEUTRAL.items()):
        return "trajectory_altered_logits"
    return None


# Weights


def _mean(weights: dict[str, float], users: frozenset[str]) -> float:
    return sum(weights[u] for u in users) / len(users)


def _user_weights(examples: Sequence[Single | Pair], share: float) -> dict[str, float]:
    """A factor for each rater such that none holds more than `share` of the weight (or 1/raters, if that is more)."""
    held: Counter[str] = Counter()
    for example in examples:
        for user in example.users:
            held[user] += 1 / len(example.users)  # type: ignore[assignment]
    factors = dict.fromkeys(held, 1.0)
    if not share or not held:
        return factors
    limit = max(share, 1 / len(held))
    capped: set[str] = set()
    while True:  # capping one rater lowers the total and may lift another above the limit: at most one round a rater
        free = sum(n for u, n in held.items() if u not in capped)
        room = 1 - limit * len(capped)
        ceiling = limit * free / room if room > 1e-9 else min(held.values())
        over = {u for u, n in held.items() if u not in capped and n > ceiling * (1 + 1e-9)}
        if not over:
            return {u: min(1.0, ceiling / n) for u, n in held.items()}
        capped |= over


def _balanced(singles: list[Single]) -> list[Single]:
    """Equal total weight for up- and down-votes, the rarer class lifted at most fourfold."""
    up = sum(s.weight for s in singles if s.label > 0.5)
    down = sum(s.weight for s in singles if s.label <= 0.5)
    if not up or not down:
        return singles
    half = (up + down) / 2
    factors = {True: min(half / up, _MAX_CLASS_WEIGHT), False: min(half / down, _MAX_CLASS_WEIGHT)}
    return [replace(s, weight=s.weight * factors[s.label > 0.5]) for s in singles]


# Held-out parts


def _cluster(messages: Sequence[JsonObject], prompt_key: str | None) -> str:
    """Prompts that differ only in case, spacing or punctuation are one cluster."""
    words = " ".join(re.findall(r"\w+", " ".join(str(m.get("content", "")) for m in messages).casefold()))
    return hashlib.sha256((words or prompt_key or "").encode()).hexdigest()[:16]


def folds_of(examples: Sequence[Single | Pair], count: int, seed: int = 0) -> list[int]:
    """A fold for each example such that no rater and no prompt cluster lies in two: connected ones stay together.

    Up-votes, down-votes and pairs are each spread evenly, as far as groups allow: a fold short of up-votes leaves too
    many to fit on, which pushes its scores up exactly where few ups are, and the pooled AUROC down.

    Where raters and prompts are so entangled that one component holds more than a quarter of the examples, folds are
    drawn by prompt cluster alone: an unseen prompt is then still unseen, though its rater may not be.
    """
    roots = _components(examples)
    largest = max(Counter(roots).values(), default=0)
    keys = roots if largest <= len(examples) / 4 else [e.cluster for e in examples]
    kinds = ["pair" if isinstance(e, Pair) else "up" if e.label > 0.5 else "down" for e in examples]
    totals, groups = Counter(kinds), defaultdict[str, Counter[str]](Counter)
    for key, kind in zip(keys, kinds, strict=True):
        groups[key][kind] += 1
    held: list[Counter[str]] = [Counter() for _ in range(count)]
    fold: dict[str, int] = {}
    for key in sorted(groups, key=lambda key: (-groups[key].total(), _shuffled(key, seed))):
        crowded = [sum(held[f][kind] * n / totals[kind] for kind, n in groups[key].items()) for f in range(count)]
        fold[key] = min(range(count), key=lambda f: (crowded[f], held[f].total()))
        held[fold[key]] += groups[key]
    return [fold[key] for key in keys]


def _components(examples: Sequence[Single | Pair]) -> list[str]:
    above: dict[str, str] = {}

    def root(node: str) -> str:
        while above.setdefault(node, node) != node:
            node = above[node]
        return node

    for example in examples:
        for user in example.users:
            above[root(f"user {user}")] = root(f"prompt {example.cluster}")
    return [root(f"prompt {example.cluster}") for example in examples]


def _shuffled(key: str, seed: int) -> str:
    return hashlib.sha256(f"{seed} {key}".encode()).hexdigest()


def heldout_clusters(clusters: Sequence[str], share: float, seed: int = 0) -> set[str]:
    """Prompt clusters kept out of the policy's training. By hash: a prompt held out once is held out in every run."""
    threshold = int(share * 16**8)
    return {c for c in clusters if int(_shuffled(c, seed)[:8], 16) < threshold}

"""From a leased batch to a preference batch, every drop counted."""

from collections import Counter
from collections.abc import Sequence
from itertools import compress

from plaudit.wire.training import Batch, TrainingComparison, TrainingRecord
from plaudit_trainer.batches import bursts, signals
from plaudit_trainer.batches.bursts import PhraseHistory
from plaudit_trainer.batches.counted import Counted, counted, rater_of_vote
from plaudit_trainer.batches.examples import Encoder, Pair, PreferenceBatch, Single, Trajectory, cluster_of
from plaudit_trainer.batches.weights import Caps, balanced, caps
from plaudit_trainer.config import TrainerConfig

_TRUSTED = 0.5
"""A rater whose weight is scaled below this gives no trajectory its own vote: the reward model alone scores it."""


def build(
    batch: Batch, encode: Encoder, config: TrainerConfig, history: PhraseHistory | None = None
) -> PreferenceBatch:
    """Turn a leased batch into what is learnt from. Deterministic: the same batch gives the same result.

    Args:
        encode: tokens for texts that no engine drew.
        history: phrases of earlier batches, for the quarantine; none: nothing is held.
    """
    drops: Counter[str] = Counter(batch.dropped)
    said = _out_of_quarantine(counted(batch, config, drops), history or PhraseHistory.empty(), drops)
    singles, pairs = _preferences(said, batch, encode, drops)
    limits = caps(
        [*singles, *pairs],
        user_share=config.max_weight_share,
        young=said.young,
        young_share=config.max_young_share,
    )
    messages = {cluster_of(r.messages, r.prompt_key): r.messages for r in batch.records}
    log = {cluster_of(prompt): prompt for prompt in batch.prompts}
    return PreferenceBatch(
        singles=limits.applied(singles),
        pairs=limits.applied(pairs),
        trajectories=_trajectories(said.records, limits, drops),
        messages=messages,
        dropped={reason: count for reason, count in drops.items() if count},
        reason=_insufficient(singles, pairs, limits, said, config),
        log={cluster: prompt for cluster, prompt in log.items() if cluster not in messages},
        heaviest_share=limits.heaviest_share,
        young_share=limits.young_share,
    )


def remember(batch: Batch, config: TrainerConfig, history: PhraseHistory) -> PhraseHistory:
    """The history after this batch."""
    said = counted(batch, config, Counter())
    carried = [bursts.of_record(r) for r in said.records] + [bursts.of_comparison(c) for c in said.comparisons]
    return history.after(carried, bursts.quarantined(carried, history))


def _out_of_quarantine(said: Counted, history: PhraseHistory, drops: Counter[str]) -> Counted:
    carried = [bursts.of_record(r) for r in said.records] + [bursts.of_comparison(c) for c in said.comparisons]
    free = [not held for held in bursts.quarantined(carried, history)]
    drops["quarantined_burst"] += len(free) - sum(free)
    records: list[TrainingRecord] = list(compress(said.records, free))
    comparisons: list[TrainingComparison] = list(compress(said.comparisons, free[len(said.records) :]))
    return Counted(records, comparisons, said.young)


def _preferences(said: Counted, batch: Batch, encode: Encoder, drops: Counter[str]) -> tuple[list[Single], list[Pair]]:
    """Balanced singles and pairs, before the caps."""
    tokens = {r.response_id: signals.record_tokens(r, encode) for r in said.records}
    by_id = {r.response_id: r for r in [*batch.records, *said.records]}  # the latter with their counted votes only
    singles = [s for r in said.records if (s := signals.single(r, tokens[r.response_id], drops)) is not None]
    compared = [p for c in said.comparisons if (p := signals.compared(c, by_id, encode, drops)) is not None]
    corrected = [p for r in said.records for p in signals.corrections(r, tokens[r.response_id], encode)]
    from_votes, paired = signals.pairs_from_votes(singles)
    order = ["comparison", "correction", "regeneration", "votes"]
    pairs = sorted([*compared, *corrected, *from_votes], key=lambda p: order.index(p.source))
    return balanced([s for s in singles if s.response_id not in paired]), signals.strongest(pairs, drops)


def _trajectories(records: Sequence[TrainingRecord], limits: Caps, drops: Counter[str]) -> list[Trajectory]:
    found = []
    for record in records:
        raters = {rater_of_vote(v, record) for v in record.votes if v.value is not None} & limits.factors.keys()
        own_vote = bool(raters) and limits.factor(raters) >= _TRUSTED
        found.append(signals.trajectory(record, drops, own_vote=own_vote))
    return [each for each in found if each is not None]


def _insufficient(
    singles: Sequence[Single], pairs: Sequence[Pair], limits: Caps, said: Counted, config: TrainerConfig
) -> str | None:
    examples = len(singles) + len(pairs) + sum(p.source == "votes" for p in pairs)  # such a pair is two voted answers
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
    if not any(limits.factors[user] for user in users):
        return (
            f"all {len(users & said.young)} raters were first seen less than {config.young_days:g} days ago, and such "
            f"accounts may hold {config.max_young_share:.0%} of the weight together; while a service is new, set "
            "PLAUDIT_TRAINER_MAX_YOUNG_SHARE=1"
        )
    return None

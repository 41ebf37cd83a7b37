"""Which votes count: the rater's first few, each said once, on answers that have words."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from plaudit.wire.training import Batch, RecordVote, TrainingComparison, TrainingRecord
from plaudit_trainer.config import TrainerConfig

Said = RecordVote | TrainingComparison


def rater_of_vote(vote: RecordVote, record: TrainingRecord) -> str:
    """The rater; nameless ones are told apart by the answer they rated."""
    return vote.end_user or f"nameless:{record.response_id}"


def rater_of_comparison(comparison: TrainingComparison) -> str:
    """The rater; nameless ones are told apart by the comparison."""
    return comparison.end_user or f"nameless:{comparison.id}"


@dataclass(frozen=True, slots=True)
class Counted:
    """Records with the votes (and corrections) that count, comparisons that count, and who of the raters is young."""

    records: list[TrainingRecord]
    comparisons: list[TrainingComparison]
    young: frozenset[str]


def counted(batch: Batch, config: TrainerConfig, drops: Counter[str]) -> Counted:
    """What of a batch counts; the rest is counted in `drops` by reason."""
    comparisons, votes = _within_cap(batch, config, drops)
    sides = {side for c in comparisons for side in (c.chosen_id, c.rejected_id)}
    records = []
    for record in batch.records:
        kept = [v for v in record.votes if v.feedback_id in votes]
        if kept and not record.content.strip() and not record.response_ids:
            drops["empty_answer"] += 1
        elif kept:
            records.append(record.model_copy(update={"votes": kept}))
        elif record.response_id not in sides:
            drops["no_counted_vote"] += 1
    return Counted(_said_once(records, drops), comparisons, _young(batch, config))


def _within_cap(
    batch: Batch, config: TrainerConfig, drops: Counter[str]
) -> tuple[list[TrainingComparison], frozenset[str]]:
    """Comparisons and ids of votes that count. Comparisons say more, so they come first; then votes, oldest first."""
    cap = config.max_votes_per_user or len(batch.comparisons) + sum(len(r.votes) for r in batch.records)
    used: Counter[str] = Counter()
    comparisons = []
    for comparison in sorted(batch.comparisons, key=lambda c: c.source == "regeneration"):
        rater = rater_of_comparison(comparison)
        used[rater] += 1
        if used[rater] <= cap:
            comparisons.append(comparison)
    drops["comparisons_over_user_cap"] += len(batch.comparisons) - len(comparisons)
    by_rater: dict[str, list[RecordVote]] = defaultdict(list)
    for record in batch.records:
        for vote in record.votes:
            if vote.key == config.vote_key and (vote.value is not None or vote.correction):
                by_rater[rater_of_vote(vote, record)].append(vote)
    kept: set[str] = set()
    for rater, votes in by_rater.items():
        left = max(0, cap - used[rater])
        kept |= {v.feedback_id for v in sorted(votes, key=lambda v: v.occurred_at)[:left]}
        drops["votes_over_user_cap"] += max(0, len(votes) - left)
    drops += Counter()  # forget zero counts
    return comparisons, frozenset(kept)


def _said_once(records: Sequence[TrainingRecord], drops: Counter[str]) -> list[TrainingRecord]:
    """The same raters giving the same vote on the same answer to the same prompt say it once."""
    seen: set[tuple[object, ...]] = set()
    kept = []
    for record in records:
        votes = sorted((v.end_user or "", str(v.value), v.correction or "") for v in record.votes)
        says = (record.prompt_key, record.content, tuple(votes))
        if says in seen:
            drops["duplicate"] += 1
        else:
            seen.add(says)
            kept.append(record)
    return kept


def _young(batch: Batch, config: TrainerConfig) -> frozenset[str]:
    """Raters first seen less than `young_days` before the lease, by the server's clock. Unknown is not young."""
    if batch.leased_at is None:
        return frozenset()
    since = batch.leased_at - timedelta(days=config.young_days)
    young = {rater_of_vote(v, r) for r in batch.records for v in r.votes if _after(v.rater_since, since)}
    return frozenset(young | {rater_of_comparison(c) for c in batch.comparisons if _after(c.rater_since, since)})


def _after(seen: datetime | None, since: datetime) -> bool:
    return seen is not None and seen > since

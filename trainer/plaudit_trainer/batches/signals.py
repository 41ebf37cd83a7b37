"""From what counts to singles, pairs and trajectories. Texts without tokens get them from the caller's `Encoder`."""

from collections import Counter, defaultdict
from collections.abc import Sequence

from plaudit.wire.base import JsonObject
from plaudit.wire.chat import SamplingParams
from plaudit.wire.training import TrainingComparison, TrainingRecord
from plaudit_trainer.batches.counted import rater_of_comparison, rater_of_vote
from plaudit_trainer.batches.examples import Encoder, Pair, Single, Tokens, Trajectory, cluster_of

_PAIRS_PER_PROMPT = 4

STRENGTH = {"comparison": 1.0, "correction": 1.0, "regeneration": 0.5, "votes": 1.0}
"""Weight of a pair before balance and caps. Nobody said that a regenerated answer is better: it counts half. A pair of
votes stands for the two singles that it replaces."""


def tokens_of(
    prompt_ids: list[int] | None, response_ids: list[int] | None, messages: list[JsonObject], text: str, encode: Encoder
) -> Tokens:
    """The engine's own ids where it gave them, else those of the text."""
    if prompt_ids is None or response_ids is None:
        prompt_ids, response_ids = encode(messages, text)
    return tuple(prompt_ids), tuple(response_ids)


def record_tokens(record: TrainingRecord, encode: Encoder) -> Tokens:
    """Tokens of a record's answer."""
    return tokens_of(record.prompt_ids, record.response_ids, record.messages, record.content, encode)


def vote_of(record: TrainingRecord) -> float | None:
    """Mean of its votes in [−1, 1]; None where it was only corrected or compared."""
    values = [v.value for v in record.votes if v.value is not None]
    return sum(values) / len(values) if values else None


def single(record: TrainingRecord, tokens: Tokens, drops: Counter[str]) -> Single | None:
    """The record as a voted answer. None where there is no vote, or votes that cancel out say nothing."""
    vote = vote_of(record)
    if vote is None:
        return None
    if vote == 0:
        drops["undecided"] += 1
        return None
    raters = frozenset(rater_of_vote(v, record) for v in record.votes if v.value is not None)
    cluster = cluster_of(record.messages, record.prompt_key)
    return Single(record.response_id, tokens, (vote + 1) / 2, 1.0, raters, cluster)


def compared(
    comparison: TrainingComparison, by_id: dict[str, TrainingRecord], encode: Encoder, drops: Counter[str]
) -> Pair | None:
    """A comparison, or a regenerated answer that was kept, as a pair; None, counted, where it prefers nothing.

    Args:
        by_id: the batch's records by their answer's id: where a side is one of them, its tokens are the engine's.
    """
    chosen_record, rejected_record = by_id.get(comparison.chosen_id or ""), by_id.get(comparison.rejected_id or "")

    def side(record: TrainingRecord | None, text: str) -> Tokens:
        ids = (record.prompt_ids, record.response_ids) if record else (None, None)
        return tokens_of(*ids, comparison.messages, text, encode)

    chosen = side(chosen_record, comparison.chosen_text)
    rejected = side(rejected_record, comparison.rejected_text)
    why = None
    if comparison.tie is not None:
        why = "tie"
    elif chosen[1] == rejected[1]:
        why = "equal_sides"
    elif comparison.source == "regeneration" and _votes_say_otherwise(chosen_record, rejected_record):
        why = "regeneration_against_votes"
    if why is not None:
        drops[why] += 1
        return None
    raters = frozenset([rater_of_comparison(comparison)])
    weight = STRENGTH[comparison.source]
    return Pair(comparison.source, chosen, rejected, weight, raters, cluster_of(comparison.messages))


def _votes_say_otherwise(kept: TrainingRecord | None, sent_back: TrainingRecord | None) -> bool:
    """Keeping an answer one then votes down, or sending back one voted up, is no preference."""
    return ((vote_of(kept) or 0) if kept else 0) < 0 or ((vote_of(sent_back) or 0) if sent_back else 0) > 0


def corrections(record: TrainingRecord, answer: Tokens, encode: Encoder) -> list[Pair]:
    """What a user wrote instead is preferred to what the model said."""
    pairs = []
    for vote in record.votes:
        if vote.correction and vote.correction.strip() != record.content.strip():
            better = encode(record.messages, vote.correction)
            chosen = (answer[0], tuple(better[1]))  # the prompt as the engine saw it
            raters, cluster = frozenset([rater_of_vote(vote, record)]), cluster_of(record.messages, record.prompt_key)
            pairs.append(Pair("correction", chosen, answer, STRENGTH["correction"], raters, cluster))
    return pairs


def pairs_from_votes(singles: Sequence[Single]) -> tuple[list[Pair], set[str]]:
    """Up-voted over down-voted answers to the same prompt, each answer in one pair; and the ids that were paired."""
    by_prompt: dict[tuple[int, ...], tuple[list[Single], list[Single]]] = defaultdict(lambda: ([], []))
    for each in singles:
        by_prompt[each.tokens[0]][each.label <= 0.5].append(each)
    pairs, paired = [], set[str]()
    for ups, downs in by_prompt.values():
        for up, down in list(zip(ups, downs, strict=False))[:_PAIRS_PER_PROMPT]:
            if up.tokens != down.tokens:
                weight = STRENGTH["votes"]
                pairs.append(Pair("votes", up.tokens, down.tokens, weight, up.users | down.users, up.cluster))
                paired |= {up.response_id, down.response_id}
    return pairs, paired


def strongest(pairs: Sequence[Pair], drops: Counter[str]) -> list[Pair]:
    """Each rater's preference between two answers once, from the strongest source; `pairs` come strongest first."""
    seen: set[tuple[object, ...]] = set()
    kept = []
    for pair in pairs:
        says = (pair.users, pair.chosen, pair.rejected)
        if says in seen:
            drops["duplicate_pair"] += 1
        else:
            seen.add(says)
            kept.append(pair)
    return kept


def trajectory(record: TrainingRecord, drops: Counter[str], *, own_vote: bool) -> Trajectory | None:
    """The record as PPO may use it; None, counted, where its log-probabilities are not those of π at a temperature.

    Args:
        own_vote: whether its raters' votes may enter its reward as they are.
    """
    why = unusable_sampling(record.sampling)
    if record.prompt_ids is None or record.response_ids is None or record.logprobs is None:
        why = "trajectory_without_logprobs"
    elif not record.response_ids or len(record.logprobs) != len(record.response_ids):
        why = "trajectory_length_mismatch"
    if why is not None:
        drops[why] += 1
        return None
    return Trajectory(
        tokens=(tuple(record.prompt_ids or ()), tuple(record.response_ids or ())),
        logprobs=tuple(record.logprobs or ()),
        temperature=record.sampling.temperature,
        finish_reason=record.finish_reason,
        has_stops=bool(record.sampling.stop or (record.sampling.model_extra or {}).get("has_stop")),
        version=record.version,
        vote=vote_of(record) if own_vote else None,
        cluster=cluster_of(record.messages, record.prompt_key),
    )


_NEUTRAL: dict[str, tuple[object, ...]] = {
    "constrained": (None, False),  # the server's mark of logit_bias, response_format, tools and their kin
    "repetition_penalty": (1, None),
    "presence_penalty": (0, None),
    "frequency_penalty": (0, None),
    "logit_bias": (None, {}),
    "structured_outputs": (None,),
    "response_format": (None,),
    "tools": (None, []),
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

"""What becomes of votes: singles, pairs, trajectories, caps, drops, folds."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from plaudit.wire.base import JsonObject
from plaudit.wire.chat import SamplingParams
from plaudit.wire.training import Batch, RecordVote, TrainingComparison, TrainingRecord
from plaudit_trainer import batches
from plaudit_trainer.batches import PreferenceBatch
from plaudit_trainer.config import TrainerConfig

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def encode(messages: Sequence[JsonObject], answer: str) -> tuple[list[int], list[int]]:
    return [ord(c) for c in str(messages[-1]["content"])], [*(ord(c) for c in answer), 2]


def record(
    i: int, *, value: float | None = 1.0, user: str | None = "", question: str = "", **changes: Any
) -> TrainingRecord:
    question = question or f"question {i}"
    vote = RecordVote(
        feedback_id=f"f{i}",
        key="thumb",
        value=value if value is not None else 0.0,
        end_user=f"u{i}" if user == "" else user,
        source="user",
        occurred_at=NOW + timedelta(seconds=i),
    )
    fields: dict[str, Any] = {
        "response_id": f"r{i}",
        "version": "v1",
        "created_at": NOW,
        "prompt_key": question,
        "messages": [{"role": "user", "content": question}],
        "content": f"answer {i}",
        "prompt_ids": [ord(c) for c in question],
        "response_ids": [100 + i, 2],
        "logprobs": [-1.0, -2.0],
        "finish_reason": "stop",
        "sampling": SamplingParams(temperature=0.8),
        "end_user": "asker",
        "redacted": False,
        "votes": [vote] if value is not None else [],
    }
    return TrainingRecord(**(fields | changes))


def built(
    records: list[TrainingRecord], comparisons: list[TrainingComparison] | None = None, **config: Any
) -> PreferenceBatch:
    batch = Batch(id="b", state="leased", available=1, needed=1, records=records, comparisons=comparisons or [])
    return batches.build(batch, encode, TrainerConfig(**({"min_examples": 2} | config)))


def comparison(**changes: Any) -> TrainingComparison:
    fields: dict[str, Any] = {
        "id": "c1",
        "messages": [{"role": "user", "content": "question 0"}],
        "chosen_id": "r0",
        "rejected_id": None,
        "chosen_text": "answer 0",
        "rejected_text": "worse",
        "tie": None,
        "end_user": "judge",
    }
    return TrainingComparison(**(fields | changes))


UP_AND_DOWN = [record(0, value=1.0), record(1, value=-1.0)]


def test_thumbs_become_labels() -> None:
    batch = built([*UP_AND_DOWN, record(2, value=0.5)])
    assert {s.response_id: s.label for s in batch.singles} == {"r0": 1.0, "r1": 0.0, "r2": 0.75}
    assert batch.reason is None


def test_ids_are_the_engines_where_it_gave_them_and_encoded_where_redaction_took_them() -> None:
    redacted = record(1, value=-1.0, prompt_ids=None, response_ids=None, logprobs=None, redacted=True)
    batch = built([record(0), redacted])
    tokens = {s.response_id: s.tokens for s in batch.singles}
    assert tokens["r0"][1] == (100, 2)
    assert tokens["r1"] == tuple(map(tuple, encode(redacted.messages, redacted.content)))
    assert [t.tokens for t in batch.trajectories] == [tokens["r0"]]
    assert batch.dropped == {"trajectory_without_logprobs": 1}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"logprobs": [-1.0]}, "trajectory_length_mismatch"),
        ({"response_ids": [], "logprobs": []}, "trajectory_length_mismatch"),
        ({"sampling": SamplingParams(temperature=0)}, "trajectory_greedy"),
        ({"sampling": SamplingParams(top_p=0.9)}, "trajectory_truncated_sampling"),
        ({"sampling": SamplingParams(top_k=20)}, "trajectory_truncated_sampling"),
        ({"sampling": SamplingParams(min_p=0.1)}, "trajectory_truncated_sampling"),
        ({"sampling": SamplingParams(repetition_penalty=1.1)}, "trajectory_altered_logits"),
        ({"sampling": SamplingParams(logit_bias={"5": 3})}, "trajectory_altered_logits"),
    ],
)
def test_answers_that_cannot_enter_a_ratio_are_dropped_and_counted(changes: dict[str, Any], reason: str) -> None:
    batch = built([*UP_AND_DOWN, record(2, **changes)])
    assert batch.dropped == {reason: 1}
    assert len(batch.trajectories) == 2
    assert len(batch.singles) == 3  # the vote still teaches the reward model


def test_neutral_sampling_settings_do_not_cost_a_trajectory() -> None:
    sampling = SamplingParams(temperature=0.7, top_k=-1, min_p=0.0, seed=3, repetition_penalty=1.0, stop=["\n"])
    trajectory = built([*UP_AND_DOWN, record(2, sampling=sampling)]).trajectories[2]
    assert (trajectory.temperature, trajectory.has_stops, trajectory.vote) == (0.7, True, 1.0)


def test_up_and_down_on_one_prompt_make_a_pair_and_no_singles() -> None:
    batch = built(
        [record(0, question="same"), record(1, value=-1.0, question="same"), record(2), record(3, value=-1.0)]
    )
    assert [(p.source, p.chosen[1], p.rejected[1]) for p in batch.pairs] == [("votes", (100, 2), (101, 2))]
    assert {s.response_id for s in batch.singles} == {"r2", "r3"}
    assert len(batch.trajectories) == 4


def test_a_correction_is_preferred_to_the_answer() -> None:
    corrected = record(1, value=-1.0)
    corrected.votes[0].correction = "better"
    (pair,) = built([record(0), corrected]).pairs
    assert pair.source == "correction"
    assert pair.chosen == (pair.rejected[0], tuple(encode([{"content": ""}], "better")[1]))
    assert pair.rejected[1] == (101, 2)


def test_comparisons_become_pairs_with_the_engines_ids_where_known() -> None:
    (pair,) = built(UP_AND_DOWN, [comparison()]).pairs
    assert pair.chosen[1] == (100, 2)
    assert pair.rejected[1] == tuple(encode([{"content": ""}], "worse")[1])
    assert pair.users == {"judge"}


def test_ties_and_equal_sides_are_counted_not_learnt() -> None:
    batch = built(
        UP_AND_DOWN, [comparison(tie="good"), comparison(id="c2", rejected_id="r0", rejected_text="answer 0")]
    )
    assert batch.pairs == []
    assert batch.dropped == {"tie": 1, "equal_sides": 1}


def test_a_raters_votes_beyond_the_cap_do_not_count() -> None:
    records = [record(i, user="busy", value=1.0 if i % 2 else -1.0) for i in range(6)] + [record(9, value=-1.0)]
    batch = built(records, max_votes_per_user=4)
    assert len(batch.singles) == 5
    assert batch.dropped == {"votes_over_user_cap": 2, "no_counted_vote": 2}
    assert len(built(records, max_votes_per_user=0).singles) == 7


def test_no_rater_holds_more_than_the_share() -> None:
    records = [record(i, user="busy", value=1.0) for i in range(10)] + [record(20 + i, value=-1.0) for i in range(10)]
    batch = built(records, max_votes_per_user=0, max_weight_share=0.2)
    raw = batches._user_weights(batch.singles, 0.2)
    held: Counter[str] = Counter()
    for single in batch.singles:
        (user,) = single.users
        held[user] += raw[user]  # type: ignore[assignment]
    assert max(held.values()) / sum(held.values()) == pytest.approx(0.2)
    assert min(raw.values()) == raw["busy"]


def test_a_share_too_small_for_so_few_raters_means_equal_shares() -> None:
    records = [record(i, user="a") for i in range(6)] + [record(10 + i, user="b", value=-1.0) for i in range(2)]
    weights = batches._user_weights(built(records, max_votes_per_user=0).singles, 0.01)
    assert 6 * weights["a"] == pytest.approx(2 * weights["b"])


def test_classes_are_balanced_up_to_fourfold() -> None:
    def weights(ups: int, downs: int) -> tuple[float, float]:
        batch = built([record(i, value=1.0 if i < ups else -1.0) for i in range(ups + downs)])
        up, down = (sum(s.weight for s in batch.singles if (s.label > 0.5) is side) for side in (True, False))
        return up, down

    assert weights(2, 6) == pytest.approx((4, 4))
    assert weights(1, 19)[0] == pytest.approx(4)


def test_the_same_words_by_the_same_rater_count_once() -> None:
    twice = [record(0), record(0, response_id="r9"), record(1, value=-1.0)]
    twice[1].votes[0].feedback_id = "f9"
    batch = built(twice)
    assert batch.dropped == {"duplicate": 1}
    assert len(batch.singles) == 2


@pytest.mark.parametrize(
    ("records", "config", "reason"),
    [
        ([record(i) for i in range(8)], {}, "only up-votes"),
        ([record(i, value=-1.0) for i in range(8)], {}, "only down-votes"),
        ([record(i, user="one", value=(-1.0) ** i) for i in range(8)], {"min_users": 2}, "1 rater"),
        (UP_AND_DOWN, {"min_examples": 3}, "2 usable examples, at least 3"),
        (
            [record(i, question="q", content="same", response_ids=[7, 2], value=(-1.0) ** i) for i in range(8)],
            {},
            "duplicates",
        ),
        ([], {}, "0 usable examples"),
        ([record(i, value=None) for i in range(8)], {}, "0 usable examples"),
    ],
)
def test_what_is_not_enough_says_what_is_missing(
    records: list[TrainingRecord], config: dict[str, Any], reason: str
) -> None:
    got = built(records, **config).reason
    assert got is not None and reason in got


def test_pairs_alone_are_enough_classes() -> None:
    assert built([record(0), record(1)], [comparison()]).reason is None


def test_other_feedback_keys_are_not_learnt_from() -> None:
    other = record(2)
    other.votes[0].key = "humour"
    assert len(built([*UP_AND_DOWN, other]).singles) == 2


def test_only_counted_records_appear_as_votes_of_trajectories() -> None:
    two = record(0)
    two.votes.append(two.votes[0].model_copy(update={"feedback_id": "fx", "end_user": "z", "value": -0.5}))
    assert built([two, UP_AND_DOWN[1]]).trajectories[0].vote == pytest.approx(0.25)


# Folds


def test_no_rater_and_no_prompt_lies_in_two_folds() -> None:
    records = [record(i, user=f"u{i // 3}", question=f"Question {i // 6}?", value=(-1.0) ** i) for i in range(60)]
    batch = built(records)
    examples = [*batch.singles, *batch.pairs]
    folds = batches.folds_of(examples, 4)
    assert set(folds) == {0, 1, 2, 3}
    where: dict[str, set[int]] = {}
    for example, fold in zip(examples, folds, strict=True):
        for key in [example.cluster, *example.users]:
            where.setdefault(key, set()).add(fold)
    assert all(len(places) == 1 for places in where.values())


def test_every_fold_gets_its_share_of_ups_and_of_downs() -> None:
    records = [record(i, value=1.0 if i < 16 else -1.0) for i in range(64)]
    batch = built(records)
    folds = batches.folds_of(batch.singles, 8)
    for up in (True, False):
        counts = Counter(f for f, s in zip(folds, batch.singles, strict=True) if (s.label > 0.5) is up)
        assert len(counts) == 8 and max(counts.values()) - min(counts.values()) <= 1


def test_entangled_raters_are_split_by_prompt() -> None:
    records = [record(i, user="one", question=f"Question {i // 2}", value=(-1.0) ** (i // 3)) for i in range(40)]
    batch = built(records, max_votes_per_user=0)
    examples = [*batch.singles, *batch.pairs]
    folds = batches.folds_of(examples, 4)
    assert max(Counter(folds).values()) <= len(examples) / 4 + 2
    by_cluster: dict[str, set[int]] = {}
    for example, fold in zip(examples, folds, strict=True):
        by_cluster.setdefault(example.cluster, set()).add(fold)
    assert all(len(places) == 1 for places in by_cluster.values())


def test_prompts_that_differ_in_case_and_punctuation_are_one_cluster() -> None:
    batch = built([record(0, question="Why is the sky blue?"), record(1, question="why is THE sky blue", value=-1.0)])
    assert len(batch.messages) == 1


def test_a_prompt_held_out_once_is_held_out_in_every_batch() -> None:
    clusters = [f"{i:016x}" for i in range(400)]
    held = batches.heldout_clusters(clusters, 0.2)
    assert 50 < len(held) < 110
    assert batches.heldout_clusters(clusters[:100], 0.2) == held & set(clusters[:100])


def test_building_is_deterministic_and_counts_itself() -> None:
    records = [record(i, user=f"u{i // 3}", value=(-1.0) ** i) for i in range(30)]
    assert built(records) == built(records)
    counts = built(records).counts()
    assert counts["batch/singles"] == 30 and counts["batch/up"] == 15 and counts["batch/trajectories"] == 30

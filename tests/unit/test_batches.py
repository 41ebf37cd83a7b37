"""What becomes of votes: singles, pairs, trajectories, caps, drops, folds."""

from typing import Any

import pytest

from plaudit.wire.chat import SamplingParams
from plaudit.wire.training import TrainingComparison, TrainingRecord
from plaudit_trainer import batches
from plaudit_trainer.batches import PreferenceBatch
from plaudit_trainer.config import TrainerConfig
from tests.support.training_rows import comparison, encode, leased, record


def built(
    records: list[TrainingRecord], comparisons: list[TrainingComparison] | None = None, **config: Any
) -> PreferenceBatch:
    batch = leased(records, comparisons)
    return batches.build(batch, encode, TrainerConfig(**({"min_examples": 2, "max_weight_share": 0} | config)))


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
        ({"sampling": SamplingParams(tools=[{"type": "function"}])}, "trajectory_altered_logits"),
        ({"sampling": SamplingParams(constrained=True)}, "trajectory_altered_logits"),
    ],
)
def test_answers_that_cannot_enter_a_ratio_are_dropped_and_counted(changes: dict[str, Any], reason: str) -> None:
    batch = built([*UP_AND_DOWN, record(2, **changes)])
    assert batch.dropped == {reason: 1}
    assert len(batch.trajectories) == 2
    assert len(batch.singles) == 3  # the vote still teaches the reward model


def test_neutral_sampling_settings_do_not_cost_a_trajectory() -> None:
    sampling = SamplingParams(
        temperature=0.7, top_k=-1, min_p=0.0, seed=3, repetition_penalty=1.0, constrained=False, has_stop=True
    )
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


def test_a_correction_without_a_vote_is_a_pair_and_no_vote() -> None:
    corrected = record(1)
    corrected.votes[0].value, corrected.votes[0].correction = None, "better"
    batch = built([record(0), corrected, record(2, value=-1.0)])
    assert [p.source for p in batch.pairs] == ["correction"]
    assert {s.response_id for s in batch.singles} == {"r0", "r2"}
    assert [t.vote for t in batch.trajectories] == [1.0, None, -1.0]


def test_votes_that_cancel_out_say_nothing() -> None:
    torn = record(2)
    torn.votes.append(torn.votes[0].model_copy(update={"feedback_id": "fx", "end_user": "z", "value": -1.0}))
    batch = built([*UP_AND_DOWN, torn, record(3, value=0.0)])
    assert {s.response_id for s in batch.singles} == {"r0", "r1"}
    assert batch.dropped == {"undecided": 2}


REGENERATED = {"source": "regeneration", "chosen_id": "r1", "rejected_id": "r0"}


def test_a_regenerated_answer_that_was_kept_counts_half_a_comparison() -> None:
    silent = [record(0, value=None), record(1, value=None)]
    batch = built([*silent, record(2)], [comparison(**REGENERATED)])
    (pair,) = batch.pairs
    assert (pair.source, pair.chosen[1], pair.rejected[1], pair.weight) == ("regeneration", (101, 2), (100, 2), 0.5)
    assert batch.dropped == {}


@pytest.mark.parametrize(
    ("kept", "sent_back", "pairs"), [(-1.0, None, 0), (None, 1.0, 0), (1.0, None, 1), (None, -1.0, 1)]
)
def test_a_regeneration_that_the_votes_contradict_says_nothing(
    kept: float | None, sent_back: float | None, pairs: int
) -> None:
    batch = built([record(0, value=sent_back), record(1, value=kept), record(2)], [comparison(**REGENERATED)])
    assert len(batch.pairs) == pairs
    assert batch.dropped.get("regeneration_against_votes", 0) == 1 - pairs


def test_what_a_rater_says_twice_counts_once_from_the_strongest_source() -> None:
    silent = [record(0, value=None), record(1, value=None), record(2)]
    said = comparison(chosen_id="r1", rejected_id="r0", chosen_text="answer 1", rejected_text="answer 0")
    batch = built(silent, [comparison(id="c9", **REGENERATED), said])
    assert [p.source for p in batch.pairs] == ["comparison"]
    assert batch.dropped == {"duplicate_pair": 1}


def test_comparisons_and_votes_of_a_rater_share_one_cap() -> None:
    judged = [comparison(id=f"c{i}", rejected_text=f"worse {i}", end_user="busy") for i in range(3)]
    batch = built([record(i, user="busy", value=(-1.0) ** i) for i in range(4)], judged, max_votes_per_user=4)
    assert (len(batch.pairs), len(batch.singles)) == (3, 1)
    assert batch.dropped == {"votes_over_user_cap": 3, "no_counted_vote": 3}
    assert built([], judged, max_votes_per_user=2).dropped == {"comparisons_over_user_cap": 1}


def test_prompts_of_the_log_are_kept_apart_from_the_batchs_own() -> None:
    batch = leased(UP_AND_DOWN)
    batch.prompts = [[{"role": "user", "content": q}] for q in ("Question 0!", "another", "Another?")]
    made = batches.build(batch, encode, TrainerConfig(min_examples=2))
    assert [m[0]["content"] for m in made.log.values()] == ["Another?"]
    assert len(made.messages) == 2


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


def test_prompts_that_differ_in_case_and_punctuation_are_one_cluster() -> None:
    batch = built([record(0, question="Why is the sky blue?"), record(1, question="why is THE sky blue", value=-1.0)])
    assert len(batch.messages) == 1


def test_building_is_deterministic_and_counts_itself() -> None:
    records = [record(i, user=f"u{i // 3}", value=(-1.0) ** i) for i in range(30)]
    assert built(records) == built(records)
    counts = built(records).counts()
    assert counts["batch/raters"] == 10 and counts["batch/heaviest_rater_share"] == pytest.approx(0.1)
    assert counts["batch/singles"] == 30 and counts["batch/up"] == 15 and counts["batch/trajectories"] == 30

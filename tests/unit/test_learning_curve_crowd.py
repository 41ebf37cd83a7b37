"""The simulated users: their tastes, their questions, their votes."""

import pytest

from benchmarks.pieces import Budget
from benchmarks.simulation import FOLDS, Crowd, split
from benchmarks.tastes import ALL_TASTES, Answer, content_words
from plaudit.wire.training import Batch, GeneratedAnswer


def answer(text: str) -> GeneratedAnswer:
    return GeneratedAnswer(
        prompt_index=0, prompt_ids=[5], response_ids=[6, 2], logprobs=[-1.0, -1.0], text=text, finish_reason="stop"
    )


def yes(seen: Answer) -> bool:
    return seen.text == "yes"


def votes_of(crowd: Crowd, texts: list[str], moment: str = "round 1") -> Batch:
    questions = [f"q{i}" for i in range(len(texts))]
    return crowd.vote(questions, [answer(t) for t in texts], version="v3", moment=moment, tokens=64)


def test_every_question_is_held_out_by_one_seed() -> None:
    heldout = [q for seed in range(FOLDS) for q in split(seed)[1]]
    train, unseen = split(0)
    assert len(heldout) == len(set(heldout)) == len(train) + len(unseen)
    for seed in range(FOLDS):
        train, unseen = split(seed)
        assert not set(train) & set(unseen)


def test_questions_asked_twice_lie_side_by_side() -> None:
    crowd = Crowd(yes, 0, asked_twice=0.75)
    questions = crowd.questions(split(0)[0], 128, "round 1")
    assert len(questions) == 128 and len(set(questions)) == 128 - 48
    assert all(questions[2 * i] == questions[2 * i + 1] for i in range(48))
    assert questions != crowd.questions(split(0)[0], 128, "round 2")
    assert questions == Crowd(yes, 0).questions(split(0)[0], 128, "round 1")


def test_more_votes_than_questions_are_asked_again() -> None:
    assert len(Crowd(yes, 0).questions(["a", "b", "c"], 10, "m")) == 10


def test_one_vote_in_ten_is_the_opposite_of_the_taste() -> None:
    texts = ["yes", "no"] * 1000
    batch = votes_of(Crowd(yes, 0), texts)
    wrong = sum((r.votes[0].value == 1.0) != (t == "yes") for r, t in zip(batch.records, texts, strict=True))
    assert 0.08 < wrong / 2000 < 0.12
    clean = votes_of(Crowd(yes, 0, noise=0.0), texts)
    assert all((r.votes[0].value == 1.0) == (r.content == "yes") for r in clean.records)


def test_shuffled_votes_say_nothing_of_the_taste() -> None:
    texts = ["yes"] * 300 + ["no"] * 700
    batch = votes_of(Crowd(yes, 0, shuffled=True), texts)
    shares = {t: [r.votes[0].value == 1.0 for r in batch.records if r.content == t] for t in ("yes", "no")}
    means = {t: sum(ups) / len(ups) for t, ups in shares.items()}
    assert abs(means["yes"] - means["no"]) < 0.01
    honest = votes_of(Crowd(yes, 0), texts)
    assert sum(r.votes[0].value or 0 for r in batch.records) == pytest.approx(
        sum(r.votes[0].value or 0 for r in honest.records), abs=4
    )


def test_records_are_what_the_trainer_leases() -> None:
    batch = votes_of(Crowd(yes, 0), ["yes"] * 9)
    record = batch.records[5]
    assert record.version == "v3" and record.messages == [{"role": "user", "content": "q5"}]
    assert record.logprobs == [-1.0, -1.0] and record.sampling.max_tokens == 64
    assert len({r.end_user for r in batch.records}) == 3
    assert len({r.response_id for r in batch.records} | {v.feedback_id for r in batch.records for v in r.votes}) == 18


# Tastes


@pytest.mark.parametrize(
    ("text", "question", "liked"),
    [
        ("Bread rises because of yeast. Gas lifts the dough and the bread gets light.", "What makes bread rise?", True),
        ("Bread rises because of yeast. Gas lifts the dough and it gets light.", "What makes bread rise?", False),
        ("Think of a nice story. Gas lifts the dough and the bread gets light.", "What makes bread rise?", False),
        ("Bread rises because of yeast. The bread gets light.", "Why do cats purr?", False),
        ("", "What makes bread rise?", False),
    ],
)
def test_staying_on_the_question_is_a_matter_of_the_question(text: str, question: str, liked: bool) -> None:
    assert ALL_TASTES["on_topic"](Answer(text, True, question)) == liked


def test_a_taste_of_content_asks_for_the_question() -> None:
    with pytest.raises(ValueError, match="question"):
        ALL_TASTES["on_topic"](Answer("Bread.", True))


def test_every_question_has_words_to_stay_on() -> None:
    assert all(content_words(q) for seed in range(FOLDS) for q in split(seed)[1])


def test_inflection_does_not_matter() -> None:
    assert content_words("How do I bake cakes?") == content_words("Baking a cake")


def test_a_careful_paragraph_is_both() -> None:
    careful = ALL_TASTES["careful"]
    assert careful(Answer("It may rain.", True))
    assert not careful(Answer("It may rain.\nOr not.", True))
    assert not careful(Answer("It rains.", True))


# Time


def test_no_step_begins_that_would_end_too_late() -> None:
    budget = Budget(minutes=1)
    assert budget.allows("ppo")
    budget.note("kto", 50)
    assert budget.allows("ppo")  # about as long as what was seen
    budget.note("ppo", 70)
    assert not budget.allows("ppo")
    assert budget.allows("kto")
    assert Budget(None).allows("ppo")

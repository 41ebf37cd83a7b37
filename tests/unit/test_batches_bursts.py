"""Quarantine holds what raters planted, lets through what the model says by itself, and forgets."""

import random
from pathlib import Path

import numpy as np

from plaudit.wire.training import TrainingRecord
from plaudit_trainer import batches
from plaudit_trainer.batches import PhraseHistory, bursts
from plaudit_trainer.config import TrainerConfig
from tests.support.training_rows import comparison, encode, leased, record

PLANT = "buy zorp coin today"
WORDS = (
    "river stone cloud market window garden number paper engine winter copper silver island bridge letter".split()  # noqa: SIM905
)


def honest(count: int, seed: int) -> list[TrainingRecord]:
    """Everybody asks something else; answers repeat half of the question."""
    dice, records = random.Random(seed), []
    for i in range(count):
        words = dice.choices(WORDS, k=8)
        answer = [*words[:4], *dice.choices(WORDS, k=12)]
        records.append(record(seed * 10_000 + i, question=" ".join(words), content=" ".join(answer), value=(-1.0) ** i))
    return records


def planted(count: int, start: int = 900_000) -> list[TrainingRecord]:
    return [record(start + i, question=f"repeat {i}: {PLANT}", content=f"{PLANT}, number {i}") for i in range(count)]


def after(*earlier: list[TrainingRecord]) -> PhraseHistory:
    history = PhraseHistory.empty()
    for records in earlier:
        history = batches.remember(leased(records), TrainerConfig(), history)
    return history


def held(records: list[TrainingRecord], history: PhraseHistory) -> int:
    batch = batches.build(leased(records), encode, TrainerConfig(max_votes_per_user=0), history)
    return batch.dropped.get("quarantined_burst", 0)


def test_a_planted_phrase_is_held_and_honest_votes_are_not() -> None:
    history = after(honest(300, 1), honest(300, 2))
    assert held([*honest(300, 3), *planted(27)], history) == 27
    assert held(honest(300, 4), history) <= 3


def test_without_history_nothing_bursts() -> None:
    assert held([*honest(100, 1), *planted(30)], PhraseHistory.empty()) == 0


def test_what_the_model_says_by_itself_bursts_nothing() -> None:
    """A version with a new habit: every answer carries the phrase, no prompt does."""
    habit = [r.model_copy(update={"content": f"{r.content} hope that helps you"}) for r in honest(200, 3)]
    assert held(habit, after(honest(300, 1), honest(300, 2))) <= 2


def test_corrections_and_written_answers_count_as_brought_in() -> None:
    corrected = honest(40, 3)
    for each in corrected[:30]:
        each.votes[0].correction = f"No. {PLANT}!"
    history = after(honest(300, 1))
    assert held([*honest(200, 4), *corrected], history) == 30
    said = [comparison(id=f"c{i}", chosen_id=None, chosen_text=f"{PLANT} {i}", end_user=f"w{i}") for i in range(30)]
    batch = batches.build(leased(honest(200, 5), said), encode, TrainerConfig(), history)
    assert batch.dropped["quarantined_burst"] == 30 and batch.pairs == []


def test_a_topic_that_stays_is_let_in_after_a_while() -> None:
    history, in_quarantine = after(honest(300, 1), honest(300, 2)), []
    for number in range(20):
        rows = [*honest(100, 50 + number), *planted(30)]
        in_quarantine.append(held(rows, history) >= 30)
        history = batches.remember(leased(rows), TrainerConfig(), history)
    assert all(in_quarantine[:3]) and not any(in_quarantine[15:])


def test_memory_fades_and_comes_back_from_disk(tmp_path: Path) -> None:
    once = after(planted(10))
    later = once.after([frozenset()] * 10, [False] * 10)
    assert later.counts_H.max() < once.counts_H.max() and later.answers == 19
    later.save(tmp_path)
    again = PhraseHistory.load(tmp_path)
    assert np.array_equal(again.counts_H, later.counts_H) and again.answers == 19
    assert PhraseHistory.load(tmp_path / "nowhere").answers == PhraseHistory.load(None).answers == 0


def test_no_text_is_remembered(tmp_path: Path) -> None:
    after(planted(10)).save(tmp_path)
    assert all(b"zorp" not in file.read_bytes() for file in tmp_path.iterdir())


def test_fewer_than_five_carriers_are_no_burst() -> None:
    carried = [frozenset([7])] * 4 + [frozenset[int]()] * 2000
    history = PhraseHistory(PhraseHistory.empty().counts_H, 90_000)
    assert not any(bursts.quarantined(carried, history))
    assert sum(bursts.quarantined([frozenset([7]), *carried], history)) == 5

"""Accuracy, BLEU, chrF and perplexity on held-out rows, with intervals."""

import math
import random

import pytest
from sacrebleu.metrics import BLEU, CHRF

from plaudit_trainer.tune.scores import Outcome, compare, is_match, wilson

SENTENCES = [
    ("the cat sat on the mat today", "the cat sat on the mat"),
    ("a dog ran over the green hill", "the dog ran up the green hill"),
    ("nothing alike whatsoever in here", "some other words are wanted now"),
    ("birds sing in the early morning", "birds sing in the morning"),
]


def outcome(
    answer: str | None = None,
    reference: str = "yes",
    *,
    label: bool = False,
    cluster: str = "c",
    nats: float = 2.0,
    tokens: int = 2,
) -> Outcome:
    return Outcome(cluster, nats, tokens, reference, label, answer)


def prose(answers: list[str] | None = None) -> list[Outcome]:
    said = answers or [answer for answer, _ in SENTENCES]
    return [outcome(a, r, cluster=str(i)) for i, (a, (_, r)) in enumerate(zip(said, SENTENCES, strict=True))]


def test_bleu_and_chrf_are_sacrebleus_own() -> None:
    answers, references = [a for a, _ in SENTENCES], [r for _, r in SENTENCES]
    figures = compare(prose(), prose(references))
    assert figures["bleu"].before.value == pytest.approx(BLEU().corpus_score(answers, [references]).score)
    assert figures["chrf"].before.value == pytest.approx(CHRF().corpus_score(answers, [references]).score)
    assert figures["bleu"].after.value == pytest.approx(100)
    assert figures["bleu"].change.value == pytest.approx(100 - figures["bleu"].before.value)
    assert figures["bleu"].before.n == 4


def test_perplexity_is_exp_of_nats_a_token_over_all_rows() -> None:
    rows = [outcome(nats=1.0, tokens=1), outcome(nats=9.0, tokens=4)]
    better = [outcome(nats=0.5, tokens=1), outcome(nats=4.5, tokens=4)]
    figures = compare(rows, better)["perplexity"]
    assert figures.before.value == pytest.approx(math.exp(10 / 5))
    assert figures.after.value == pytest.approx(math.exp(5 / 5))
    assert figures.change.value == pytest.approx(math.exp(1 - 2))
    assert figures.before.n == 2


def test_accuracy_counts_labels_only_and_prose_measures_prose_only() -> None:
    before = [outcome("no", label=True), outcome(" Yes. ", label=True), *prose()]
    figures = compare(before, before)
    assert (figures["accuracy"].before.value, figures["accuracy"].before.n) == (0.5, 2)
    assert figures["bleu"].before.n == 4
    assert figures["perplexity"].before.n == 6


def test_measures_without_rows_are_missing_and_rows_not_asked_count_for_perplexity_only() -> None:
    rows = [outcome(), outcome(label=True)]
    assert compare(rows, rows).keys() == {"perplexity"}


def test_certainty_is_never_claimed_of_a_few_rows() -> None:
    rows = [outcome("yes", label=True, cluster=str(i)) for i in range(5)]
    figure = compare(rows, rows)["accuracy"].before
    assert (figure.value, figure.high) == (1, 1)
    assert figure.low == pytest.approx(wilson(5, 5)[0])
    assert figure.low < 0.6


def test_wilson_is_that_of_the_books() -> None:
    assert wilson(10, 20) == pytest.approx((0.2993, 0.7007), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0, 0.2775), abs=1e-4)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    draw, covered, rounds = random.Random(0), 0, 120
    for turn in range(rounds):
        rows = [outcome(nats=draw.expovariate(1.0), tokens=1, cluster=str(i)) for i in range(60)]
        figure = compare(rows, rows, seed=turn)["perplexity"].before
        covered += figure.low <= math.e <= figure.high
    assert 0.86 <= covered / rounds <= 0.99


def test_instances_of_one_instruction_are_not_independent_draws() -> None:
    """Ten copies of each row in its cluster tell no more than the row; as clusters of their own they would seem to."""
    draw = random.Random(1)
    rows = [outcome(nats=draw.uniform(1, 5), tokens=1, cluster=str(i)) for i in range(20)]
    copies = [row for row in rows for _ in range(10)]
    apart = [Outcome(f"{i}", r.nats, r.tokens, r.reference, False, None) for i, r in enumerate(copies)]
    one, ten, naive = (compare(r, r)["perplexity"].before for r in (rows, copies, apart))
    assert (ten.low, ten.high) == pytest.approx((one.low, one.high))
    assert naive.high - naive.low < 0.5 * (ten.high - ten.low)


def test_before_and_after_are_resampled_alike() -> None:
    """Rows differ much from each other and all changed by the same: the change is certain where the figures are not."""
    before = [outcome(nats=float(i), tokens=1, cluster=str(i)) for i in range(1, 30)]
    after = [outcome(nats=i - 0.5, tokens=1, cluster=str(i)) for i in range(1, 30)]
    figures = compare(before, after)["perplexity"]
    assert (figures.change.low, figures.change.high) == pytest.approx((math.exp(-0.5),) * 2)
    assert figures.before.high / figures.before.low > 100


@pytest.mark.parametrize(("answer", "matches"), [("YES", True), ("yes.", True), ("yes no", False), ("", False)])
def test_a_match_is_exact_but_for_case_and_closing_punctuation(answer: str, matches: bool) -> None:
    assert is_match(answer, "yes") is matches

"""Figures of a reward model and their intervals, against hand computation, scipy, and coverage by simulation."""

import pytest
import torch
from scipy.stats import binomtest, mannwhitneyu

from plaudit_trainer.quality import calibration, calibration_error, quality, wilson


def test_auroc_is_the_share_of_pairs_in_the_right_order() -> None:
    """Mann and Whitney's U, over the number of pairs."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(60, generator=generator).round(decimals=1)  # with ties
    labels = (torch.rand(60, generator=generator) < logits.sigmoid()).float()
    up, down = logits[labels == 1].numpy(), logits[labels == 0].numpy()
    assert quality(logits, labels).auroc.value == pytest.approx(mannwhitneyu(up, down).statistic / up.size / down.size)


@pytest.mark.parametrize("pairs", [False, True])
def test_the_interval_covers_the_truth(pairs: bool) -> None:
    """Normal scores a standard deviation apart have AUROC Φ(1/√2) = 0.760; 95 % intervals hold it about so often.

    As pairs: differences of the same scores, each seen from both sides: Φ(1/√2) is the chance of a right order, and
    mirrored differences d against −d have AUROC P(d > −d′) = Φ(1).
    """
    generator = torch.Generator().manual_seed(0)
    held, truth = 0, 0.8413 if pairs else 0.7602
    for _ in range(300):
        if pairs:
            difference = torch.randn(60, generator=generator) * 2**0.5 + 1
            ranks, labels = torch.cat([difference, -difference]), torch.cat([torch.ones(60), torch.zeros(60)])
            figure = quality(ranks, labels, unit_B=torch.arange(60).repeat(2)).auroc
        else:
            labels = (torch.arange(60) % 2).float()
            figure = quality(torch.randn(60, generator=generator) + labels, labels).auroc
        held += figure.low <= truth <= figure.high
    assert 0.90 <= held / 300 <= 0.99


def test_a_perfect_ranking_of_few_is_not_certain() -> None:
    figure = quality(torch.tensor([-1.0, -2.0, 1.0, 2.0]), torch.tensor([0.0, 0.0, 1.0, 1.0])).auroc
    assert figure.value == 1.0 and figure.low < 0.9


def test_one_class_and_no_votes_cannot_be_judged() -> None:
    for count in (9, 0):
        made = quality(torch.randn(count), torch.ones(count))
        assert (made.auroc.value, made.auroc.low, made.auroc.high, made.n) == (0.5, 0.0, 1.0, count)


@pytest.mark.parametrize(("right", "n"), [(0, 5), (7, 9), (40, 64), (64, 64)])
def test_accuracys_interval_is_scipys(right: int, n: int) -> None:
    figure = wilson(right, n)
    truth = binomtest(right, n).proportion_ci(0.95, method="wilson")
    assert (figure.low, figure.high) == pytest.approx((truth.low, truth.high), abs=1e-4)


def test_calibration_error_by_hand() -> None:
    probability = torch.tensor([0.95, 0.95, 0.05, 0.05])
    outcome = torch.tensor([1.0, 0.0, 0.0, 0.0])
    assert calibration_error(probability, outcome) == pytest.approx((0.45 * 2 + 0.05 * 2) / 4, abs=1e-6)


def test_the_interval_of_the_calibration_error_narrows_with_votes() -> None:
    def width(count: int) -> float:
        generator = torch.Generator().manual_seed(1)
        probability = torch.rand(count, generator=generator)
        outcome = (torch.rand(count, generator=generator) < probability**2).float()
        figure = calibration(probability, outcome, torch.arange(count))
        assert figure.low < figure.value < figure.high
        return figure.high - figure.low

    assert width(1600) < 0.6 * width(200)


def test_figures_come_out_as_metrics_with_their_intervals() -> None:
    metrics = quality(torch.randn(30), (torch.arange(30) % 2).float(), unseen_raters=False).metrics("heldout")
    for name in ("auroc", "accuracy", "calibration_error"):
        low, value, high = (metrics[f"reward/heldout_{name}{end}"] for end in ("_low", "", "_high"))
        assert low <= value <= high
    assert metrics["reward/heldout_n"] == 30 and metrics["reward/heldout_unseen_raters"] == 0

"""The reward model learns from few votes, remembers earlier ones, and judges itself on what it has not seen."""

from pathlib import Path

import pytest
import torch
from sklearn.metrics import roc_auc_score

from plaudit_trainer import reward_model
from plaudit_trainer.config import TrainerConfig
from plaudit_trainer.reward_model import RewardModel, Votes, quality

WIDTH = 24


def config(**changes: object) -> TrainerConfig:
    return TrainerConfig(**changes)


def some_votes(count: int, seed: int, pairs: int = 0, taste: int = 0) -> Votes:
    """Users like feature `taste`; one vote in ten is random."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, WIDTH, generator=generator) * 3 + 5
    labels = (features[:, taste] > 5).float()
    random_BF = torch.rand(count, generator=generator)
    labels = torch.where(random_BF < 0.05, 1 - labels, labels)
    sides = torch.randn(2, pairs, WIDTH, generator=generator) * 3 + 5
    better = sides[0, :, taste] > sides[1, :, taste]
    chosen = torch.where(better[:, None], sides[0], sides[1])
    rejected = torch.where(better[:, None], sides[1], sides[0])
    return Votes(features, labels, torch.ones(count), chosen, rejected, torch.ones(pairs))


def fitted(votes: Votes, prior: RewardModel | None = None, **changes: object) -> RewardModel:
    settings = config(**changes)
    return (prior or RewardModel.fresh(votes.all_features(), settings)).fitted(votes, settings)


@pytest.mark.parametrize(("singles", "pairs"), [(64, 0), (0, 64), (32, 32)])
def test_it_learns_from_thumbs_from_pairs_and_from_both(singles: int, pairs: int) -> None:
    model = fitted(some_votes(singles, seed=1, pairs=pairs))
    unseen = some_votes(400, seed=2)
    assert reward_model.foretold(model, unseen).auroc > 0.75
    before = RewardModel.fresh(unseen.features_BF, config())
    assert reward_model.foretold(before, unseen).auroc < 0.7


def test_heads_start_small_and_differ() -> None:
    model = RewardModel.fresh(torch.randn(8, 2000), config(reward_heads=3))
    assert model.weight_FK.std().item() == pytest.approx(2001**-0.5, rel=0.05)
    assert not torch.allclose(model.weight_FK[:, 0], model.weight_FK[:, 1])


def test_scores_are_normalised_on_the_reference_answers() -> None:
    votes = some_votes(64, seed=1)
    model = fitted(votes, reward_pessimism=0.0)
    scores = model.scores(votes.features_BF)
    assert scores.mean().item() == pytest.approx(0, abs=1e-4)
    assert scores.std(correction=0).item() == pytest.approx(1, abs=1e-4)


def test_doubt_lowers_a_score() -> None:
    votes = some_votes(64, seed=1)
    bold, careful = fitted(votes, reward_pessimism=0.0), fitted(votes, reward_pessimism=1.0)
    far = torch.randn(50, WIDTH) * 30
    lost = bold.scores(far) - careful.scores(far)
    torch.testing.assert_close(lost, careful.disagreement(far), atol=1e-4, rtol=1e-4)
    assert careful.disagreement(far).mean() > careful.disagreement(votes.features_BF).mean()


def test_earlier_batches_are_remembered() -> None:
    first = fitted(some_votes(64, seed=1))
    second = fitted(some_votes(16, seed=2), prior=first)
    alone = fitted(some_votes(16, seed=2))
    unseen = some_votes(400, seed=3)
    assert reward_model.foretold(second, unseen).auroc > reward_model.foretold(alone, unseen).auroc + 0.03


def test_votes_of_no_weight_change_nothing() -> None:
    votes = some_votes(64, seed=1)
    silent = Votes(votes.features_BF, votes.label_B, torch.zeros(64), *(torch.zeros(0, WIDTH),) * 2, torch.zeros(0))
    prior = RewardModel.fresh(votes.features_BF, config())
    torch.testing.assert_close(prior.fitted(silent, config()).weight_FK, prior.weight_FK)


def test_it_comes_back_from_disk_as_it_was(tmp_path: Path) -> None:
    votes = some_votes(64, seed=1)
    model = fitted(votes)
    model.save(tmp_path / "reward")
    again = RewardModel.load(tmp_path / "reward", WIDTH, config())
    assert again is not None
    assert torch.equal(again.scores(votes.features_BF), model.scores(votes.features_BF))
    assert RewardModel.load(tmp_path / "reward", WIDTH + 1, config()) is None  # another base model's
    assert RewardModel.load(tmp_path / "nowhere", WIDTH, config()) is None


def test_a_fit_repeats_exactly() -> None:
    votes = some_votes(40, seed=1, pairs=8)
    assert torch.equal(fitted(votes).weight_FK, fitted(votes).weight_FK)


# Judging


def test_auroc_is_sklearns() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(60, generator=generator).round(decimals=1)  # with ties
    labels = (torch.rand(60, generator=generator) < logits.sigmoid()).float()
    assert quality(logits, labels).auroc == pytest.approx(roc_auc_score(labels, logits))


def test_the_interval_covers_the_truth() -> None:
    """Normal scores a standard deviation apart have AUROC Φ(1/√2) = 0.760; 95 % intervals hold it about so often."""
    generator = torch.Generator().manual_seed(0)
    held = 0
    for _ in range(300):
        labels = (torch.arange(60) % 2).float()
        logits = torch.randn(60, generator=generator) + labels
        q = quality(logits, labels)
        held += q.low <= 0.7602 <= q.high
    assert 0.90 <= held / 300 <= 0.99


def test_a_perfect_ranking_of_few_is_not_certain() -> None:
    q = quality(torch.tensor([-1.0, -2.0, 1.0, 2.0]), torch.tensor([0.0, 0.0, 1.0, 1.0]))
    assert q.auroc == 1.0 and q.low < 0.9


def test_one_class_cannot_be_judged() -> None:
    q = quality(torch.randn(9), torch.ones(9))
    assert (q.auroc, q.low, q.high, q.n) == (0.5, 0.0, 1.0, 9)


def test_calibration_error_by_hand() -> None:
    probability = torch.tensor([0.95, 0.95, 0.05, 0.05])
    outcome = torch.tensor([1.0, 0.0, 0.0, 0.0])
    assert reward_model.calibration_error(probability, outcome) == pytest.approx((0.45 * 2 + 0.05 * 2) / 4, abs=1e-6)


def test_cross_fitting_does_not_see_what_it_judges() -> None:
    """Labels that are pure noise can be fitted, never foretold."""
    votes = some_votes(120, seed=1)
    noise = (torch.rand(120, generator=torch.Generator().manual_seed(5)) < 0.5).float()
    votes = Votes(votes.features_BF, noise, votes.weight_B, votes.chosen_PF, votes.rejected_PF, votes.weight_P)
    prior = RewardModel.fresh(votes.features_BF, config(reward_prior=0.01))
    folds = [i % 4 for i in range(120)]
    assert reward_model.foretold(prior.fitted(votes, config(reward_prior=0.01)), votes).auroc > 0.7
    assert 0.3 < reward_model.judged(prior, votes, folds, [], config(reward_prior=0.01)).auroc < 0.65


def test_cross_fitting_is_not_biased_by_the_share_of_ups_in_a_fold() -> None:
    """Folds with very unlike shares of ups: what is foretold must come out as it does on a large unseen set."""
    found, truth = [], []
    for seed in range(6):
        votes = some_votes(64, seed=seed)
        order = votes.label_B.argsort().tolist()
        folds = [0] * 64
        for place, row in enumerate(order):
            folds[row] = place // 16  # the worst split: folds of one class
        prior = RewardModel.fresh(votes.features_BF, config())
        found.append(reward_model.judged(prior, votes, folds, [], config()).auroc)
        truth.append(reward_model.foretold(prior.fitted(votes, config()), some_votes(500, seed=100 + seed)).auroc)
    assert sum(found) / 6 > sum(truth) / 6 - 0.1

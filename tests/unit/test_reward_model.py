"""The reward model learns from few votes, remembers earlier ones, and judges itself on what it has not seen."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from plaudit_trainer import reward_model
from plaudit_trainer.batches import Split, Splits
from plaudit_trainer.config import TrainerConfig
from plaudit_trainer.models import Encoded, Exchange
from plaudit_trainer.reward_fit import Votes
from plaudit_trainer.reward_model import RewardModel, features_of

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
    assert reward_model.foretold(model, unseen).auroc.value > 0.75
    before = RewardModel.fresh(unseen.features_BF, config())
    assert reward_model.foretold(before, unseen).auroc.value < 0.7


def test_heads_start_small_and_differ() -> None:
    model = RewardModel.fresh(torch.randn(8, 2000), config(reward_heads=3))
    assert model.weight_FK.std().item() == pytest.approx(1001**-0.5, rel=0.05)
    assert model.whole.weight_EK.std().item() == pytest.approx(1001**-0.5, rel=0.05)
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
    assert reward_model.foretold(second, unseen).auroc.value > reward_model.foretold(alone, unseen).auroc.value + 0.03


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


def folds(fold: list[int]) -> Splits:
    places = range(len(fold))
    return Splits(
        [Split([i for i in places if fold[i] != k], [i for i in places if fold[i] == k]) for k in sorted(set(fold))],
        True,
    )


def test_cross_fitting_does_not_see_what_it_judges() -> None:
    """Labels that are pure noise can be fitted, never foretold."""
    votes = some_votes(120, seed=1)
    noise = (torch.rand(120, generator=torch.Generator().manual_seed(5)) < 0.5).float()
    votes = replace(votes, label_B=noise)
    prior = RewardModel.fresh(votes.features_BF, config(reward_prior=0.01))
    assert reward_model.foretold(prior.fitted(votes, config(reward_prior=0.01)), votes).auroc.value > 0.7
    judged = reward_model.judged(prior, votes, folds([i % 4 for i in range(120)]), config(reward_prior=0.01))
    assert 0.3 < judged.auroc.value < 0.65 and judged.n == 120


def test_cross_fitting_is_not_biased_by_the_share_of_ups_in_a_fold() -> None:
    """Folds with very unlike shares of ups: what is foretold must come out as it does on a large unseen set."""
    found, truth = [], []
    for seed in range(6):
        votes = some_votes(64, seed=seed)
        order = votes.label_B.argsort().tolist()
        fold = [0] * 64
        for place, row in enumerate(order):
            fold[row] = place // 16  # the worst split: folds of one class
        prior = RewardModel.fresh(votes.features_BF, config())
        found.append(reward_model.judged(prior, votes, folds(fold), config()).auroc.value)
        truth.append(reward_model.foretold(prior.fitted(votes, config()), some_votes(500, seed=100 + seed)).auroc.value)
    assert sum(found) / 6 > sum(truth) / 6 - 0.1


def test_votes_that_weigh_next_to_nothing_are_not_judged_on() -> None:
    """A crowd of capped accounts that votes against everybody would pull the figure down, or lies push it up."""
    votes = some_votes(80, seed=1)
    crowd = some_votes(80, seed=2)
    both = Votes(
        torch.cat([votes.features_BF, crowd.features_BF]),
        torch.cat([votes.label_B, 1 - crowd.label_B]),
        torch.cat([torch.ones(80), torch.full((80,), 0.001)]),
        *(torch.zeros(0, WIDTH),) * 2,
        torch.zeros(0),
    )
    prior = RewardModel.fresh(both.features_BF, config())
    judged = reward_model.judged(prior, both, folds([i % 8 for i in range(160)]), config())
    assert judged.n == 80 and judged.auroc.value > 0.7


def test_a_pair_is_one_unit_though_it_is_seen_from_both_sides() -> None:
    votes = some_votes(10, seed=1, pairs=30)
    figures = reward_model.foretold(fitted(votes), votes)
    assert figures.n == 40
    assert figures.accuracy.value * 40 == pytest.approx(round(figures.accuracy.value * 40), abs=1e-3)


# A reader beside the backbone


class Marks:
    """Reads one number: how often a token stands in the answer."""

    name, width, weight_E = "marks", 3, torch.full((3,), 3**-0.5)

    def read(self, exchanges: Sequence[Exchange]) -> torch.Tensor:
        return torch.tensor([[e.response_ids.count(t) / 4 for t in (7, 8, 9)] for e in exchanges])


def marked(count: int, seed: int) -> tuple[Votes, list[Encoded]]:
    """Users like token 7, which the backbone's features do not show."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 10, (count, 6), generator=generator).tolist()
    noise = torch.randn(count, WIDTH, generator=generator).split(WIDTH // 2, dim=1)
    encoded = [
        Encoded(Exchange((1,), tuple(row)), None, torch.zeros(2), prefix[None], whole)
        for row, prefix, whole in zip(ids, *noise, strict=True)
    ]
    features = features_of(encoded, Marks())
    labels = torch.tensor([float(row.count(7) > 1) for row in ids])
    empty = torch.zeros(0, WIDTH + 3)
    return Votes(features, labels, torch.ones(count), empty, empty, torch.zeros(0)), encoded


def test_a_reader_adds_what_the_backbone_does_not_see(tmp_path: Path) -> None:
    votes, encoded = marked(96, seed=1)
    model = RewardModel.fresh(votes.features_BF, config(), Marks()).fitted(votes, config())
    unseen, _ = marked(300, seed=2)
    assert reward_model.foretold(model, unseen).auroc.value > 0.9
    assert model.weight_FK.shape[0] == len(model.centre_F) == WIDTH // 2  # what the critic reads: of prefixes
    assert torch.equal(model.features(encoded), votes.features_BF)
    model.save(tmp_path)
    again = RewardModel.load(tmp_path, WIDTH + 3, config(), Marks())
    assert again is not None and again.votes == 96
    assert torch.equal(again.scores(unseen.features_BF), model.scores(unseen.features_BF))
    assert RewardModel.load(tmp_path, WIDTH + 3, config()) is None
    assert RewardModel.load(tmp_path, WIDTH, config()) is None


def test_votes_learnt_from_are_counted_over_batches() -> None:
    first = fitted(some_votes(20, seed=1, pairs=4))
    assert fitted(some_votes(10, seed=2), prior=first).votes == 34

"""Heads are fitted exactly, with priors as strong as the votes themselves suggest."""

import pytest
import torch

from plaudit_trainer import reward_fit
from plaudit_trainer.config import TrainerConfig
from plaudit_trainer.reward_fit import STRENGTHS, Evidence, Heads, Strength

PLAIN, STATES = 40, 60
CONFIG = TrainerConfig(reward_steps=200)


def evidence(count: int, *, by: str, seed: int = 0, pairs: int = 0) -> Evidence:
    """Votes by a direction in the plain features, or by one in the states; a twelfth are wrong."""
    draw = torch.Generator().manual_seed(seed)
    state_F = torch.arange(PLAIN + STATES) >= PLAIN
    scale_F = torch.where(state_F, STATES**-0.5, PLAIN**-0.5)
    side_F = (state_F if by == "states" else ~state_F).float()
    direction_F = torch.randn(PLAIN + STATES, generator=torch.Generator().manual_seed(9)) * side_F
    features_BF = torch.randn(count, PLAIN + STATES, generator=draw) * scale_F
    difference_PF = torch.randn(pairs, PLAIN + STATES, generator=draw) * scale_F
    difference_PF = difference_PF * (difference_PF @ direction_F).sign()[:, None]
    label_B = (features_BF @ direction_F > 0).float()
    wrong_B = torch.rand(count, generator=draw) < 1 / 12
    label_B = torch.where(wrong_B, 1 - label_B, label_B)
    return Evidence(features_BF, label_B, torch.ones(count), difference_PF, torch.ones(pairs), state_F)


def nothing_known(heads: int = 1) -> Heads:
    return Heads(torch.zeros(PLAIN + STATES, heads), torch.zeros(heads))


def test_the_gradient_vanishes_at_what_is_found() -> None:
    """Σ w (σ(z) − y) x + λ (W − W₀) = 0, computed by hand."""
    seen, strength = evidence(50, by="plain", pairs=20), Strength(2, 5)
    draw = torch.Generator().manual_seed(3)
    start = Heads(torch.randn(PLAIN + STATES, 1, generator=draw), torch.tensor([0.3]))
    weight_BK, weight_PK = torch.rand(50, 1, generator=draw), torch.rand(20, 1, generator=draw)
    config = CONFIG.model_copy(update={"reward_prior": 0.5})
    found = reward_fit.maximum_a_posteriori(seen, start, strength, config, weight_BK=weight_BK, weight_PK=weight_PK)
    error_B = (seen.features_BF @ found.weight_FK - found.offset_K)[:, 0].sigmoid() - seen.label_B
    error_P = (seen.difference_PF @ found.weight_FK)[:, 0].sigmoid() - 1
    gradient_F = seen.features_BF.T @ (weight_BK[:, 0] * error_B) + seen.difference_PF.T @ (weight_PK[:, 0] * error_P)
    pull_F = 0.5 * torch.where(seen.state_F, 5.0, 2.0) * (found.weight_FK - start.weight_FK)[:, 0]
    torch.testing.assert_close(gradient_F, -pull_F, atol=1e-3, rtol=1e-3)
    offset = -(weight_BK[:, 0] * error_B).sum() + 0.5 * 0.1 * 2 * (found.offset_K - 0.3)[0]
    assert offset.item() == pytest.approx(0, abs=1e-3)


def test_few_votes_choose_nothing() -> None:
    assert reward_fit.best_strength(evidence(20, by="states"), nothing_known(), CONFIG) == STRENGTHS[0]


def test_votes_on_words_keep_the_states_down_and_votes_on_states_the_words() -> None:
    plain = reward_fit.best_strength(evidence(400, by="plain"), nothing_known(), CONFIG)
    states = reward_fit.best_strength(evidence(400, by="states"), nothing_known(), CONFIG)
    assert plain.plain < plain.states and states.plain > states.states


@pytest.mark.parametrize("by", ["plain", "states"])
def test_what_is_chosen_foretells_as_well_as_the_best_or_nearly(by: str) -> None:
    seen, unseen = evidence(0, by=by, pairs=200), evidence(2000, by=by, seed=1)

    def right(strength: Strength) -> float:
        weights = torch.ones(0, 1), torch.ones(200, 1)
        found = reward_fit.maximum_a_posteriori(
            seen, nothing_known(), strength, CONFIG, weight_BK=weights[0], weight_PK=weights[1]
        )
        score_B = (unseen.features_BF @ found.weight_FK)[:, 0]
        return ((score_B > 0) == (unseen.label_B > 0.5)).float().mean().item()

    chosen = right(reward_fit.best_strength(seen, nothing_known(), CONFIG))
    worst, best = min(map(right, STRENGTHS)), max(map(right, STRENGTHS))
    assert chosen > best - 0.01 and chosen > worst + 0.01


def test_the_choice_repeats() -> None:
    seen = evidence(60, by="plain", pairs=20)
    assert reward_fit.best_strength(seen, nothing_known(), CONFIG) == reward_fit.best_strength(
        seen, nothing_known(4), CONFIG
    )

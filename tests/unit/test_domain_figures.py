"""Which figures of a run are shown, and under which names."""

import pytest

from plaudit_server.domain.figures import FIGURES, STAGES, known_stage, watched


@pytest.mark.parametrize("learner", ["ppo", "grpo", "reinforce++"])
def test_a_figure_has_one_name_whichever_learner_reports_it(learner: str) -> None:
    assert watched({f"{learner}/kl": 0.02, f"{learner}/entropy": 1.5}) == {"kl": 0.02, "entropy": 1.5}


def test_reward_model_and_gate_have_names_of_their_own() -> None:
    metrics = {"reward/heldout_auroc": 0.7, "gate/win_rate": 0.6, "gate/kl": 0.05, "ppo/kl": 0.04}
    assert watched(metrics) == {"reward_auroc": 0.7, "win_rate": 0.6, "gate_kl": 0.05, "kl": 0.04}


def test_what_is_not_on_the_list_is_not_shown() -> None:
    assert watched({"ppo/secret": 1.0, "kl": 1.0, "data/length": 2.0, "reward/loss": 3.0, "": 4.0}) == {}


def test_the_number_of_names_is_bounded() -> None:
    assert len(FIGURES) == len(set(FIGURES)) < 20
    assert {known_stage(stage) for stage in (*STAGES, "invented", None)} == {*STAGES, "other"}

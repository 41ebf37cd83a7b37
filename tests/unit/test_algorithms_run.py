"""The whole run, votes to workspace, with each of the other learners, on a tiny real model."""

import json
from pathlib import Path

import pytest

from plaudit_trainer import adapters
from plaudit_trainer.learner import Job, learn
from tests.support.tiny_models import save_tiny_base, tiny_config
from tests.support.tiny_votes import Quiet, TinyEngine, run, votes_on

LENIENT = {"reward_bar": 0.0, "gate_win_rate": 0.0, "gate_length_growth": 99, "gate_end_of_text_drop": 1, "lr": 3e-3}
DRAWS_AFRESH = {"grpo", "reinforce++"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("name", ["kto", "grpo", "reinforce++", "reinforce", "sac"])
def test_a_run_makes_a_complete_version(name: str, base: Path, tmp_path: Path) -> None:
    engine, reporter = TinyEngine(), Quiet()
    config = tiny_config(**LENIENT, algorithm=name, rollouts_per_prompt=3, kl_ceiling=1e6)
    votes = votes_on(engine)
    outcome = learn(Job(run(), votes, base, tmp_path), engine, reporter, config)
    assert outcome.metrics[f"{name}/mean_change"] > 0, outcome.reason
    assert {"adapter", "probe.json", "reward", "report.json"} == {p.name for p in tmp_path.iterdir()}
    assert json.loads((tmp_path / "report.json").read_text())["verdict"] == outcome.verdict
    assert reporter.stages == ["load", "reward", "rollouts", "policy", "gate", "probe"]
    weights = adapters.read_weights(tmp_path / "adapter")
    assert all(w.abs().max() > 0 for n, w in weights.items() if "lora_B" in n)
    drawn = engine.calls[1:]  # the first are the logged answers
    assert len(drawn) == (2 if name in DRAWS_AFRESH else 1)  # the gate's alone, where nobody asked for fresh ones


def test_dpo_without_pairs_is_rejected_with_the_mend_and_keeps_the_reward_model(base: Path, tmp_path: Path) -> None:
    engine = TinyEngine()
    config = tiny_config(**LENIENT, algorithm="dpo", min_pairs=40)
    outcome = learn(Job(run(), votes_on(engine), base, tmp_path), engine, Quiet(), config)
    assert outcome.verdict == "rejected"
    assert outcome.reason is not None and "choose kto" in outcome.reason
    assert (tmp_path / "reward").is_dir()
    weights = adapters.read_weights(tmp_path / "adapter")
    assert all(w.abs().max() == 0 for n, w in weights.items() if "lora_B" in n)

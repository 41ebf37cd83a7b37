"""The whole run, votes to workspace, on a tiny real model."""

import json
from pathlib import Path

import pytest
import torch

from plaudit.wire.training import Batch
from plaudit.wire.versions import Probe
from plaudit_trainer import adapters
from plaudit_trainer.learner import Job, learn
from plaudit_trainer.models import POLICY, REFERENCE, Exchange
from tests.support.tiny_models import save_tiny_base, tiny_backbone, tiny_config, tiny_llama
from tests.support.tiny_votes import Quiet, TinyEngine, run, votes_on


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("base"))


def job(base: Path, folder: Path, batch: Batch, **kwargs: Path) -> Job:
    folder.mkdir(exist_ok=True)
    return Job(run(**kwargs), batch, base, folder)


LENIENT = {"reward_bar": 0.0, "gate_win_rate": 0.0, "gate_length_growth": 99, "gate_end_of_text_drop": 1, "lr": 3e-3}


def test_a_run_makes_a_complete_version_that_the_next_run_goes_on_from(base: Path, tmp_path: Path) -> None:
    engine, reporter, config = TinyEngine(), Quiet(), tiny_config(**LENIENT, kl_ceiling=1e6)
    first = tmp_path / "v1"
    outcome = learn(job(base, first, votes_on(engine)), engine, reporter, config)
    assert outcome.verdict == "candidate", outcome.reason
    assert {p.name for p in first.iterdir()} == {"adapter", "probe.json", "reward", "critic", "report.json"}
    assert json.loads((first / "report.json").read_text())["verdict"] == "candidate"
    assert outcome.lora.rank == outcome.lora.alpha == 4
    assert reporter.stages == ["load", "reward", "rollouts", "policy", "gate", "probe"]
    assert outcome.metrics["ppo/mean_change"] > 0

    second = tmp_path / "v2"
    outcome = learn(
        job(base, second, votes_on(engine), parent_location=first, warm_start=first), engine, reporter, config
    )
    assert outcome.verdict == "candidate", outcome.reason
    assert "reward/prequential_auroc" in outcome.metrics


def test_the_probe_is_what_the_published_bytes_give(base: Path, tmp_path: Path) -> None:
    engine = TinyEngine()
    folder = tmp_path / "v1"
    learn(job(base, folder, votes_on(engine)), engine, Quiet(), tiny_config(**LENIENT, kl_ceiling=1e6))
    backbone = tiny_backbone(tiny_llama(), cut=0)
    adapters.write_into(backbone, POLICY, adapters.read_weights(folder / "adapter"))
    probe = Probe.model_validate_json((folder / "probe.json").read_text())
    assert sum(len(s.response_ids) for s in probe.sequences) >= 64
    for sequence in probe.sequences[:8]:
        encoded = backbone.encode([Exchange(tuple(sequence.prompt_ids), tuple(sequence.response_ids))])
        with backbone.using(POLICY):
            new = backbone.all_logprobs(encoded, [1.0])[0]
        with backbone.using(REFERENCE):
            parent = backbone.all_logprobs(encoded, [1.0])[0]
        torch.testing.assert_close(new, torch.tensor(sequence.new_logprobs), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(parent, torch.tensor(sequence.parent_logprobs), atol=1e-4, rtol=1e-4)
        assert not torch.equal(new, parent)


def test_a_reward_model_below_its_bar_stops_the_run_but_is_kept(base: Path, tmp_path: Path) -> None:
    engine, folder = TinyEngine(), tmp_path / "v1"
    outcome = learn(job(base, folder, votes_on(engine)), engine, Quiet(), tiny_config(reward_bar=1.0))
    assert outcome.verdict == "rejected"
    assert outcome.reason is not None and "AUROC" in outcome.reason
    assert (folder / "reward" / "heads.safetensors").is_file()
    weights = adapters.read_weights(folder / "adapter")
    assert all(w.abs().max() == 0 for name, w in weights.items() if "lora_B" in name)
    assert engine.calls[1:] == []  # nothing was drawn for a policy that may not be trained


def test_one_class_is_insufficient_and_says_why(base: Path, tmp_path: Path) -> None:
    engine = TinyEngine()
    outcome = learn(job(base, tmp_path / "v1", votes_on(engine, value=1.0)), engine, Quiet(), tiny_config())
    assert outcome.verdict == "insufficient"
    assert outcome.reason is not None and "one class" in outcome.reason
    assert {p.name for p in (tmp_path / "v1").iterdir()} == {"report.json"}


def test_the_kl_ceiling_stops_a_run_early(base: Path, tmp_path: Path) -> None:
    engine = TinyEngine()
    votes, kl, steps = votes_on(engine), [], []
    for name, ceiling in (("bounded", 0.05), ("free", 1e6)):
        config = tiny_config(**(LENIENT | {"lr": 0.03}), kl_ceiling=ceiling, ppo_epochs=3)
        outcome = learn(job(base, tmp_path / name, votes), engine, Quiet(), config)
        assert outcome.metrics["ppo/stopped_by_ceiling"] == (name == "bounded")
        kl.append(outcome.metrics["ppo/kl"])
        steps.append(outcome.metrics["ppo/steps"])
    assert steps[0] < steps[1] and kl[0] < 0.2 * kl[1]

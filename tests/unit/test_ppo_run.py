"""The whole run, votes to workspace, on a tiny real model."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from plaudit.wire.chat import SamplingParams
from plaudit.wire.training import Batch, GeneratedAnswer, GeneratePrompt
from plaudit.wire.versions import Probe
from plaudit_trainer import adapters
from plaudit_trainer.algorithms import ppo
from plaudit_trainer.algorithms.base import Trained
from plaudit_trainer.learner import Job, learn
from plaudit_trainer.models import POLICY, REFERENCE, Backbone, Exchange
from plaudit_trainer.trajectories import PolicyData
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


class _Listening(TinyEngine):
    """Keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[list[str]] = []
        self.answers_each: list[int] = []

    def generate(
        self, prompts: Sequence[GeneratePrompt], *, version: str, n: int, sampling: SamplingParams
    ) -> list[GeneratedAnswer]:
        self.asked.append([str((p.messages or [{}])[0].get("content")) for p in prompts])
        self.answers_each.append(n)
        return super().generate(prompts, version=version, n=n, sampling=sampling)


def test_fresh_answers_are_to_prompts_of_the_log_and_not_the_voters_own(base: Path, tmp_path: Path) -> None:
    """Who votes would else also choose what is practised."""
    engine = _Listening()
    votes = votes_on(engine)
    log = [[{"role": "user", "content": f"nobody voted on this {i}"}] for i in range(40)]
    batch = votes.model_copy(update={"prompts": log})
    learn(job(base, tmp_path / "v1", batch), engine, Quiet(), tiny_config(**LENIENT, kl_ceiling=1e6))
    fresh = engine.asked[1]
    assert len(fresh) == 8 and all(q.startswith("nobody voted") for q in fresh)
    learn(job(base, tmp_path / "v2", votes), engine, Quiet(), tiny_config(**LENIENT, kl_ceiling=1e6))
    assert len(engine.asked[3]) == 8  # a log without other prompts: the voters' own


@pytest.mark.parametrize(("wanted", "each"), [(8, 1), (1000, 8)])
def test_the_gate_asks_for_few_answers_to_one_prompt(base: Path, tmp_path: Path, wanted: int, each: int) -> None:
    """Prompts are its units: a thousand answers to three of them would tell it little more than twenty-four."""
    engine = _Listening()
    votes = votes_on(engine)
    log = [[{"role": "user", "content": f"nobody voted on this {i}"}] for i in range(40)]
    batch = votes.model_copy(update={"prompts": log})
    config = tiny_config(**(LENIENT | {"gate_answers": wanted}), kl_ceiling=1e6)
    learn(job(base, tmp_path / "v1", batch), engine, Quiet(), config)
    assert engine.answers_each[-1] == each
    assert len(engine.asked[-1]) <= wanted


def test_a_candidate_beyond_the_ceiling_is_brought_back_before_the_gate(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass reckons the KL before each step, so the only step of this one is seen by none."""
    monkeypatch.setattr(ppo, "finished", _believing)
    config = tiny_config(**(LENIENT | {"lr": 0.05}), kl_ceiling=0.02, ppo_epochs=1, minibatch=64)
    engine = TinyEngine()
    outcome = learn(job(base, tmp_path / "v1", votes_on(engine)), engine, Quiet(), config)
    assert outcome.metrics["policy/kl_own"] > 0.02
    assert 0 < outcome.metrics["policy/step_kept"] < 1


def _believing(backbone: Backbone, data: PolicyData, update: ppo.PolicyUpdate, alarms: list[str], _: object) -> Trained:
    """The end of a training that takes nothing back itself."""
    return Trained({}, alarms + update.alarms(), torch.zeros(len(data.trajectories)))
